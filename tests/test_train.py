import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict

import pytest
import torch
from conftest import image_set

from kdnb.batches import Batches
from kdnb.distill import Distiller
from kdnb.errors import InputError
from kdnb.models import create_model
from kdnb.recipes import RECIPES, Recipe, recipe
from kdnb.runs import Run
from kdnb.train import Interrupted, evaluate, fit, pick_compile, pick_device, pick_precision

CPU = torch.device("cpu")


def small_recipe(**changes) -> Recipe:
    return recipe("digits", **({"epochs": 3, "batch_size": 16, "lr": 0.02} | changes))


def small_fit(folder, recipe=None, batches=Batches, precision="float32", compiled=False, teacher="wrn_16_1"):
    recipe = recipe or small_recipe()
    torch.manual_seed(1)
    teacher, student = create_model(teacher, 4), create_model("wrn_10_1", 4)
    train = batches(image_set(n=70), recipe.batch_size, 8, train=True, seed=5, padding=1)
    test = Batches(image_set(n=40, seed=9), 20, 8)
    distiller = Distiller(student, teacher, {"kd": 0.9, "afd": 20.0}, next(test.epoch())[0][:2])
    config = {"recipe": asdict(recipe), "precision": precision, "compile": compiled}
    return fit(distiller, train, test, recipe, Run(folder), config, say=lambda line: None)


def weights(run):
    return run.weights.read_bytes(), run.loss_weights.read_bytes()


def rows(run):
    return run.metrics.drop(columns="seconds")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    return small_fit(tmp_path_factory.mktemp("runs") / "whole")


def test_a_run_learns_and_says_what_it_was(uninterrupted):
    result = uninterrupted.result
    assert result["top1"] > 40  # chance is 25
    assert result["top1"] == uninterrupted.metrics["test_top1"].iloc[-1]
    assert result["best"]["top1"] == uninterrupted.metrics["test_top1"].max()
    assert uninterrupted.metrics["epoch"].tolist() == [1, 2, 3]
    assert result["train_images"] == 70 and result["test_images"] == 40
    assert {"device", "versions", "commit", "parameters", "epoch_seconds", "top5"} <= result.keys()
    assert uninterrupted.links.shape == (3, 6, 3)  # epochs, teacher blocks, student blocks
    assert uninterrupted.links.sum(2) == pytest.approx(1, abs=1e-5)


def test_the_same_seed_gives_the_same_bits(uninterrupted, tmp_path):
    again = small_fit(tmp_path / "again")
    assert weights(again) == weights(uninterrupted)
    assert rows(again).equals(rows(uninterrupted))


class Killed(BaseException):
    pass


class Stopping(Batches):
    """Batches that end like a killed process, or like a person's stop button, before one step of the run."""

    at, how = None, None

    def make(self, plan):
        if Stopping.at is not None:
            Stopping.at -= 1
            if Stopping.at == 0:
                Stopping.at = None
                Stopping.how()
        return super().make(plan)


def kill():
    raise Killed


def press_stop():
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.01)  # the handler runs between two instructions of this thread


@pytest.mark.parametrize("at", [1, 3, 5, 6, 11, 14])
@pytest.mark.parametrize("how", [kill, press_stop])
def test_a_broken_off_run_goes_on_to_the_same_bits(uninterrupted, tmp_path, at, how):
    Stopping.at, Stopping.how = at, how
    with pytest.raises((Killed, Interrupted)):
        small_fit(tmp_path / "r", batches=Stopping)
    assert not Run(tmp_path / "r").finished
    run = small_fit(tmp_path / "r")
    assert weights(run) == weights(uninterrupted)
    assert rows(run).equals(rows(uninterrupted))
    assert (run.links == uninterrupted.links).all()


def test_the_stop_button_keeps_the_step_it_stopped_at(tmp_path):
    Stopping.at, Stopping.how = 7, press_stop
    with pytest.raises(Interrupted, match="stopped after step 2 of epoch 2; run it again to go on from there"):
        small_fit(tmp_path / "r", batches=Stopping)
    assert Run(tmp_path / "r").load()["step"] == 2


def test_a_torn_checkpoint_costs_an_epoch_and_no_bits(uninterrupted, tmp_path):
    Stopping.at, Stopping.how = 12, kill
    with pytest.raises(Killed):
        small_fit(tmp_path / "r", batches=Stopping)
    path = tmp_path / "r" / "checkpoint"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.warns(UserWarning, match="damaged"):
        run = small_fit(tmp_path / "r")
    assert weights(run) == weights(uninterrupted)
    assert rows(run).equals(rows(uninterrupted))


def test_kill_9_at_any_moment(uninterrupted, tmp_path):
    """A process that trains the same run is killed at three moments, then left to finish."""
    code = "import sys; sys.path.insert(0, sys.argv[1]); import test_train; test_train.small_fit(sys.argv[2])"
    command = [sys.executable, "-c", code, os.path.dirname(__file__), str(tmp_path / "r")]
    for wait in (0.0, 0.15, 0.4):
        process = subprocess.Popen(command)
        while not (tmp_path / "r" / "config.json").exists() and process.poll() is None:
            time.sleep(0.01)
        time.sleep(wait)
        process.kill()
        process.wait()
    subprocess.run(command, check=True)
    run = Run(tmp_path / "r")
    assert rows(run).equals(rows(uninterrupted))
    assert weights(run) == weights(uninterrupted)


def test_a_finished_run_is_only_read(uninterrupted):
    before = {p: p.stat().st_mtime_ns for p in uninterrupted.folder.iterdir() if p.name != ".lock"}
    small_fit(uninterrupted.folder)
    assert before == {p: p.stat().st_mtime_ns for p in uninterrupted.folder.iterdir() if p.name != ".lock"}
    with pytest.raises(InputError, match=r"recipe\.lr was 0\.02 and is now 0\.5"):
        small_fit(uninterrupted.folder, small_recipe(lr=0.5))


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    with pytest.raises(InputError, match=r"no longer finite in epoch 1, step \d+; kept is no checkpoint.*lr"):
        small_fit(tmp_path / "r", small_recipe(lr=1e30))
    assert not (tmp_path / "r" / "result.json").exists()


def test_the_checkpoint_before_a_bad_epoch_is_kept(tmp_path):
    class Poisoned(Batches):
        def epoch(self, epoch=0, start=0):
            for step, (images, labels) in enumerate(super().epoch(epoch, start)):
                yield images * (float("nan") if (epoch, step) == (1, 2) else 1), labels

    with pytest.raises(InputError, match="epoch 2, step 3; kept is the checkpoint after epoch 1"):
        small_fit(tmp_path / "r", batches=Poisoned)
    assert Run(tmp_path / "r").load()["epoch"] == 1


def test_evaluate_counts_what_a_plain_loop_counts():
    model, images = create_model("wrn_10_1", 8).train(), image_set(n=50, classes=8)
    found = evaluate(model, Batches(images, 16, 8))
    logits = model.eval()((images.images / 255 - 0.5) / 0.25).logits
    order = logits.argsort(1, descending=True)
    assert found["top1"] == pytest.approx(100 * float((order[:, 0] == images.labels).float().mean()))
    assert found["top5"] == pytest.approx(100 * float((order[:, :5] == images.labels[:, None]).any(1).float().mean()))
    expected = torch.nn.functional.cross_entropy(logits, images.labels)
    assert found["loss"] == pytest.approx(float(expected.detach()), rel=1e-4)


def test_evaluate_with_fewer_than_five_classes():
    assert evaluate(create_model("wrn_10_1", 4), Batches(image_set(), 16, 8))["top5"] == 100


def test_bfloat16_reaches_what_float32_does(uninterrupted, tmp_path):
    run = small_fit(tmp_path / "r", precision="bfloat16")
    assert run.metrics["train_total"].to_numpy() == pytest.approx(
        uninterrupted.metrics["train_total"].to_numpy(), rel=0.1
    )


@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="compiling needs a C++ compiler")
def test_a_compiled_step_computes_what_an_eager_one_does(tmp_path):
    eager, compiled = (
        small_fit(tmp_path / name, small_recipe(epochs=2), compiled=name == "compiled", teacher="wrn_10_1")
        for name in ("eager", "compiled")
    )
    assert compiled.metrics["train_total"].to_numpy() == pytest.approx(
        eager.metrics["train_total"].to_numpy(), rel=1e-3
    )
    assert compiled.links == pytest.approx(eager.links, abs=0.01)


def test_the_official_schedule():
    cifar = RECIPES["cifar100"]
    lrs = [cifar.lr_at(epoch) for epoch in range(240)]
    assert [lrs.count(pytest.approx(lr)) for lr in (0.05, 0.005, 0.0005, 0.00005)] == [150, 30, 30, 30]


def test_devices_and_precisions():
    assert pick_device("cpu") == CPU
    for name in ("gpu", "cpu:1", "cuda:99"):
        with pytest.raises(InputError, match="device"):
            pick_device(name)
    assert pick_precision("float32", CPU) == "float32"
    assert pick_precision("auto", CPU) in ("float32", "bfloat16")
    with pytest.raises(InputError, match="unknown precision 'int8': choose one of auto, bfloat16, float32"):
        pick_precision("int8", CPU)
    assert pick_compile("on", CPU, 1) and not pick_compile("off", CPU, 10**6) and not pick_compile("auto", CPU, 10)
    with pytest.raises(InputError, match="compile"):
        pick_compile("yes", CPU, 1)
