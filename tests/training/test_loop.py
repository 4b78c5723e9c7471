import json
import re
import shutil
import subprocess
import sys
import time
import warnings
import weakref
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import image_set
from helpers import (
    STEPS,
    TINY,
    at_step,
    break_off,
    edit,
    kill,
    press_stop,
    quiet,
    same,
    tiny,
    tiny_run,
    weights,
)
from safetensors.torch import save_file

from kdnb import METHODS, InputError, Run, create_model, train
from kdnb.__main__ import main
from kdnb.data import DATASETS
from kdnb.data.loader import Loader
from kdnb.models import load_weights, read_metadata
from kdnb.progress import StopButton
from kdnb.runs.checkpoint import CHECKPOINT, load_checkpoint
from kdnb.training.loop import Interrupted
from kdnb.training.setup import build_setup
from kdnb.training.step import Engine, evaluate


@pytest.fixture(scope="module")
def teacher(tiny, tmp_path_factory):
    """The file of a trained teacher: no run has to train it first."""
    return str(train(tiny_run(tmp_path_factory.mktemp("teacher")).teacher_run, log=quiet).weights)


@pytest.fixture(scope="module")
def whole(teacher, tmp_path_factory):
    """A run that nothing interrupted."""
    return train(tiny_run(tmp_path_factory.mktemp("whole"), teacher_weights=teacher), log=quiet)


@pytest.fixture
def run(teacher, tmp_path):
    """The same run, not yet begun."""
    return tiny_run(tmp_path, teacher_weights=teacher)


def names_of(path, classes):
    """A teacher's file that knows its classes by these names; None: not at all."""
    torch.manual_seed(0)
    told = {
        "classes": classes,
        "dataset": "tiny",
        "top1": "high",
        "changes": {"epochs": [2, 240]},
    }  # no number
    metadata = {"kdnb": json.dumps(told)} if classes else None
    save_file(create_model("wrn_16_1", len(classes or range(4))).state_dict(), path, metadata)
    return str(path)


def test_a_run_learns_and_says_what_it_was(whole, teacher):
    result, metrics, history, config = whole.result, whole.metrics, whole.history, whole.config
    assert result["top1"] > 40  # chance is 25
    assert (
        result["top1"] == metrics["test_top1"].iloc[-1]
        and result["best"]["top1"] == metrics["test_top1"].max()
    )
    assert metrics["epoch"].tolist() == [1, 2, 3] and metrics["lr"].tolist() == pytest.approx(
        [0.02, 0.002, 0.0002]
    )
    assert result["train_images"] == 70 and result["test_images"] == 40 and result["top5"] == 100
    assert result["parameters"] == 77_460 and result["teacher_parameters"] == 174_676
    assert history["afd.links"].shape == (3, 6, 3)  # epochs, teacher blocks, student blocks
    assert history["afd.links"].sum(2) == pytest.approx(1, abs=1e-5)
    assert history["teacher.blocks"].tolist() == ["1.1", "1.2", "2.1", "2.2", "3.1", "3.2"]
    assert history["student.shapes"].tolist() == [[16, 8, 8], [32, 4, 4], [64, 2, 2]]
    assert config["run"] == whole.identity and config["label"] == "afd" and config["left_out"] == []
    assert {"device", "device_type", "versions", "commit", "started"} <= config["machines"][
        0
    ].keys()
    assert config["teacher"]["network"] == "wrn_16_1" and config["teacher"]["dataset"] == "tiny"
    assert read_metadata(whole.weights)["classes"] == ["class 0", "class 1", "class 2", "class 3"]
    kept = {path.name for path in whole.folder.iterdir()} - {".lock"}
    files = {
        "config.json",
        "metrics.csv",
        "history.npz",
        "student.safetensors",
        "losses.safetensors",
        "result.json",
    }
    assert kept == files  # and no checkpoint


PARTS = {"none": {"ce": 1}, "kd": {"ce": 0.1, "kd": 0.9}, "ce + kd:2(T=1)": {"ce": 1, "kd": 2}}


@pytest.mark.parametrize(
    ("method", "parts"), [*PARTS.items(), ("afd", {"ce": 1, "kd": 0.9, "afd": 20})]
)
def test_the_total_is_the_weighted_sum(teacher, tmp_path, method, parts):
    table = train(
        tiny_run(tmp_path, method=method, teacher_weights=teacher, epochs=1), log=quiet
    ).metrics
    assert {name for name in table if name.startswith("train_")} == {
        f"train_{n}" for n in ("top1", "total", *parts)
    }
    total = sum(weight * table[f"train_{name}"] for name, weight in parts.items())
    assert table["train_total"].to_numpy() == pytest.approx(total.to_numpy(), rel=1e-5)


def test_the_same_seed_gives_the_same_bits(whole, run):
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    assert same(train(run, log=quiet), whole)
    assert torch.equal(torch.get_rng_state(), before) and torch.get_num_threads() == threads
    assert weights(train(replace(run, seed=1), log=quiet)) != weights(whole)


def test_a_student_starts_from_its_seed_whatever_teaches_it(run):
    starts = [
        build_setup(r).distiller.student.state_dict()
        for r in (run, run.baseline, replace(run, seed=4))
    ]
    assert all(torch.equal(value, starts[1][key]) for key, value in starts[0].items())
    assert not torch.equal(starts[0]["conv1.weight"], starts[2]["conv1.weight"])


@pytest.mark.parametrize("at", [1, 3, 5, 6, 11, 14])
@pytest.mark.parametrize("how", [kill, press_stop])
def test_a_broken_off_run_goes_on_to_the_same_bits(whole, run, at, how):
    break_off(run, at, how)
    assert same(train(run, log=quiet), whole)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_goes_on_to_the_same_bits(teacher, tmp_path, method):
    """What its losses remember and draw at random, too, goes on where it was."""
    of = {"method": method, "teacher_weights": teacher, "epochs": 2}
    whole, broken = (tiny_run(tmp_path / name, **of) for name in ("whole", "broken"))
    break_off(broken, 7, press_stop)
    assert weights(train(broken, log=quiet)) == weights(train(whole, log=quiet))


def test_the_stop_button_keeps_the_step_it_stopped_at(run):
    assert (
        break_off(run, 7, press_stop)
        == "stopped after step 2 of epoch 2; run it again to go on from there"
    )
    assert load_checkpoint(run.folder)["step"] == 2
    lines = []
    train(run, log=lines.append)
    assert lines[0].startswith("its teacher: wrn_16_1, weights student.safetensors (tiny, top-1 ")
    assert lines[1] == f"{run.name}: going on after epoch 1, step 2" and lines[-1].startswith(
        "epoch 3/3  ce "
    )


def test_a_checkpoint_inside_an_epoch_is_kept_in_case_of_the_worst(whole, run, monkeypatch):
    monkeypatch.setattr(sys.modules["kdnb.training.loop"], "CHECKPOINT_SECONDS", -1)
    break_off(run, 4)
    assert load_checkpoint(run.folder)["step"] == 3 and same(train(run, log=quiet), whole)


def test_who_presses_stop_twice_means_it():
    with StopButton() as stop, pytest.raises(KeyboardInterrupt):
        press_stop()
        assert stop.pressed
        press_stop()


def test_stopped_in_the_last_test_it_is_finished_and_nothing_follows(tmp_path, monkeypatch):
    run = tiny_run(tmp_path, method="kd", teacher_epochs=1, epochs=1)

    def stopped(*of):
        press_stop()
        return evaluate(*of)

    monkeypatch.setattr(sys.modules["kdnb.training.loop"], "evaluate", stopped)
    with pytest.raises(
        Interrupted, match=f"{run.teacher_run.name} is finished, and nothing that follows was begun"
    ):
        train(run, quiet)
    assert run.teacher_run.done and not run.folder.exists()


def test_when_the_time_is_over_each_call_still_takes_a_step(tmp_path):
    run, lines = tiny_run(tmp_path, method="kd", teacher_epochs=1, epochs=1), []
    for step in range(1, STEPS + 1):
        with pytest.raises(
            Interrupted, match=f"stopped after step {step} of epoch 1; run it again"
        ):
            train(run, lines.append, deadline=0)
    assert load_checkpoint(run.teacher_run.folder)["step"] == STEPS and not run.folder.exists()
    with pytest.raises(
        Interrupted, match="stopped after step 1 of epoch 1"
    ):  # of the student, its teacher is finished
        train(run, lines.append, deadline=0)
    assert run.teacher_run.done and load_checkpoint(run.folder)["step"] == 1


@pytest.mark.parametrize("content", [None, b"", b"\x93\x00bytes", b"[1]"])
def test_a_torn_checkpoint_costs_an_epoch_and_no_bits(whole, run, content):
    break_off(run, 12)
    path = run.folder / CHECKPOINT
    path.write_bytes(path.read_bytes()[:-100] if content is None else content)
    with pytest.warns(UserWarning, match="checkpoint is damaged"):
        assert same(train(run, log=quiet), whole)


def test_kill_9_at_any_moment(whole, run, teacher, tmp_path):
    """A process that trains the same run is killed at two moments, then left to finish."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import helpers; helpers.register_tiny(); "
        "helpers.train(helpers.tiny_run(sys.argv[2], teacher_weights=sys.argv[3]))"
    )
    command = [sys.executable, "-c", code, str(Path(__file__).parents[1]), str(tmp_path), teacher]
    for wait in (0.0, 0.3):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        while not (run.folder / "config.json").exists() and process.poll() is None:
            time.sleep(0.01)
        time.sleep(wait)
        process.kill()
        process.wait()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    assert same(run, whole)


def test_a_finished_run_is_only_read(whole, monkeypatch):
    before = {p: p.stat().st_mtime_ns for p in whole.folder.iterdir()}
    monkeypatch.setattr("kdnb.training.setup.load_data", None)
    lines = []
    assert train(whole, log=lines.append) == whole
    assert lines == [f"{whole.name}: finished before, top-1 {whole.result['top1']:.2f} %"]
    assert before == {p: p.stat().st_mtime_ns for p in whole.folder.iterdir()}


@pytest.mark.parametrize("finished", [True, False])
def test_a_folder_of_another_run_is_refused_by_name(whole, run, finished):
    if finished:
        shutil.copytree(whole.folder, run.folder)
    else:
        break_off(run, 7, press_stop)
    opened = Run.open(run.folder, device="cpu", compile="off")
    with pytest.raises(
        InputError, match=r"holds another run: lr was 0\.02 and is now 0\.5; move it away or change"
    ):
        train(replace(opened, lr=0.5), log=quiet)
    preset = run.config["preset"]
    edit(run.folder / "config.json", preset=preset | {"momentum": 0.5})
    with pytest.raises(InputError, match=r"momentum was 0\.5 and is now 0\.9"):
        train(opened, log=quiet)
    edit(
        run.folder / "config.json", preset=preset | {"lrs": {"resnet8": 1.0}}
    )  # which changes no step of this network
    assert train(opened, log=quiet).done


def test_other_images_and_another_teacher_are_noticed_on_going_on(run, tmp_path, monkeypatch):
    monkeypatch.setitem(DATASETS, "tiny", DATASETS["tiny"]._replace(digest=lambda root: root.name))
    file = shutil.copy(run.teacher_weights, tmp_path / "t.safetensors")
    begun = replace(run, data_root=str(tmp_path / "here"), data_hash="", teacher_weights=str(file))
    break_off(begun, 7, press_stop)
    with pytest.raises(InputError, match="data_hash was 'here' and is now 'there'"):
        train(Run.open(begun.folder, data_root=str(tmp_path / "there")), log=quiet)
    names_of(file, None)
    with pytest.raises(
        InputError, match=r"t\.safetensors does not hold the weights that teach tiny-wrn_10_1-afd"
    ):
        train(Run.open(begun.folder), log=quiet)


def test_every_machine_and_commit_that_took_part_is_recorded(run, monkeypatch):
    break_off(run, 7, press_stop)
    started = run.config["machines"]
    assert (
        len(started) == 1
        and started[0]["threads"] == torch.get_num_threads()
        and not started[0]["compile"]
    )
    break_off(run, 2, press_stop)  # on the same machine: nothing to add
    assert run.config["machines"] == started
    other = {
        "device": "another",
        "device_type": "cpu",
        "versions": {},
        "commit": "0123456789ab",
        "started": "now",
    }
    monkeypatch.setattr(
        sys.modules["kdnb.training.loop"], "environment", lambda device: dict(other)
    )
    other |= {"compile": False, "threads": torch.get_num_threads()}
    break_off(replace(run, compile="on"), 2, press_stop)  # which it was not when it began
    assert run.config["machines"] == [*started, other]
    monkeypatch.setattr(sys.modules["kdnb.training.outputs"], "has_compiler", lambda: True)
    edit(run.folder / "config.json", machines=[*started, other | {"compile": True}])
    break_off(run, 2, press_stop)  # it was, and shall not be: compile is off
    assert run.config["machines"][2:] == [other]
    monkeypatch.setattr(sys.modules["kdnb.training.outputs"], "has_compiler", lambda: False)
    edit(run.folder / "config.json", machines=[*started, other | {"compile": True}])
    train(replace(run, compile="auto"), log=quiet)  # here it cannot be
    assert run.config["machines"][2:] == [other]


def test_threads(run, monkeypatch):
    asked = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    for threads in (3, 0):
        train(replace(run, method="none", threads=threads, seed=threads, epochs=1), log=quiet)
    assert asked == [
        3,
        torch.get_num_threads(),
    ]  # the second run does not keep to what the first was given


def test_a_loss_that_is_not_finite_stops_the_run(run, monkeypatch):
    with pytest.raises(
        InputError,
        match=r"no longer finite in epoch 1, step \d+; there is no checkpoint yet.*lr \(now 1e",
    ):
        train(replace(run, lr=1e30), log=quiet)
    poison = at_step(8, lambda batch: batch._replace(images=batch.images * float("nan")))
    monkeypatch.setattr(Engine, "__call__", poison)
    with pytest.raises(
        InputError, match="epoch 2, step 3; the checkpoint after epoch 1, step 0 is kept"
    ):
        train(run, log=quiet)
    assert load_checkpoint(run.folder)["epoch"] == 1 and not run.done


def test_evaluate_counts_what_a_plain_loop_counts():
    model, images = create_model("wrn_10_1", 8).train(), image_set(n=50, classes=8)
    found = evaluate(model, Loader(images, 16, 8))
    assert model.training
    logits = model.eval()((images.images / 255 - 0.5) / 0.25).logits
    order = logits.argsort(1, descending=True)
    assert found["top1"] == pytest.approx(
        100 * float((order[:, 0] == images.labels).float().mean())
    )
    assert found["top5"] == pytest.approx(
        100 * float((order[:, :5] == images.labels[:, None]).any(1).float().mean())
    )
    expected = torch.nn.functional.cross_entropy(logits, images.labels)
    assert found["loss"] == pytest.approx(float(expected.detach()), rel=1e-4)


def test_bfloat16_reaches_what_float32_does(whole, run):
    total = train(replace(run, precision="bfloat16"), log=quiet).metrics["train_total"]
    assert total.to_numpy() == pytest.approx(whole.metrics["train_total"].to_numpy(), rel=0.1)


@pytest.mark.skipif(
    not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="compiling needs a C++ compiler"
)
@pytest.mark.filterwarnings("error:.*not compiled")
@pytest.mark.parametrize(
    ("method", "backend"), [("none", "inductor"), ("afd", "aot_eager")]
)  # AFD takes minutes
def test_a_compiled_step_computes_what_an_eager_one_does(
    teacher, tmp_path, monkeypatch, method, backend
):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    of = {"method": method, "teacher_weights": teacher, "epochs": 1}
    eager, compiled = (
        train(tiny_run(tmp_path / c, compile=c, **of), log=quiet) for c in ("off", "on")
    )
    assert compiled == eager and compiled.config["machines"][0]["compile"]
    totals = [run.metrics["train_total"].to_numpy() for run in (compiled, eager)]
    assert totals[0] == pytest.approx(totals[1], rel=1e-3)


class Misled(torch.autograd.Function):
    """What a compiler can do to a loss: the way back fails, as inductor's did on a GPU, after all
    has gone forward."""

    @staticmethod
    def forward(ctx, loss):
        return loss.clone()

    @staticmethod
    def backward(ctx, gradient):
        raise AssertionError(
            "expected size 128==128, stride 9==1 at dim=1\nError in op: convolution_backward"
        )


def test_a_step_that_cannot_be_compiled_goes_on_as_it_is(teacher, tmp_path, monkeypatch):
    of = {
        "method": "ce + crd:0.1 + afd:20",
        "teacher_weights": teacher,
    }  # memories, random numbers, running means
    usual = train(tiny_run(tmp_path / "usual", **of), log=quiet)
    monkeypatch.setenv("CXX", "a compiler")

    def mislead(step, **_):
        def compiled(*batch):
            loss, measured = step(*batch)
            return Misled.apply(loss), measured

        return compiled

    monkeypatch.setattr(torch, "compile", mislead)
    broken = tiny_run(tmp_path / "broken", **of, compile="on")
    with pytest.warns(
        UserWarning,
        match="the step is not compiled.*: expected size 128==128, stride 9==1 at dim=1$",
    ):
        break_off(broken, 8)
    with warnings.catch_warnings(action="error"):  # which is known by now
        assert same(train(broken, log=quiet), usual)
    assert [machine["compile"] for machine in broken.config["machines"]] == [False]


def test_too_little_memory_is_said_and_lets_go_of_what_fills_it(
    teacher, tmp_path, monkeypatch, capsys
):
    held = []

    def fill(self, batch, step=Engine.__call__):
        step(self, batch)
        if self.distiller.teacher is not None:
            full = torch.zeros(3)
            held.append(weakref.ref(full))
            raise torch.OutOfMemoryError(
                "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has ..."
            )

    monkeypatch.setattr(Engine, "__call__", fill)
    run = tiny_run(tmp_path, teacher_weights=teacher)
    told = (
        "CUDA out of memory: a smaller batch_size, image_size or network, or bfloat16, needs less"
    )
    with pytest.raises(InputError, match=f"^{told}$") as caught:
        train(run, log=quiet)
    assert caught.value and held[0]() is None
    words = {
        name: getattr(run, name)
        for name in ("dataset", "device", "precision", "compile", "outputs")
    }
    given = [
        *(word for name, value in words.items() for word in ("-p", name, value)),
        "-p",
        "teacher_weights",
        teacher,
    ]
    assert main([*given, "-p", "method", "['kd', 'none']"]) == 2
    shown = capsys.readouterr()
    assert (
        re.fullmatch(f"failed: tiny-wrn_10_1-kd-.+: {told}\n", shown.err)
        and "epoch 3/3" in shown.out
    )


def test_a_bug_in_one_run_is_shown_whole_and_does_not_end_the_list(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        Engine,
        "start_epoch",
        lambda self, epoch, of=Engine.start_epoch: of(self, epoch) or 1 / epoch,
    )
    given = {
        "dataset": "tiny",
        "method": "none",
        "device": "cpu",
        "outputs": str(tmp_path),
        "seed": "[0, 1]",
    }
    assert main([word for name, value in given.items() for word in ("-p", name, value)]) == 2
    shown = capsys.readouterr().err
    assert (
        shown.count("Traceback") == shown.count("failed: tiny-wrn_10_1-none") == 2
        and "seed=1" in shown
    )


def test_no_memory_for_a_compiled_step_is_no_failure_of_the_compiler(tmp_path, monkeypatch):
    def full(*batch):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setenv("CXX", "a compiler")
    monkeypatch.setattr(torch, "compile", lambda step, **_: full)
    run = tiny_run(tmp_path, method="none", compile="on")
    with (
        warnings.catch_warnings(action="error"),
        pytest.raises(InputError, match="CUDA out of memory"),
    ):
        train(run, log=quiet)
    assert run.config["machines"][0]["compile"]


def test_a_teacher_is_trained_first_and_once(tmp_path):
    lines = []
    first = train(tiny_run(tmp_path, method="kd", epochs=1), lines.append)
    assert lines[0] == f"its teacher is trained first, 3 epochs: {first.teacher_run.name}"
    assert first.teacher_run.done and first.config["teacher"]["weights"] == first.teacher_run.name
    assert first.config["teacher"]["top1"] == first.teacher_run.result["top1"]
    lines.clear()
    train(tiny_run(tmp_path, method="kd", epochs=1, lr=0.01), lines.append)
    assert (
        lines[0].endswith("1 epochs of 5 steps") and len(list((tmp_path / "runs").iterdir())) == 3
    )
    names_of(first.teacher_run.weights, None)  # trained again elsewhere
    with pytest.raises(InputError, match=r"does not hold the weights that teach tiny-wrn_10_1-kd"):
        build_setup(first)


@pytest.mark.parametrize(
    ("classes", "left_out", "assumed"),
    [
        (["class 0", "class 1", "class 2", "class 3"], [], False),
        (["cat", "dog", "class 2", "class 3"], ["kd"], False),  # as many, of other names
        (["a", "b", "c"], ["kd"], False),
        (None, [], True),
    ],
)
def test_predictions_are_compared_where_the_classes_are_the_same(
    tmp_path, classes, left_out, assumed
):
    file = names_of(tmp_path / "t.safetensors", classes)
    said = []
    made = train(tiny_run(tmp_path, teacher_weights=file, epochs=1), said.append)
    assert any("left out: kd, which compares predictions" in line for line in said) == bool(
        left_out
    )
    assert any("do not name their classes" in line for line in said) == assumed
    told = "their training is not known" if assumed else "tiny, epochs 2 instead of 240"
    assert said[0] == f"its teacher: wrn_16_1, weights t.safetensors ({told})"
    assert (
        made.title.endswith("without kd") == bool(left_out) and made.config["left_out"] == left_out
    )
    assert made.config["same_classes_assumed"] == assumed
    assert ("train_kd" in made.metrics) == (not left_out) and "train_afd" in made.metrics
    for method in (
        "kd",
        "ce + kd:0.5 + afd:20",
    ):  # nothing is left of the one; the other has no name: it is meant
        strict = tiny_run(tmp_path, teacher_weights=file, method=method, epochs=1)
        refused = pytest.raises(
            InputError, match="kd compares predictions, and this teacher knows other classes"
        )
        with refused if left_out else nullcontext():
            assert train(strict, log=quiet).done


def test_a_teacher_of_imagenet_teaches_what_it_can(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    torch.save(
        create_model("resnet18", 1000).state_dict(),
        tmp_path / "checkpoints" / "resnet18-f37072fd.pth",
    )
    made = train(
        tiny_run(tmp_path, teacher="resnet18", teacher_weights="imagenet", epochs=1), quiet
    )
    teacher = made.config["teacher"]
    assert (teacher["network"], teacher["dataset"], teacher["classes"]) == (
        "resnet18",
        "imagenet",
        1000,
    )
    assert made.config["left_out"] == ["kd"] and made.links[0].shape == (1, 8, 3)
    begun = build_setup(
        tiny_run(tmp_path, student="resnet18", student_weights="imagenet", method="none")
    ).distiller.student
    given = load_weights("resnet18", tmp_path / "checkpoints" / "resnet18-f37072fd.pth")
    assert torch.equal(begun.conv1.weight, given.conv1.weight) and begun.fc.out_features == 4


@pytest.mark.parametrize(
    "classes", [None, [f"class {i}" for i in range(4)], ["cat", "dog", "c", "d"], ["a"]]
)
def test_a_student_begins_with_given_weights(tmp_path, classes):
    file = names_of(tmp_path / "s.safetensors", classes)
    run = tiny_run(tmp_path, student="wrn_16_1", student_weights=file, epochs=1, seed=1)
    scratch = replace(run, student_weights_hash="", student_weights="")
    given = load_weights("wrn_16_1", file).state_dict()
    begun, fresh = (build_setup(r.baseline).distiller.student.state_dict() for r in (run, scratch))
    same = classes == [f"class {i}" for i in range(4)]  # then its classifier is of use, too
    for name, value in begun.items():
        expected = fresh if name.startswith("fc.") and not same else given
        assert torch.equal(value, expected[name])
    assert not torch.equal(fresh["conv1.weight"], given["conv1.weight"])
    assert (
        run.overrides == {"epochs": [1, 3], "student_weights_hash": [run.student_weights_hash, ""]}
        and run.student_weights_hash in run.name
    )
    assert (
        run.baseline.student_weights_hash == run.student_weights_hash
        and run.teacher_run == scratch.teacher_run
    )
    made = train(run.baseline, quiet)
    assert Run.open(made.folder) == made and made.config["where"]["student_weights"] == file
    Path(file).write_bytes(b"other")
    with pytest.raises(
        InputError,
        match=r"s\.safetensors' does not hold the initial weights of tiny-wrn_16_1-none-",
    ):
        build_setup(made)


def test_what_cannot_be_trained_leaves_no_folder(tmp_path):
    wrong = names_of(tmp_path / "t.safetensors", None)
    for parameters, sentence in [
        (
            {"teacher": "wrn_16_2", "teacher_weights": wrong},
            r"t\.safetensors does not fit wrn_16_2",
        ),
        (
            {"method": "none", "train_limit": 5000},
            "train_limit is 5000: there are only 70 training images",
        ),
        ({"method": "none", "train_limit": 10}, "batch_size 16: there are only 10 training images"),
        (
            {"method": "none", "student": "alexnet"},
            "images of 8 pixels do not pass through this network",
        ),
    ]:
        with pytest.raises(InputError, match=sentence):
            train(tiny_run(tmp_path, **parameters), log=quiet)
    assert not (tmp_path / "runs").exists()


def test_a_pair_that_a_method_cannot_serve_is_refused_before_anything_trains(tmp_path):
    with pytest.raises(InputError, match="fitnet has no convolution from maps of 1 x 1 to 4 x 4"):
        train(tiny_run(tmp_path, student="resnet18", method="fitnet"), log=quiet)
    assert not list(tmp_path.iterdir())


def test_a_teacher_that_its_preset_cannot_train_can_be_trained_by_itself(tmp_path, monkeypatch):
    large = replace(TINY, for_teacher={"batch_size": 100})
    monkeypatch.setitem(DATASETS, "tiny", DATASETS["tiny"]._replace(preset=large))
    sentence = r"cannot be trained by the preset \(batch_size 100: .*\): train it by itself \(student wrn_16_1"
    with pytest.raises(InputError, match=sentence):
        train(tiny_run(tmp_path, method="kd", epochs=1), quiet)
    alone = train(
        tiny_run(tmp_path, student="wrn_16_1", method="none", batch_size=16, epochs=1), quiet
    )
    assert train(
        tiny_run(tmp_path, method="kd", epochs=1, teacher_weights=str(alone.folder)), quiet
    ).done
