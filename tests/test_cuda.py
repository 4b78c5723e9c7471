"""What only a CUDA GPU can show; skipped where there is none."""

import warnings

import pytest
import torch
from conftest import image_set
from torch.testing import assert_close

from kdnb.batches import Batches, resample
from kdnb.distill import Distiller
from kdnb.experiment import Experiment
from kdnb.models import create_model
from kdnb.recipes import recipe
from kdnb.runs import Run
from kdnb.speed import Speed
from kdnb.train import Training

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


def test_batches_are_those_of_the_cpu():
    sets = [
        Batches(image_set(size=32), 20, 32, train=True, padding=2, flip=True, device=device)
        for device in ("cpu", "cuda")
    ]
    for (a, i), (b, j) in zip(*(batches.epoch(3) for batches in sets), strict=True):
        assert torch.equal(i, j.cpu())
        assert_close(a, b.cpu())


def test_crops_are_those_of_the_cpu():
    images, index = image_set(n=6, size=32).images, torch.tensor([4, 1, 1])
    boxes = torch.tensor([[0, 0, 1, 1], [0.1, 0.2, 0.5, 0.7], [0.4, 0.3, 0.3, 0.3]])
    there = resample(images.cuda(), index.cuda(), boxes.cuda(), 24)
    assert_close(there.cpu(), resample(images, index, boxes, 24), atol=0.1, rtol=0)


def distilled(folder, **changes):
    fixed = {"teacher": "wrn_16_1", "student": "wrn_10_1", "train_limit": 512, "epochs": 2, "device": "cuda"}
    return Experiment(**fixed, outputs=str(folder), precision="float32", **changes).distilled_run()


def test_a_replayed_run_computes_what_an_eager_one_does(tmp_path):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*not replayed")
        replayed = distilled(tmp_path / "replayed", compile="on")
    eager = distilled(tmp_path / "eager", compile="off")
    for column in ("train_total", "train_afd"):
        assert replayed.metrics[column].to_numpy() == pytest.approx(eager.metrics[column].to_numpy(), rel=0.02)
    assert replayed.links == pytest.approx(eager.links, abs=0.02)


@pytest.mark.parametrize("compiled", [False, True])
def test_no_step_waits_for_the_gpu(tmp_path, compiled):
    teacher, student = (create_model(name, 4).cuda() for name in ("wrn_16_1", "wrn_10_1"))
    example = torch.randn(2, 3, 8, 8, device="cuda")
    distiller = Distiller(student, teacher, {"kd": 0.9, "afd": 20.0}, example)
    train = Batches(image_set(n=160), 16, 8, train=True, padding=1, device="cuda")
    config = {"precision": "bfloat16", "compile": compiled}
    training = Training(distiller, train, train, recipe("digits", batch_size=16), Run(tmp_path / "r"), config, print)
    batches = list(train.epoch())
    for images, labels in batches[:6]:  # compiled, warmed up and recorded
        training.one_step(images, labels)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for images, labels in batches[6:]:
            training.one_step(images, labels)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    training.check_finite()
    assert_close(training.sums[-2].item(), 160.0)


def test_a_step_is_taken_apart(tmp_path):
    experiment = Experiment(teacher="wrn_16_1", student="wrn_10_1", train_limit=512, device="cuda", compile="on")
    speed = Speed(experiment, repeats=2)
    whole = speed.whole(compiled=True)
    assert (whole[["ms", "peak MB"]] > 0).all(axis=None)
    assert len(speed.parts()) == 6 and len(speed.floor()) == 2 and len(speed.loaders()) == 2
