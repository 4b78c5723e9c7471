"""Training images without a label: who learns from them, and what is recorded of them."""

from dataclasses import replace

import pytest
import torch
from conftest import image_set
from helpers import TINY, break_off, equal_runs, quiet, teacher, tiny, tiny_run, weights

from kdnb import InputError, load_data, load_images, train
from kdnb.data import DATASETS, Batch, register
from kdnb.results.frame import load_frame
from kdnb.results.tables import REMARK, summary_table
from kdnb.training.setup import build_setup
from kdnb.training.step import Engine

WITHOUT = torch.arange(70) % 7 == 3  # 10 of 70 images


@pytest.fixture(autouse=True)
def half_labelled(monkeypatch):
    """The data sets "half", some of whose images have no label, and "rest", without these."""
    images, test = image_set(70), image_set(40, seed=9)
    splits = replace(images, labels=images.labels.masked_fill(WITHOUT, -1)), test
    for name, train_images in (("half", splits[0]), ("rest", splits[0].labelled())):
        monkeypatch.setitem(DATASETS, name, None)
        register(name, TINY)(lambda root, size, images=train_images, **_: (images, test))


def half_run(outputs, **changes):
    return tiny_run(outputs, **{"dataset": "half"} | changes)


def test_a_run_says_how_many_have_no_label(teacher, tmp_path):
    lines = []
    run = train(half_run(tmp_path, teacher_weights=teacher), log=lines.append)
    assert "10 of 70 images have no label: left out by ce" in lines
    result = run.result
    assert (result["train_images"], result["unlabelled_images"]) == (60, 10)
    assert run.config["unlabelled_images"] == 10
    assert train(run.baseline, log=quiet).result["unlabelled_images"] == 0
    table = summary_table(load_frame(tmp_path / "runs"))
    assert table[REMARK].str.count("and 10 images without a label").tolist() == [0, 1]


def test_a_baseline_is_trained_on_the_labelled_images_only(tmp_path):
    run = train(half_run(tmp_path, method="none", epochs=1), log=quiet)
    rest = train(tiny_run(tmp_path, dataset="rest", method="none", epochs=1), log=quiet)
    assert weights(run) == weights(rest)
    assert run.metrics["train_ce"].equals(rest.metrics["train_ce"])


def test_the_training_accuracy_is_that_of_labelled_images(tmp_path, teacher):
    run = half_run(tmp_path, method="ce + kd", teacher_weights=teacher)
    setup = build_setup(run)
    engine = Engine(setup.distiller, run, torch.device("cpu"), False, setup.train)
    images = setup.train.images.images[:4].float() / 255
    batch = Batch(images, torch.tensor([-1, 0, 1, -1]), torch.arange(4))
    engine.step(batch)
    with torch.no_grad():
        terms, _ = setup.distiller(*batch)
    means = engine.epoch_means()
    assert means["top1"] in (0, 50, 100)
    assert means["ce"] == pytest.approx(engine.sums[1].item() / 2) and terms["ce"] > 0
    assert means["kd"] == pytest.approx(engine.sums[2].item() / 4)
    engine.start_epoch(1)
    engine.step(batch)
    assert engine.epoch_means()["ce"] == pytest.approx(engine.sums[1].item() / 2)


def test_a_run_with_unlabelled_images_resumes_to_the_same_bits(teacher, tmp_path):
    runs = [half_run(tmp_path / name, teacher_weights=teacher) for name in ("whole", "broken")]
    break_off(runs[1], 7)
    assert equal_runs(*(train(run, log=quiet) for run in runs))


def test_limits_and_validation_count_labelled_images(tmp_path):
    limited, _ = load_images(half_run(tmp_path, method="kd", train_limit=8))
    assert (len(limited), limited.unlabelled) == (18, 10)
    assert limited.labels[:8].tolist() == [0, 1, 2, 3] * 2
    remaining, held_out = load_images(half_run(tmp_path, method="kd", validation=0.5))
    assert remaining.unlabelled == 10 and not held_out.unlabelled
    with pytest.raises(InputError, match="train_limit is 61: there are only 60 training images"):
        load_images(half_run(tmp_path, method="kd", train_limit=61))


def test_without_any_label_only_the_other_losses_teach(teacher, tmp_path, monkeypatch):
    images, test = load_data("half")
    unlabelled = replace(images, labels=torch.full_like(images.labels, -1))
    monkeypatch.setitem(
        DATASETS, "half", DATASETS["half"]._replace(load=lambda *_, **__: (unlabelled, test))
    )
    run = train(half_run(tmp_path, method="kd", epochs=1, teacher_weights=teacher), log=quiet)
    assert run.metrics["train_kd"].iloc[0] > 0 and run.metrics["train_top1"].isna().all()
    assert run.result["train_images"] == 0


def test_test_images_need_labels(monkeypatch):
    images, _ = load_data("half")
    monkeypatch.setitem(
        DATASETS, "half", DATASETS["half"]._replace(load=lambda *_, **__: (images, images))
    )
    with pytest.raises(InputError, match="10 of the 70 test images of half have no label"):
        load_data("half")
