"""What a recorded step relies on, without a GPU: a stand-in that records a step by keeping it."""

import pytest
import torch
from helpers import break_off, quiet, same, tiny, tiny_run  # noqa: F401

from kdnb import engine, graph, train
from kdnb.graph import WARM_UPS, Replayed, aside


@pytest.fixture
def recorded(monkeypatch):
    """Full steps are replayed; how often one was recorded."""
    times = []
    monkeypatch.setattr(graph, "record", lambda step: times.append(1) or step)
    monkeypatch.setattr(engine, "replays", lambda device, compiled: True)
    return times


def test_replays_read_what_they_are_given(recorded):
    seen = []
    step = Replayed(lambda x, y: seen.append((x, x.item(), y.item())))
    for i in range(6):
        step(torch.tensor(float(i)), torch.tensor(i))
    assert [values for _, *values in seen] == [[i, i] for i in range(6)]
    assert len({id(x) for x, *_ in seen[WARM_UPS:]}) == 1 and recorded == [1]  # the same memory, over and over


def test_a_replayed_run_is_the_same_run_and_resumes_to_the_same_bits(recorded, tmp_path, monkeypatch):
    replayed = train(tiny_run(tmp_path / "replayed", teacher="wrn_10_1"), say=quiet)
    assert recorded == [1, 1]  # the teacher's step and the student's
    broken = tiny_run(tmp_path / "broken", teacher="wrn_10_1", teacher_weights=str(replayed.teacher_run.folder))
    break_off(broken, 8)
    assert same(train(broken, say=quiet), replayed)
    monkeypatch.undo()
    assert same(train(tiny_run(tmp_path / "usual", teacher="wrn_10_1"), say=quiet), replayed)


def test_a_step_that_cannot_be_recorded_goes_on_as_it_is(recorded, tmp_path, monkeypatch):
    def refuse(step):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(graph, "record", refuse)
    with pytest.warns(UserWarning, match="not replayed as a CUDA graph.*not permitted"):
        run = train(tiny_run(tmp_path / "r", method="none"), say=quiet)
    monkeypatch.undo()
    usual = train(tiny_run(tmp_path / "usual", method="none"), say=quiet)
    assert run.weights.read_bytes() == usual.weights.read_bytes()


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

    step, stream = Replayed(update), torch.cuda.Stream()
    inputs = torch.linspace(0.1, 1, 10, device="cuda")
    for x in inputs:
        with aside(stream):
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
