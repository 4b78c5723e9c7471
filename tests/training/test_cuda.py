"""What only a CUDA GPU can show; skipped where there is none."""

from itertools import product

import pytest
import torch
from conftest import image_set
from helpers import break_off, quiet, teacher, tiny, tiny_run, weights
from torch.testing import assert_close

from kdnb import METHODS, Distiller, Run, create_model, train, train_together
from kdnb.data.loader import Loader
from kdnb.training.setup import build_setup
from kdnb.training.step import Engine

# Compiling each method would take many minutes.
STEPS = [*product(METHODS, ["eager", "replayed"]), ("afd", "compiled")]

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


def test_batches_are_those_of_the_cpu():
    loaders = [
        Loader(image_set(size=32), 20, 32, train=True, padding=2, flip=True, device=device)
        for device in ("cpu", "cuda")
    ]
    for on_cpu, on_gpu in zip(*(loader.epoch(3) for loader in loaders), strict=True):
        assert_close(on_cpu.images, on_gpu.images.cpu())
        assert torch.equal(on_cpu.labels, on_gpu.labels.cpu())
        assert torch.equal(on_cpu.index, on_gpu.index.cpu())


def photograph_loader(device, on_device=True, train=True):
    images = image_set(n=45, size=40, aspect=torch.linspace(0.4, 2.5, 45))
    how = {"train": train, "flip": True, "device": device, "on_device": on_device}
    return Loader(images, 10, 32, **how)


@pytest.mark.parametrize("train", [False, True])
def test_crops_are_those_of_the_cpu(train):
    loaders = (photograph_loader(device, train=train) for device in ("cpu", "cuda"))
    for on_cpu, on_gpu in zip(*(loader.epoch(3) for loader in loaders), strict=True):
        # A CPU rounds to bytes, and images have a standard deviation of 1/4.
        assert_close(on_cpu.images, on_gpu.images.cpu(), atol=4.1 / 255, rtol=0)
        assert torch.equal(on_cpu.index, on_gpu.index.cpu())


@pytest.mark.parametrize("kind", ["photographs", "padded"])
def test_streamed_batches_have_the_bits_of_those_on_the_gpu(kind):
    if kind == "photographs":
        held, streamed = (photograph_loader("cuda", on_device) for on_device in (True, False))
    else:
        how = {"train": True, "padding": 2, "flip": True, "device": "cuda"}
        held, streamed = (
            Loader(image_set(n=200, size=32), 20, 32, on_device=on_device, **how)
            for on_device in (True, False)
        )
    assert streamed.pixels.stored is streamed.images.images
    for due, batch in zip(held.epoch(1, 1), streamed.epoch(1, 1), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(due, batch, strict=True))


@pytest.mark.filterwarnings("error:.*not (replayed|compiled)")
def test_a_run_on_streamed_images_has_the_same_bits(tmp_path):
    """Its step is captured as a graph while the thread allocates memory."""
    runs = [
        tiny_run(tmp_path / on, device="cuda", compile="auto", method="none", data_on_device=on)
        for on in ("yes", "no")
    ]
    held, streamed = (train(run, log=quiet) for run in runs)
    assert weights(held) == weights(streamed)


@pytest.mark.filterwarnings("error:.*not replayed")
def test_replayed_steps_have_the_bits_of_eager_ones(teacher, tmp_path, monkeypatch):
    """Ten steps of kd in float32, each way by the same kernels."""

    def weights_after_ten_steps(compile):
        run = tiny_run(
            tmp_path, device="cuda", compile=compile, method="kd", teacher_weights=teacher
        )
        torch.manual_seed(0)
        setup = build_setup(run)
        engine = Engine(setup.distiller, run, torch.device("cuda"), False, setup.train)
        torch.backends.cudnn.benchmark = False  # which the engine sets; it may choose other kernels
        engine.start_epoch(0)
        full = [each for epoch in range(3) for each in setup.train.inputs(epoch)]
        for inputs in [each for each in full if engine.is_full(each)][:10]:
            engine(inputs)
        assert (compile == "off") != bool(getattr(engine.full_step, "replay", None))
        return [parameter.detach().clone() for parameter in engine.trainable.parameters()]

    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    replayed, eager = map(weights_after_ten_steps, ("auto", "off"))
    assert all(map(torch.equal, replayed, eager))


@pytest.mark.filterwarnings("error:.*not (replayed|compiled)", "error:.*share nothing")
@pytest.mark.parametrize("method", ["afd", "kd", "ce + crd:0.8(K=16)"])
def test_runs_in_branches_of_one_graph_compute_what_each_does_alone(teacher, tmp_path, method):
    fields = {"device": "cuda", "compile": "auto", "method": method, "teacher_weights": teacher}
    # At the preset's lr, rounding alone moves the losses of later epochs by a tenth.
    fields |= {"lr": 0.002}
    runs = [
        [tiny_run(tmp_path / how, **fields, seed=seed) for seed in range(3)]
        for how in ("together", "alone")
    ]
    together = train_together(runs[0], quiet)
    for run, alone in zip(together, runs[1], strict=True):
        rows, expected = (
            each.metrics.drop(columns="seconds").to_numpy() for each in (run, train(alone, quiet))
        )
        assert rows[:, 2:] == pytest.approx(expected[:, 2:], rel=0.02)


def test_a_run_of_a_gpu_resumes_and_is_read_on_a_cpu(tmp_path):
    run = tiny_run(tmp_path, device="cuda", compile="auto", method="none")
    break_off(run, 8)
    made = train(run, log=quiet)
    assert made == Run.open(made.folder, device="cpu")
    assert made.config["machines"][0]["device_type"] == "cuda"
    assert made.metrics["epoch"].tolist() == [1, 2, 3]


@pytest.mark.filterwarnings("error:.*not (replayed|compiled)")
@pytest.mark.parametrize(("method", "how"), STEPS)
def test_no_step_waits_for_the_gpu(tiny, tmp_path, method, how):
    teacher, student = (create_model(name, 4).cuda() for name in ("wrn_16_1", "wrn_10_1"))
    images, example = image_set(n=160), torch.randn(2, 3, 8, 8, device="cuda")
    distiller = Distiller(student, teacher, method, example, labels=images.labels)
    loader = Loader(images, 16, 8, train=True, padding=1, flip=True, device="cuda")
    run = tiny_run(
        tmp_path, device="cuda", precision="bfloat16", compile="off" if how == "eager" else "auto"
    )
    engine = Engine(distiller, run, torch.device("cuda"), how == "compiled", loader)
    engine.start_epoch(0)
    batches = list(loader.inputs())
    for inputs in batches[:6]:  # compiled, warmed up and captured
        engine(inputs)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for inputs in batches[6:]:
            engine.set_lr(0.005)
            engine(inputs)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert not engine.first_nonfinite_step()
    assert engine.sums[-2].item() == 160
    assert how == "eager" or engine.full_step.replay
