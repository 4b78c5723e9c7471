"""What a recorded step relies on, without a GPU: a stand-in that records a step by keeping it."""

import warnings
from functools import partial

import pytest
import torch
from helpers import break_off, quiet, same, tiny
from helpers import tiny_run as usual_run
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kdnb import LOSSES, train
from kdnb.training import cuda_graph as graph
from kdnb.training import step as engine
from kdnb.training.cuda_graph import WARM_UPS, CUDAGraphStep, on_side_stream

tiny_run = partial(
    usual_run, compile="auto"
)  # too short to be compiled; "off" would not be replayed either


@pytest.fixture
def recorded(monkeypatch):
    """Full steps are replayed; how often one was recorded."""
    times = []
    monkeypatch.setattr(graph, "capture", lambda step: times.append(1) or step)
    monkeypatch.setattr(engine, "GRAPH_DEVICES", ("cpu",))
    return times


def test_replays_read_what_they_are_given(recorded):
    seen = []
    step = CUDAGraphStep(lambda x, y: seen.append((x, x.item(), y.item())))
    for i in range(6):
        step(torch.tensor(float(i)), torch.tensor(i))
    assert [values for _, *values in seen] == [[i, i] for i in range(6)]
    assert len({id(x) for x, *_ in seen[WARM_UPS:]}) == 1 and recorded == [
        1
    ]  # the same memory, over and over


def test_a_replayed_run_is_the_same_run_and_resumes_to_the_same_bits(
    recorded, tmp_path, monkeypatch
):
    replayed = train(tiny_run(tmp_path / "replayed", teacher="wrn_10_1"), log=quiet)
    assert recorded == [1, 1]  # the teacher's step and the student's
    train(tiny_run(tmp_path / "off", method="none", compile="off"), log=quiet)
    assert recorded == [1, 1]
    broken = tiny_run(
        tmp_path / "broken", teacher="wrn_10_1", teacher_weights=str(replayed.teacher_run.folder)
    )
    break_off(broken, 8)
    assert same(train(broken, log=quiet), replayed)
    monkeypatch.undo()
    assert same(train(tiny_run(tmp_path / "usual", teacher="wrn_10_1"), log=quiet), replayed)


def test_a_step_that_cannot_be_recorded_goes_on_as_it_is(recorded, tmp_path, monkeypatch):
    def refuse(step):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(graph, "capture", refuse)
    with pytest.warns(UserWarning, match="not replayed as a CUDA graph.*not permitted"):
        run = train(tiny_run(tmp_path / "r", method="none"), log=quiet)
    monkeypatch.undo()
    usual = train(tiny_run(tmp_path / "usual", method="none"), log=quiet)
    assert run.weights.read_bytes() == usual.weights.read_bytes()


class Tape(TorchDispatchMode):
    """Keeps what is computed while it is on, to do it again in the same memory, without Python: as
    a CUDA graph does.

    Reading a value, on which what follows might depend, is refused as there. What was overwritten
    is put back.
    """

    def __init__(self):
        super().__init__()
        self.calls, self.before = [], {}

    def __torch_dispatch__(self, call, types, args=(), kwargs=None):
        if (
            call is torch.ops.aten._local_scalar_dense.default
            or call is torch.ops.aten.nonzero.default
        ):
            raise RuntimeError("operation not permitted when stream is capturing")
        for value in tree_leaves((args, kwargs)):  # batch norm does not say what it writes to
            if isinstance(value, torch.Tensor):
                self.before.setdefault(value.untyped_storage().data_ptr(), (value, value.clone()))
        made = call(*args, **(kwargs or {}))
        self.calls.append((call, args, kwargs or {}, made))
        return made

    def replay(self):
        for call, args, kwargs, made in self.calls:
            for place, value in zip(
                tree_leaves(made), tree_leaves(call(*args, **kwargs)), strict=True
            ):
                if isinstance(place, torch.Tensor) and place.data_ptr() != value.data_ptr():
                    place.copy_(value)


@torch.no_grad()
def on_tape(step):
    with torch.random.fork_rng(), Tape() as tape, torch.enable_grad():
        step()
    for place, value in reversed(tape.before.values()):
        place.copy_(value)
    return torch.no_grad()(tape.replay)


@pytest.mark.parametrize("name", [name for name, loss in LOSSES.items() if loss.needs_teacher])
def test_every_loss_computes_the_same_in_a_recorded_step(recorded, tmp_path, monkeypatch, name):
    """Over three epochs and a broken-off one: nothing that changes between steps may be a number of
    Python's."""
    of = {"method": f"ce + {name}:0.1", "teacher": "wrn_10_1"}
    usual = train(tiny_run(tmp_path / "usual", **of), log=quiet)
    monkeypatch.setattr(graph, "capture", on_tape)
    broken = tiny_run(tmp_path / "taped", **of | {"teacher_weights": str(usual.teacher_run.folder)})
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*not replayed")
        break_off(broken, 8)
        taped = train(broken, log=quiet)
    rows = [run.metrics.drop(columns="seconds").to_numpy() for run in (taped, usual)]
    assert rows[0] == pytest.approx(
        rows[1], rel=1e-5
    )  # copies may lie otherwise in memory, and be summed otherwise


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_recorded_step_on_a_gpu():
    weight, total = torch.ones(3, device="cuda", requires_grad=True), torch.zeros((), device="cuda")
    optimizer = torch.optim.SGD([weight], torch.tensor(0.1, device="cuda"), 0.9, fused=True)

    def update(x):
        optimizer.zero_grad(set_to_none=True)
        loss = (weight * x).square().sum()
        loss.backward()
        optimizer.step()
        total.add_(loss.detach())

    step, stream = CUDAGraphStep(update), torch.cuda.Stream()
    inputs = torch.linspace(0.1, 1, 10, device="cuda")
    for x in inputs:
        with on_side_stream(stream):
            step(x.expand(3).contiguous())
    assert step.replay is not None
    expected = torch.ones(3, requires_grad=True)
    usual, sum_ = torch.optim.SGD([expected], 0.1, 0.9), 0.0
    for x in inputs.cpu():
        usual.zero_grad()
        loss = (expected * x).square().sum()
        loss.backward()
        usual.step()
        sum_ += loss.item()
    assert weight.detach().cpu().tolist() == pytest.approx(expected.tolist(), rel=1e-4)
    assert total.item() == pytest.approx(sum_, rel=1e-4)
