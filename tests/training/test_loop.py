"""kdnb.training.loop: what a run computes, records and refuses; test_resume.py interrupts it."""

import json
import re
import shutil
import sys
import time
import weakref
from dataclasses import replace

import pytest
import torch
from conftest import image_set
from helpers import (
    STEPS,
    break_off,
    edit,
    equal_runs,
    press_stop,
    quiet,
    rewrite,
    save_teacher,
    teacher,
    tiny,
    tiny_run,
    weights,
)

from kdnb import InputError, Run, create_model, train
from kdnb.__main__ import main
from kdnb.data import DATASETS
from kdnb.data.image_file import VERSION
from kdnb.data.loader import Loader
from kdnb.models import read_metadata
from kdnb.training.evaluation import evaluate
from kdnb.training.loop import Interrupted
from kdnb.training.step import Engine


@pytest.fixture(scope="module")
def finished(teacher, tmp_path_factory):
    return train(tiny_run(tmp_path_factory.mktemp("finished"), teacher_weights=teacher), log=quiet)


@pytest.fixture
def run(teacher, tmp_path):
    """The same run, not yet started."""
    return tiny_run(tmp_path, teacher_weights=teacher)


# What it computes and records


def test_a_run_learns(finished):
    result = finished.result
    metrics = finished.metrics
    assert result["top1"] > 40  # chance is 25
    assert result["top1"] == metrics["test_top1"].iloc[-1]
    assert result["best"]["top1"] == metrics["test_top1"].max()
    assert result["top5"] == 100  # of four classes
    assert result["train_images"] == 70
    assert result["test_images"] == 40
    assert result["parameters"] == 77_460
    assert result["teacher_parameters"] == 174_676
    assert metrics["epoch"].tolist() == [1, 2, 3]
    assert metrics["lr"].tolist() == pytest.approx([0.02, 0.002, 0.0002])


def test_a_run_keeps_the_attention_of_each_epoch(finished):
    history = finished.history
    assert history["afd.links"].shape == (3, 6, 3)  # epochs, teacher blocks, student blocks
    assert history["afd.links"].sum(2) == pytest.approx(1, abs=1e-5)
    assert history["teacher.blocks"].tolist() == ["1.1", "1.2", "2.1", "2.2", "3.1", "3.2"]
    assert history["student.shapes"].tolist() == [[16, 8, 8], [32, 4, 4], [64, 2, 2]]


def test_a_run_describes_itself(finished):
    config = finished.config
    assert config["run"] == finished.identity
    assert config["label"] == "afd"
    assert config["left_out"] == []
    machine = config["machines"][0]
    assert {"device", "device_type", "versions", "commit", "started"} <= machine.keys()
    assert config["teacher"]["network"] == "wrn_16_1"
    assert config["teacher"]["dataset"] == "tiny"
    assert read_metadata(finished.weights)["classes"] == [f"class {i}" for i in range(4)]


def test_a_finished_run_leaves_no_checkpoint(finished):
    names = {path.name for path in finished.folder.iterdir()}
    assert names == {
        "config.json",
        "metrics.csv",
        "history.npz",
        "student.safetensors",
        "losses.safetensors",
        "result.json",
    }


@pytest.mark.parametrize(
    ("method", "terms"),
    [
        ("none", {"ce": 1}),
        ("kd", {"ce": 0.1, "kd": 0.9}),
        ("ce + kd:2(T=1)", {"ce": 1, "kd": 2}),
        ("afd", {"ce": 1, "kd": 0.9, "afd": 20}),
    ],
)
def test_the_total_is_the_weighted_sum(teacher, tmp_path, method, terms):
    run = tiny_run(tmp_path, method=method, teacher_weights=teacher, epochs=1)
    metrics = train(run, log=quiet).metrics
    columns = {name for name in metrics if name.startswith("train_")}
    assert columns == {f"train_{name}" for name in ("top1", "total", *terms)}
    total = sum(weight * metrics[f"train_{name}"] for name, weight in terms.items())
    assert metrics["train_total"].to_numpy() == pytest.approx(total.to_numpy(), rel=1e-5)


def test_the_same_seed_gives_the_same_bits(finished, run):
    random_state = torch.get_rng_state()
    threads = torch.get_num_threads()
    assert equal_runs(train(run, log=quiet), finished)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert torch.get_num_threads() == threads
    assert weights(train(replace(run, seed=1), log=quiet)) != weights(finished)


def test_bfloat16_reaches_what_float32_does(finished, run):
    total = train(replace(run, precision="bfloat16"), log=quiet).metrics["train_total"]
    assert total.to_numpy() == pytest.approx(finished.metrics["train_total"].to_numpy(), rel=0.1)


def test_evaluate_counts_what_a_plain_loop_counts():
    model = create_model("wrn_10_1", 8).train()
    images = image_set(n=50, classes=8)
    measured = evaluate(model, Loader(images, 16, 8))
    assert model.training
    logits = model.eval()((images.images / 255 - 0.5) / 0.25).logits.detach()
    ranked = logits.argsort(1, descending=True)
    is_first = ranked[:, 0] == images.labels
    is_in_five = (ranked[:, :5] == images.labels[:, None]).any(1)
    assert measured["top1"] == pytest.approx(100 * float(is_first.float().mean()))
    assert measured["top5"] == pytest.approx(100 * float(is_in_five.float().mean()))
    loss = torch.nn.functional.cross_entropy(logits, images.labels)
    assert measured["loss"] == pytest.approx(float(loss), rel=1e-4)


def test_a_training_of_very_many_epochs_begins_at_once(run):
    with pytest.raises(Interrupted, match="stopped after step 1 of epoch 1"):
        train(replace(run, epochs=10**15, seed=8), quiet, time.monotonic())


def test_a_network_is_tested_on_as_many_images_and_as_often_as_asked(run):
    lines = []
    small = train(replace(run, test_limit=10, test_every=2, epochs=5), log=lines.append)
    result, metrics = small.result, small.metrics
    assert metrics["test_top1"].isna().tolist() == [True, False, True, False, False]
    assert [" test " in line for line in lines if line.startswith("epoch")] == [0, 1, 0, 1, 1]
    assert result["test_images"] == 10
    assert result["top1"] == metrics["test_top1"].iloc[-1]
    assert result["best"]["epoch"] in (2, 4, 5)
    assert small.overrides == {"epochs": [5, 3], "test_limit": [10, 0]}  # not full length
    with pytest.raises(InputError, match="test_limit is 41: there are only 40 test images"):
        train(replace(run, test_limit=41), log=quiet)
    with pytest.raises(InputError, match="test_every is 0: it must be 1 or more"):
        replace(run, test_every=0)


def test_how_often_it_is_tested_changes_no_weight_and_no_teacher(finished, run):
    assert weights(train(replace(run, test_every=3), log=quiet)) == weights(finished)
    trained_first = replace(run, teacher_weights="none", teacher_weights_hash="")
    assert replace(trained_first, test_limit=10).teacher_run == trained_first.teacher_run


@pytest.mark.parametrize("is_finished", [False, True])
def test_threads_are_set_also_for_a_finished_run(run, monkeypatch, is_finished):
    run = replace(run, method="none", epochs=1)
    if is_finished:
        train(run, log=quiet)
    default = torch.get_num_threads()
    calls = []
    monkeypatch.setattr(torch, "set_num_threads", calls.append)
    train(replace(run, threads=3), log=quiet)
    train(replace(run, threads=0), log=quiet)
    # The second run does not inherit those of the first.
    assert list(dict.fromkeys(calls)) == [3, default]


# Finished runs, and folders of other runs


def test_a_finished_run_is_only_read(finished, monkeypatch):
    before = {path: path.stat().st_mtime_ns for path in finished.folder.iterdir()}
    monkeypatch.setattr("kdnb.training.setup.load_data", None)
    lines = []
    assert train(finished, log=lines.append) == finished
    (line,) = lines
    assert line.startswith(f"{finished.name}: finished before, top-1 ")
    assert before == {path: path.stat().st_mtime_ns for path in finished.folder.iterdir()}


@pytest.mark.parametrize("is_finished", [True, False])
def test_a_folder_of_another_run_is_refused_by_name(finished, run, is_finished):
    if is_finished:
        shutil.copytree(finished.folder, run.folder)
    else:
        break_off(run, 7, press_stop)
    opened = Run.open(run.folder, device="cpu", compile="off")
    with pytest.raises(InputError, match=r"holds another run: lr was 0\.02 and is now 0\.5"):
        train(replace(opened, lr=0.5), log=quiet)
    preset = run.config["preset"]
    edit(run.folder / "config.json", preset=preset | {"gamma": 0.5})
    with pytest.raises(InputError, match=r"gamma was 0\.5 and is now 0\.1"):
        train(opened, log=quiet)
    # This changes no step of this network.
    edit(run.folder / "config.json", preset=preset | {"lrs": {"resnet8": 1.0}})
    assert train(opened, log=quiet).done


def test_other_images_and_another_teacher_are_refused_on_resuming(run, tmp_path, monkeypatch):
    monkeypatch.setitem(DATASETS, "tiny", DATASETS["tiny"]._replace(digest=lambda root: root.name))
    file = str(shutil.copy(run.teacher_weights, tmp_path / "t.safetensors"))
    run = replace(run, data_root=str(tmp_path / "here"), data_hash="", teacher_weights=file)
    break_off(run, 7, press_stop)
    with pytest.raises(InputError, match="data_hash was 'here' and is now 'there'"):
        train(Run.open(run.folder, data_root=str(tmp_path / "there")), log=quiet)
    save_teacher(file, None)
    with pytest.raises(InputError, match=r"t\.safetensors does not hold the weights that teach"):
        train(Run.open(run.folder), log=quiet)


def test_a_checkpoint_of_otherwise_decoded_photographs_is_refused(run, monkeypatch):
    """Before version 2 photographs were squashed to squares, and config.json said nothing."""
    splits = [image_set(n, 10, aspect=torch.linspace(0.5, 2, n), seed=n) for n in (70, 40)]
    load = DATASETS["tiny"]._replace(load=lambda root, size, **_: tuple(splits))
    monkeypatch.setitem(DATASETS, "tiny", load)
    run = replace(run, method="none")
    break_off(run, 7, press_stop)
    path = run.folder / "config.json"
    new = json.loads(path.read_text())
    assert new.pop("decoding") == VERSION
    old = path.read_text()
    rewrite(path, dict(new))
    with pytest.raises(InputError, match=f"decoding was 1 and is now {VERSION}"):
        train(run, log=quiet)
    path.write_text(old)
    train(run, log=quiet)
    rewrite(path, new)
    assert train(run, log=quiet).done  # a finished run is only read


# Machines


def test_every_machine_and_commit_that_took_part_is_recorded(run, monkeypatch):
    break_off(run, 7, press_stop)
    (first,) = run.config["machines"]
    assert first["threads"] == torch.get_num_threads()
    assert not first["compile"]
    break_off(run, 2, press_stop)  # on the same machine: nothing to add
    assert run.config["machines"] == [first]
    # The data set of these tests is code of the user's: no commit has it.
    second = first | {"device": "another", "commit": "0123456789ab+changes", "started": "now"}
    loop = sys.modules["kdnb.training.loop"]
    monkeypatch.setattr(loop, "environment", lambda device: dict(second))
    train(run, log=quiet)
    assert run.config["machines"] == [first, second]


@pytest.mark.parametrize(
    ("was_compiled", "compile", "has_compiler"),
    [
        (False, "on", True),  # it was not compiled when it began
        (True, "off", True),
        (True, "auto", False),
    ],
)
def test_a_run_resumes_uncompiled_if_it_was_or_has_to_be(
    run, monkeypatch, was_compiled, compile, has_compiler
):
    break_off(run, 7, press_stop)
    (machine,) = run.config["machines"]
    edit(run.folder / "config.json", machines=[machine | {"compile": was_compiled}])
    outputs = sys.modules["kdnb.training.outputs"]
    monkeypatch.setattr(outputs, "has_compiler", lambda: has_compiler)
    train(replace(run, compile=compile), log=quiet)
    assert not run.config["machines"][-1]["compile"]


# What goes wrong


def test_a_loss_that_is_not_finite_stops_the_run(run):
    sentence = (
        r"no longer finite in epoch 1, step \d+; there is no checkpoint yet.*lr \(now 1000000000"
    )
    with pytest.raises(InputError, match=sentence):
        train(replace(run, lr=1e9), log=quiet)


def argv(fields):
    return [word for name, value in fields.items() for word in ("-p", name, str(value))]


def test_too_little_memory_is_one_sentence_and_releases_the_tensors(
    teacher, tmp_path, monkeypatch, capsys
):
    held = []

    def fill(self, batch, step=Engine.__call__):
        step(self, batch)
        if self.distiller.teacher is not None:
            tensor = torch.zeros(3)
            held.append(weakref.ref(tensor))
            raise torch.OutOfMemoryError(
                "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has ..."
            )

    monkeypatch.setattr(Engine, "__call__", fill)
    run = tiny_run(tmp_path, teacher_weights=teacher)
    sentence = "CUDA out of memory: a smaller batch_size, image_size, network or option"
    with pytest.raises(InputError, match=sentence) as caught:
        train(run, log=quiet)
    assert caught.value
    assert held[0]() is None
    names = ("dataset", "device", "precision", "compile", "outputs", "teacher_weights")
    fields = {name: getattr(run, name) for name in names}
    assert main(argv(fields | {"method": ["kd", "none"]})) == 2
    out, err = capsys.readouterr()
    assert re.fullmatch(f"failed: tiny-wrn_10_1-kd-.+: {sentence}.+\n", err)
    assert "epoch 3/3" in out


def test_a_bug_in_one_run_has_a_traceback_and_does_not_end_the_list(tmp_path, monkeypatch, capsys):
    def broken(self, epoch):
        raise ZeroDivisionError

    monkeypatch.setattr(Engine, "start_epoch", broken)
    fields = {"dataset": "tiny", "method": "none", "device": "cpu", "outputs": tmp_path}
    assert main(argv(fields | {"seed": [0, 1]})) == 2
    err = capsys.readouterr().err
    assert err.count("Traceback") == 2
    assert err.count("failed: tiny-wrn_10_1-none") == 2
    assert "seed=1" in err


def test_a_last_step_that_diverges_is_no_finished_run(run):
    run = replace(run, method="none", lr=1e9, epochs=1, batch_size=70)
    with pytest.raises(InputError, match=r"no longer finite in epoch 1, step 1"):
        train(run, log=quiet)
    assert not run.done and not (run.folder / "checkpoint").exists()


@pytest.mark.parametrize("asked", [0, 2])
def test_a_run_that_goes_on_keeps_its_threads_or_says_so(run, monkeypatch, asked):
    run = replace(run, epochs=1)  # two threads spin where the cores are busy
    break_off(replace(run, threads=1), STEPS - 1, press_stop)
    monkeypatch.setattr("kdnb.device.DEFAULT_THREADS", 2)  # as the share of another worker
    lines = []
    train(replace(run, threads=asked), log=lines.append)
    assert [machine["threads"] for machine in run.config["machines"]] == [1, 2][: 1 + (asked > 0)]
    assert any("with 1 CPU threads so far, and now with 2" in line for line in lines) == (asked > 0)


def test_photographs_that_change_in_a_run_are_refused(run, monkeypatch):
    photographs = image_set(70, 10, aspect=torch.linspace(0.5, 2, 70))
    states = [replace(photographs, damaged=("a.jpg",), pixels_digest="1 (x)")]
    load = DATASETS["tiny"]._replace(load=lambda root, size, **_: (states[-1], states[-1]))
    monkeypatch.setitem(DATASETS, "tiny", load)
    run = replace(run, method="none")
    break_off(run, 3, press_stop)
    states.append(replace(photographs, pixels_digest="2 (x)"))
    with pytest.raises(InputError, match=r"begun with other images: a\.jpg can be decoded now"):
        train(run, log=quiet)
    states.append(replace(states[0], pixels_digest="2 (x)"))
    with pytest.raises(InputError, match="but other pixels"):
        train(run, log=quiet)
    states.append(replace(states[0], pixels_digest="2 (another version)"))
    assert train(run, log=quiet).done
