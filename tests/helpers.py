"""A data set on which training takes a second, and ways to interrupt a training."""

import itertools
import json
import os
import signal
import time

import pytest
import torch
from conftest import image_set
from safetensors.torch import save_file

from kdnb import Run, create_model, train
from kdnb.data import DATASETS, Preset, register
from kdnb.data.digests import no_digest
from kdnb.training.loop import Interrupted
from kdnb.training.step import Engine

TINY = Preset(
    student="wrn_10_1",
    teacher="wrn_16_1",
    image_size=8,
    padding=1,
    epochs=3,
    batch_size=16,
    lr=0.02,
    milestones=(0.5, 0.75),
    methods={"afd": "ce + kd:0.9 + afd:20"},
)
STEPS = 5  # of an epoch


def register_tiny():
    @register("tiny", TINY, digest=no_digest)
    def load(root, size, **_):
        return image_set(70), image_set(40, seed=9)


@pytest.fixture(scope="module", autouse=True)
def tiny():
    """The data set "tiny", for the test files that import this."""
    register_tiny()
    yield
    del DATASETS["tiny"]


@pytest.fixture(scope="module")
def teacher(tiny, teacher_outputs):
    """The file of a trained teacher: no run has to train it first."""
    return str(train(tiny_run(teacher_outputs).teacher_run, log=quiet).weights)


def tiny_run(outputs, **changes) -> Run:
    fields = {"dataset": "tiny", "device": "cpu", "precision": "float32", "compile": "off"}
    fields |= {"teacher_cache": "off"}  # no file in the user's cache
    return Run(**fields | changes, outputs=str(outputs))


def save_teacher(path, classes):
    """Save random weights of a WRN-16-1; classes: the names in its metadata, None without any."""
    torch.manual_seed(0)
    # The accuracy is no number, and overrides have the name that they had in format 1.
    about = {"dataset": "tiny", "top1": "high", "changes": {"epochs": [2, 240]}}
    metadata = {"kdnb": json.dumps(about | {"classes": classes})} if classes else None
    model = create_model("wrn_16_1", len(classes) if classes else 4)
    save_file(model.state_dict(), path, metadata)
    return str(path)


def quiet(line):
    pass


def weights(run):
    """The bytes of what was trained, by file; not every loss has parameters.

    Without the header, whose metadata name the run.
    """
    files = {path.name: path.read_bytes() for path in run.folder.glob("*.safetensors")}
    return {name: data[8 + int.from_bytes(data[:8], "little") :] for name, data in files.items()}


def equal_runs(run, other):
    """Whether two finished AFD runs are equal bit by bit, but for the time they took."""
    metrics, other_metrics = (each.metrics.drop(columns="seconds") for each in (run, other))
    has_equal_links = (run.history["afd.links"] == other.history["afd.links"]).all()
    return weights(run) == weights(other) and metrics.equals(other_metrics) and has_equal_links


def edit(path, **entries):
    """Change entries of a run's JSON file; its digests are dropped, as in older runs."""
    rewrite(path, json.loads(path.read_text()) | entries)


def rewrite(path, content):
    """Write a run's JSON file without digests; result.json loses those of the other files, too."""
    content.pop("sha256", None)
    path.write_text(json.dumps(content))
    result = path.with_name("result.json")
    if result.is_file():
        content = json.loads(result.read_text())
        content = {name: content[name] for name in content if name not in ("files", "sha256")}
        result.write_text(json.dumps(content))


class Killed(BaseException):
    pass


def kill():
    raise Killed


def press_stop():
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.01)  # the handler runs between two instructions of this thread


def at_step(number, change):
    """A replacement of Engine.__call__ that calls `change(engine)` before the run's step `number`,
    counted from 1."""
    original = Engine.__call__
    count = itertools.count(1)

    def step(self, inputs):
        if next(count) == number:
            change(self)
        return original(self, inputs)

    return step


def spoil(engine):
    """Make the losses of a run not finite, from the next step on."""
    next(engine.trainable.parameters()).data.fill_(float("nan"))


def break_off(run, step, how=kill):
    """Train a run until a step, at which it is killed or stopped; returns the error's message."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises((Killed, Interrupted)) as error:
        patch.setattr(Engine, "__call__", at_step(step, lambda engine: how()))
        train(run, log=quiet)
    assert not run.done
    return str(error.value)
