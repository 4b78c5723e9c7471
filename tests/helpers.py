"""A data set that is trained in a second, and ways to break a training off."""

import itertools
import json
import os
import signal
import time

import pytest
from conftest import image_set

from kdnb import Run, train
from kdnb.data import DATASETS, Preset, register
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
STEPS = 5  # an epoch


def register_tiny():
    @register("tiny", TINY)
    def load(root, size, **_):
        return image_set(70), image_set(40, seed=9)


@pytest.fixture(scope="module", autouse=True)
def tiny():
    """The data set "tiny", for the test files that import this."""
    register_tiny()
    yield
    del DATASETS["tiny"]


def tiny_run(outputs, **changes) -> Run:
    fixed = {"dataset": "tiny", "device": "cpu", "precision": "float32", "compile": "off"}
    return Run(**fixed | changes, outputs=str(outputs))


def quiet(line):
    pass


def weights(run):
    """The bytes of what was trained; not every loss has something of its own."""
    return {path.name: path.read_bytes() for path in run.folder.glob("*.safetensors")}


def same(one, other):
    """Whether two finished runs are equal bit by bit, but for the time they took."""
    rows = [run.metrics.drop(columns="seconds") for run in (one, other)]
    links = [run.history["afd.links"] for run in (one, other)]
    return (
        weights(one) == weights(other) and rows[0].equals(rows[1]) and (links[0] == links[1]).all()
    )


def edit(path, **entries):
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


class Killed(BaseException):
    pass


def kill():
    raise Killed


def press_stop():
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.01)  # the handler runs between two instructions of this thread


def at_step(at, do):
    """A step of Engine's that does something to the batch of the run's step `at` (from 1) before it
    takes it."""
    step, count = Engine.__call__, itertools.count(1)
    return lambda self, batch: step(self, (do(batch) or batch) if next(count) == at else batch)


def break_off(run, at, how=kill):
    """Train a run until step `at`, where it ends like a killed process, or like one that a person
    stops."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises((Killed, Interrupted)) as error:
        patch.setattr(Engine, "__call__", at_step(at, lambda batch: how()))
        train(run, log=quiet)
    assert not run.done
    return str(error.value)
