"""What a run records: the last epoch, its seconds, its own random numbers; what it refuses."""

import sys
import time
from dataclasses import replace

import pytest
import torch
from helpers import STEPS, at_step, break_off, press_stop, quiet, spoil, tiny, tiny_run

from kdnb import DATASETS, LOSSES, InputError, Loss, train
from kdnb.models import read_metadata
from kdnb.runs.checkpoint import load_checkpoint
from kdnb.training.step import Engine


def test_a_run_reports_its_last_epoch_and_not_its_best(tmp_path, monkeypatch):
    """In result.json and in the metadata of its weights; the best stands apart."""
    accuracies = iter([(60.0, 90.0), (80.0, 100.0), (50.0, 70.0)])

    def evaluate(*_, **options):
        top1, top5 = next(accuracies)
        return {"top1": top1, "top5": top5, "loss": 1.0}

    monkeypatch.setattr(sys.modules["kdnb.training.loop"], "evaluate", evaluate)
    run = train(tiny_run(tmp_path, method="none"), quiet)
    assert (run.result["top1"], run.result["top5"]) == (50, 70)
    assert run.result["best"] == {"epoch": 2, "top1": 80, "top5": 100}
    assert read_metadata(run.weights)["top1"] == 50


def test_the_seconds_before_a_stop_count(tmp_path):
    """They are in the checkpoint of a broken-off epoch, and in the epoch's row at the end."""
    run = tiny_run(tmp_path, method="none", epochs=2)

    def stop_late():
        time.sleep(1)
        press_stop()

    break_off(run, STEPS + 2, stop_late)
    assert load_checkpoint(run.folder)["seconds"] > 1
    train(run, quiet)
    assert run.metrics["seconds"][1] > 1
    assert run.result["total_seconds"] == pytest.approx(run.metrics["seconds"].sum())


def test_random_numbers_drawn_in_training_follow_the_seed(tmp_path):
    """Those that a loss draws by torch.rand, or a network's dropout."""

    class Drawn(Loss, name="drawn"):
        needs_teacher = False

        def __init__(self, *examples):
            super().__init__()
            self.register_running_mean("mean", ())

        def forward(self, student, teacher, batch):
            self.track("mean", torch.rand(len(batch.labels)))
            return 0 * student.logits.sum()

    def drawn(outputs, seed):
        run = tiny_run(tmp_path / outputs, method="ce + drawn", seed=seed, epochs=1)
        return train(run, quiet).history["drawn.mean"].tolist()

    try:
        first = drawn("first", 1)
        assert first == drawn("again", 1) != drawn("first", 2)
    finally:
        del LOSSES["drawn"]


def test_a_loss_that_is_not_finite_in_the_smaller_last_batch_is_its_step(tmp_path, monkeypatch):
    poison = at_step(STEPS, spoil)
    monkeypatch.setattr(Engine, "__call__", poison)
    with pytest.raises(InputError, match=f"no longer finite in epoch 1, step {STEPS}; there is no"):
        train(tiny_run(tmp_path, method="none"), quiet)


def test_a_run_does_not_go_on_with_other_classes(tmp_path, monkeypatch):
    """As many images of as many classes, whose names have changed."""
    run = tiny_run(tmp_path, method="none")
    break_off(run, 2, press_stop)
    dataset = DATASETS["tiny"]
    names = ("cat", "dog", "fox", "owl")

    def load(*args, **options):
        return tuple(replace(split, classes=names) for split in dataset.load(*args, **options))

    monkeypatch.setitem(DATASETS, "tiny", dataset._replace(load=load))
    with pytest.raises(InputError, match=r"holds another run: classes was \['class 0', .* 'owl'\]"):
        train(run, quiet)
