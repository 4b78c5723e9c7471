"""Training that is interrupted, killed or out of time resumes where it was, to the same bits."""

import itertools
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import pytest
from helpers import (
    STEPS,
    at_step,
    break_off,
    edit,
    equal_runs,
    kill,
    press_stop,
    quiet,
    spoil,
    teacher,
    tiny,
    tiny_run,
    weights,
)

from kdnb import METHODS, InputError, train
from kdnb.data.loader import Loader
from kdnb.progress import StopButton
from kdnb.runs.checkpoint import CHECKPOINT, load_checkpoint, save_checkpoint
from kdnb.runs.stored_names import PREVIOUS
from kdnb.training import setup
from kdnb.training.evaluation import evaluate
from kdnb.training.loop import Interrupted
from kdnb.training.step import Engine

FIRST_STEP = 1
MIDDLE = 8  # inside the second of three epochs
BETWEEN_EPOCHS = 2 * STEPS + 1

# A process that trains the run of the fixture `run`: the folder of tests, outputs, teacher's file.
TRAIN = """
import sys
sys.path.insert(0, sys.argv[1])
import helpers
helpers.register_tiny()
helpers.train(helpers.tiny_run(sys.argv[2], teacher_weights=sys.argv[3]))
"""


@pytest.fixture(scope="module")
def undisturbed(teacher, tmp_path_factory):
    outputs = tmp_path_factory.mktemp("undisturbed")
    return train(tiny_run(outputs, teacher_weights=teacher), log=quiet)


@pytest.fixture
def run(teacher, tmp_path):
    """The same run, not yet started."""
    return tiny_run(tmp_path, teacher_weights=teacher)


def test_a_run_on_streamed_images_resumes_and_leaves_no_thread(run, undisturbed, monkeypatch):
    """On a CPU only for this test: there a memory map needs no thread."""
    monkeypatch.setattr(setup, "holds_data", lambda *_: False)
    break_off(run, MIDDLE, kill)
    resume(run)
    assert equal_runs(run, undisturbed)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("stream")]


def resume(run):
    """Train a run to its end; returns the lines that it logs."""
    lines = []
    assert train(run, log=lines.append).done
    return lines


@pytest.mark.parametrize("how", [kill, press_stop])
@pytest.mark.parametrize("step", [FIRST_STEP, MIDDLE, BETWEEN_EPOCHS])
def test_an_interrupted_run_resumes_to_the_same_bits(undisturbed, run, step, how):
    break_off(run, step, how)
    assert equal_runs(train(run, log=quiet), undisturbed)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_resumes_to_the_same_bits(teacher, tmp_path, method):
    """Memories, running means and random numbers of its losses continue where they were."""
    fields = {"method": method, "teacher_weights": teacher, "epochs": 2}
    undisturbed = train(tiny_run(tmp_path / "undisturbed", **fields), log=quiet)
    interrupted = tiny_run(tmp_path / "interrupted", **fields)
    break_off(interrupted, 7, press_stop)
    assert weights(train(interrupted, log=quiet)) == weights(undisturbed)


RECIPES = [
    {"optimizer": "nesterov", "momentum": 0.8, "weight_decay": 0.0, "schedule": "one cycle"},
    {"optimizer": "adamw", "lr": 0.001, "weight_decay": 0.05},
    {"schedule": "cosine", "warmup_epochs": 1, "clip": 0.5, "label_smoothing": 0.1},
    {"ema": 0.9, "augment": "none"},
    {"augment": "trivialaugment", "mix": "mixup"},
    {"augment": "randaugment", "mix": "cutmix"},
    {"method": "ce + crd:0.8(K=16)", "views": 2},
]


@pytest.mark.parametrize("fields", RECIPES, ids=lambda fields: "-".join(fields))
def test_every_recipe_resumes_to_the_same_bits(teacher, tmp_path, fields):
    """The optimiser's moments, the average and the choices of an epoch are as they were."""
    fields = {"method": "kd", "teacher_weights": teacher, "epochs": 2} | fields
    undisturbed = train(tiny_run(tmp_path / "undisturbed", **fields), log=quiet)
    interrupted = tiny_run(tmp_path / "interrupted", **fields)
    break_off(interrupted, 7, press_stop)
    train(interrupted, log=quiet)
    assert weights(interrupted) == weights(undisturbed)
    rows, due = (run.metrics.drop(columns="seconds") for run in (interrupted, undisturbed))
    assert rows.equals(due)


@pytest.mark.slow
def test_kill_9_at_any_moment(undisturbed, run, teacher, tmp_path):
    """A process that trains the same run is killed at two moments, then left to finish."""
    tests = str(Path(__file__).parents[1])
    command = [sys.executable, "-c", TRAIN, tests, str(tmp_path), teacher]
    for seconds in (0.0, 0.3):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        while not (run.folder / "config.json").exists() and process.poll() is None:
            time.sleep(0.01)
        time.sleep(seconds)
        process.kill()
        process.wait()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    assert equal_runs(run, undisturbed)


def test_the_stop_button_keeps_the_step_at_which_it_was_pressed(run):
    message = break_off(run, 7, press_stop)
    assert message == "stopped after step 2 of epoch 2; run it again to go on from there"
    assert load_checkpoint(run.folder)["step"] == 2
    lines = resume(run)
    assert lines[1] == f"{run.name}: resuming after epoch 1, step 2"
    assert lines[-1].startswith("epoch 3/3  ce ")


def test_a_killed_run_resumes_from_a_checkpoint_inside_an_epoch(run, monkeypatch):
    monkeypatch.setattr(sys.modules["kdnb.training.loop"], "CHECKPOINT_SECONDS", -1)
    break_off(run, 4)
    assert load_checkpoint(run.folder)["step"] == 3
    assert f"{run.name}: resuming after epoch 0, step 3" in resume(run)


def test_where_epochs_are_short_not_each_has_a_checkpoint(run, undisturbed, monkeypatch):
    """As on a GPU. What is in the tables then follows the checkpoint again."""
    loop = sys.modules["kdnb.training.loop"]
    monkeypatch.setattr(loop, "EPOCH_CHECKPOINT_SECONDS", {"cpu": 1000})
    break_off(run, 2 * STEPS + 2)
    assert run.metrics["epoch"].tolist() == [1, 2]
    assert load_checkpoint(run.folder) is None
    with pytest.raises(Interrupted):
        train(run, quiet, deadline=0)  # after a step of the first epoch
    assert not [*run.folder.glob("metrics.csv"), *run.folder.glob("history.npz")]
    monkeypatch.setattr(loop, "EPOCH_CHECKPOINT_SECONDS", {"cpu": 0})
    break_off(run, 2 * STEPS)
    assert load_checkpoint(run.folder)["epoch"] == 2
    monkeypatch.setattr(loop, "EPOCH_CHECKPOINT_SECONDS", {"cpu": 1000})
    assert equal_runs(train(run, quiet), undisturbed)


def test_a_torn_checkpoint_costs_an_epoch(run):
    break_off(run, 2 * STEPS + 2)
    path = run.folder / CHECKPOINT
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.warns(UserWarning, match="checkpoint is damaged"):
        lines = resume(run)
    assert f"{run.name}: resuming after epoch 1, step 0" in lines


def test_a_second_press_stops_at_once():
    with StopButton() as stop, pytest.raises(KeyboardInterrupt):
        press_stop()
        assert stop.pressed
        press_stop()


def test_stopped_between_two_test_batches_it_goes_on_with_the_test(run, undisturbed, monkeypatch):
    epoch = Loader.epoch

    def stop_at_the_second_test(self, *arguments):
        if not self.train and next(tests) == 2:
            press_stop()
        yield from epoch(self, *arguments)

    tests = itertools.count(1)
    monkeypatch.setattr(Loader, "epoch", stop_at_the_second_test)
    with pytest.raises(Interrupted, match="stopped while epoch 2 was tested"):
        train(run, log=quiet)
    monkeypatch.undo()
    assert f"{run.name}: resuming after epoch 1, step {STEPS}" in resume(run)
    assert equal_runs(run, undisturbed)


def test_stopped_after_the_last_test_it_is_finished_and_nothing_follows(tmp_path, monkeypatch):
    run = tiny_run(tmp_path, method="kd", teacher_epochs=1, epochs=1)

    def evaluate_then_stop(*arguments, **options):
        measured = evaluate(*arguments, **options)
        press_stop()
        return measured

    monkeypatch.setattr(sys.modules["kdnb.training.loop"], "evaluate", evaluate_then_stop)
    sentence = f"{run.teacher_run.name} is finished, and nothing that follows was begun"
    with pytest.raises(Interrupted, match=sentence):
        train(run, quiet)
    assert run.teacher_run.done
    assert not run.folder.exists()


def test_after_its_deadline_each_call_still_takes_a_step(tmp_path):
    run = tiny_run(tmp_path, method="kd", teacher_epochs=1, epochs=1)
    for step in range(1, STEPS + 1):
        with pytest.raises(Interrupted, match=f"stopped after step {step} of epoch 1"):
            train(run, quiet, deadline=0)
    assert load_checkpoint(run.teacher_run.folder)["step"] == STEPS
    assert not run.folder.exists()
    # The teacher's epoch is complete: the next step is the student's.
    with pytest.raises(Interrupted, match="stopped after step 1 of epoch 1"):
        train(run, quiet, deadline=0)
    assert run.teacher_run.done
    assert load_checkpoint(run.folder)["step"] == 1


@pytest.mark.parametrize("step", [3, STEPS])  # the last batch is smaller
def test_a_loss_that_is_not_finite_stops_the_run_before_a_checkpoint(run, monkeypatch, step):
    poison = at_step(STEPS + step, spoil)
    monkeypatch.setattr(Engine, "__call__", poison)
    sentence = f"epoch 2, step {step}; the checkpoint after epoch 1, step 0 is available"
    with pytest.raises(InputError, match=sentence):
        train(run, log=quiet)
    assert load_checkpoint(run.folder)["epoch"] == 1
    assert not run.done


def test_a_run_of_crd_from_before_it_had_a_random_state_goes_on(teacher, tmp_path):
    """With other negatives than those that it would have had: no run is lost."""
    run = tiny_run(tmp_path, method="ce + crd:0.8", teacher_weights=teacher)
    break_off(run, MIDDLE, press_stop)
    hashes = run.config["code"] | {"loss crd": "b3cf97fe9178"}
    edit(run.folder / "config.json", code=hashes)
    state = load_checkpoint(run.folder)
    del state["trained"]["losses.crd.random.position"]
    save_checkpoint(run.folder, state)
    with warnings.catch_warnings(action="error"):  # that the checkpoint is damaged
        lines = resume(run)
    assert f"{run.name}: resuming after epoch 1, step 3" in lines


@pytest.mark.parametrize("change", [{"epoch": 99}, {"rng": None}, {"rows": []}, {"trained": {}}])
def test_a_checkpoint_of_another_version_falls_back(undisturbed, run, change):
    """Its checksum is right and its content is not."""
    break_off(run, MIDDLE, press_stop)
    state = load_checkpoint(run.folder)
    save_checkpoint(run.folder, state | change)
    with pytest.warns(UserWarning, match="checkpoint is damaged .*going on from the one before it"):
        train(run, log=quiet)
    assert equal_runs(run, undisturbed)


def test_a_run_without_a_usable_checkpoint_begins_anew(undisturbed, run):
    """A part of it may have been loaded before this was noticed."""
    break_off(run, 3, press_stop)
    save_checkpoint(run.folder, load_checkpoint(run.folder) | {"rng": None})
    (run.folder / PREVIOUS).unlink()
    with pytest.warns(UserWarning, match="checkpoint is damaged"):
        train(run, log=quiet)
    assert equal_runs(run, undisturbed)
