"""What a step that is captured as a CUDA graph relies on, without a GPU: with stand-ins for the
capture."""

import warnings
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from helpers import break_off, equal_runs, quiet, teacher, tiny
from helpers import tiny_run as eager_run
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kdnb import LOSSES, train
from kdnb.training import cuda_graph
from kdnb.training import step as training_step
from kdnb.training.cuda_graph import WARM_UPS, CUDAGraphStep, on_side_stream

# Too short to be compiled. With "off", as in `eager_run`, steps are not captured either.
graph_run = partial(eager_run, compile="auto")


@pytest.fixture
def captures(monkeypatch):
    """Full steps are captured and replayed on the CPU; an entry for each capture."""
    calls = []
    monkeypatch.setattr(cuda_graph, "capture", lambda step, pool: calls.append(1) or step)
    monkeypatch.setattr(training_step, "GRAPH_DEVICES", ("cpu",))
    return calls


def test_replays_read_the_inputs_they_are_given_in_the_same_memory(captures):
    """It is a memory of their own: the tensors of the caller stay as they are."""
    inputs = []
    step = CUDAGraphStep(lambda given: inputs.append((given["x"], *map(float, given.values()))))
    given = [{"x": torch.tensor(float(i)), "y": torch.tensor(i)} for i in range(6)]
    for each in given:
        step(each)
    assert [each["y"] for each in given] == [*range(6)]
    assert [values for _, *values in inputs] == [[i, i] for i in range(6)]
    assert len({id(x) for x, *_ in inputs[WARM_UPS:]}) == 1
    assert captures == [1]


def test_a_replayed_run_has_the_bits_of_an_eager_one(captures, teacher, tmp_path):
    replayed = train(graph_run(tmp_path / "replayed", teacher_weights=teacher), log=quiet)
    assert captures == [1]
    eager = train(eager_run(tmp_path / "eager", teacher_weights=teacher), log=quiet)
    assert captures == [1]
    assert equal_runs(replayed, eager)


def test_the_last_smaller_batch_has_a_captured_step_of_its_own(
    captures, teacher, tmp_path, monkeypatch
):
    fields = {"teacher_weights": teacher, "epochs": WARM_UPS + 2}
    tapes = []
    monkeypatch.setattr(
        cuda_graph, "capture", lambda step, pool: tapes.append(pool) or capture_on_tape(step)
    )
    taped = train(graph_run(tmp_path / "taped", **fields), log=quiet)
    assert len(tapes) == 2  # it comes once an epoch: the second is captured in the fourth
    eager = train(eager_run(tmp_path / "eager", **fields), log=quiet)
    rows, expected = (run.metrics.drop(columns="seconds").to_numpy() for run in (taped, eager))
    assert rows == pytest.approx(expected, rel=1e-5)


def test_a_step_that_cannot_be_captured_runs_eagerly(captures, tmp_path, monkeypatch):
    def refuse(step, pool):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(cuda_graph, "capture", refuse)
    with pytest.warns(UserWarning, match="not replayed as a CUDA graph.*not permitted"):
        run = train(graph_run(tmp_path / "refused", method="none"), log=quiet)
    eager = train(eager_run(tmp_path / "eager", method="none"), log=quiet)
    assert run.weights.read_bytes() == eager.weights.read_bytes()


def test_too_little_memory_for_a_capture_is_no_reason_to_go_on(captures, monkeypatch):
    def too_large(step, pool):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(cuda_graph, "capture", too_large)
    step = CUDAGraphStep(lambda inputs: None)
    with pytest.raises(torch.OutOfMemoryError):
        for _ in range(WARM_UPS + 1):
            step({})


class Tape(TorchDispatchMode):
    """Records the operations of a step, and replays them in the same memory without Python, as a
    CUDA graph does.

    Reading a value, on which later operations might depend, is refused, as there. `before` holds
    what was overwritten.
    """

    def __init__(self):
        super().__init__()
        self.calls = []
        self.before = {}

    def __torch_dispatch__(self, call, types, args=(), kwargs=None):
        reads = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
        if call in reads:
            raise RuntimeError("operation not permitted when stream is capturing")
        for value in tree_leaves((args, kwargs)):  # batch norm does not say what it writes to
            if isinstance(value, torch.Tensor):
                self.before.setdefault(value.untyped_storage().data_ptr(), (value, value.clone()))
        results = call(*args, **(kwargs or {}))
        self.calls.append((call, args, kwargs or {}, results))
        return results

    def replay(self):
        for call, args, kwargs, results in self.calls:
            values = tree_leaves(call(*args, **kwargs))
            for place, value in zip(tree_leaves(results), values, strict=True):
                if isinstance(place, torch.Tensor) and place.data_ptr() != value.data_ptr():
                    place.copy_(value)


@torch.no_grad()
def capture_on_tape(step, pool=None):
    with torch.random.fork_rng(), Tape() as tape, torch.enable_grad():
        step()
    for place, value in reversed(tape.before.values()):
        place.copy_(value)
    return torch.no_grad()(tape.replay)


WITH_TEACHER = [name for name, loss in LOSSES.items() if loss.needs_teacher]
SMOOTH = {"label_smoothing": 0.1, "clip": 0.5, "ema": 0.9, "mix": "mixup", "views": 2}


@pytest.mark.parametrize(
    "fields",
    [
        *({"method": f"ce + {name}:0.1"} for name in WITH_TEACHER),
        {"method": "kd", "optimizer": "adamw", "lr": 0.001, "schedule": "cosine", **SMOOTH},
        {"method": "ce + crd:0.8(K=16)", "optimizer": "nesterov", "views": 2},
    ],
    ids=[*WITH_TEACHER, "adamw and more", "crd with two views"],
)
def test_every_loss_and_recipe_computes_the_same_in_a_captured_step(
    captures, teacher, tmp_path, monkeypatch, fields
):
    """Over three epochs and an interrupt: nothing that changes between steps may be a Python
    number."""
    fields = fields | {"teacher_weights": teacher}
    eager = train(eager_run(tmp_path / "eager", **fields), log=quiet)
    monkeypatch.setattr(cuda_graph, "capture", capture_on_tape)
    taped = graph_run(tmp_path / "taped", **fields)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*not replayed")
        break_off(taped, 8)
        train(taped, log=quiet)
    rows, expected = (run.metrics.drop(columns="seconds").to_numpy() for run in (taped, eager))
    # Copies may have other strides, and be summed in another order.
    assert rows == pytest.approx(expected, rel=1e-5)


def test_what_follows_a_failed_step_waits_for_its_kernels(monkeypatch):
    """With stand-ins for streams."""
    waits = []

    class Stream:
        device = None

        def wait_stream(self, other):
            waits.append((self, other))

    current, side = Stream(), Stream()
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: current)
    monkeypatch.setattr(torch.cuda, "stream", nullcontext)
    with pytest.raises(ValueError), on_side_stream(side):
        raise ValueError
    assert waits == [(side, current), (current, side)]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_captured_step_on_a_gpu():
    weight = torch.ones(3, device="cuda", requires_grad=True)
    total = torch.zeros((), device="cuda")
    optimizer = torch.optim.SGD([weight], torch.tensor(0.1, device="cuda"), 0.9, fused=True)

    def update(inputs):
        x = inputs["x"]
        optimizer.zero_grad(set_to_none=True)
        loss = (weight * x).square().sum()
        loss.backward()
        optimizer.step()
        total.add_(loss.detach())

    step = CUDAGraphStep(update)
    stream = torch.cuda.Stream()
    inputs = torch.linspace(0.1, 1, 10, device="cuda")
    for x in inputs:
        with on_side_stream(stream):
            step({"x": x.expand(3).contiguous()})
    assert step.replay is not None
    expected = torch.ones(3, requires_grad=True)
    reference = torch.optim.SGD([expected], 0.1, 0.9)
    expected_total = 0.0
    for x in inputs.cpu():
        reference.zero_grad()
        loss = (expected * x).square().sum()
        loss.backward()
        reference.step()
        expected_total += loss.item()
    assert weight.detach().cpu().tolist() == pytest.approx(expected.tolist(), rel=1e-4)
    assert total.item() == pytest.approx(expected_total, rel=1e-4)
