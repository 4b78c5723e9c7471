"""What a recorded step relies on, without a GPU: a stand-in that records a step by keeping it."""

import pytest
import torch
from test_train import Stopping, kill, rows, small_fit, weights

from kdnb import replay, train
from kdnb.replay import WARM_UPS, Replayed, aside


@pytest.fixture
def recorded(monkeypatch):
    """Full steps are replayed; how often one was recorded."""
    times = []
    monkeypatch.setattr(replay, "record", lambda step: times.append(1) or step)
    monkeypatch.setattr(train, "replays", lambda device, compiled: True)
    return times


def test_replays_read_what_they_are_given(recorded):
    seen = []
    step = Replayed(lambda x, y: seen.append((x, x.item(), y.item())))
    for i in range(6):
        step(torch.tensor(float(i)), torch.tensor(i))
    assert [values for _, *values in seen] == [[i, i] for i in range(6)]
    assert len({id(x) for x, *_ in seen[WARM_UPS:]}) == 1 and recorded == [1]  # the same memory, over and over


def test_a_replayed_run_is_the_same_run(recorded, tmp_path, monkeypatch):
    replayed = small_fit(tmp_path / "replayed")
    assert recorded == [1]
    monkeypatch.undo()
    usual = small_fit(tmp_path / "usual")
    assert weights(replayed) == weights(usual) and rows(replayed).equals(rows(usual))
    assert (replayed.links == usual.links).all()


def test_a_replayed_run_resumes_to_the_same_bits(recorded, tmp_path):
    whole = small_fit(tmp_path / "whole")
    Stopping.at, Stopping.how = 8, kill
    with pytest.raises(BaseException):  # noqa: B017  like a killed process
        small_fit(tmp_path / "r", batches=Stopping)
    run = small_fit(tmp_path / "r")
    assert weights(run) == weights(whole) and rows(run).equals(rows(whole))


def test_a_step_that_cannot_be_recorded_goes_on_as_it_is(tmp_path, monkeypatch):
    usual = small_fit(tmp_path / "usual")

    def refuse(step):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(replay, "record", refuse)
    monkeypatch.setattr(train, "replays", lambda device, compiled: True)
    with pytest.warns(UserWarning, match="not replayed as a CUDA graph.*not permitted"):
        run = small_fit(tmp_path / "r")
    assert weights(run) == weights(usual)


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
