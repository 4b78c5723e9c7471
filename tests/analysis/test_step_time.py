"""kdnb.speed: a step is taken apart, and the parts add up to a page and a picture."""

import pytest
import torch

from kdnb import Run
from kdnb.analysis.step_time import StepTimer, method_costs, time_alternately
from kdnb.plots import step_times
from kdnb.training import cuda_graph as graph
from kdnb.training import step as engine


@pytest.mark.parametrize("method", ["afd", "none"])
def test_a_step_is_taken_apart(method):
    networks = {"student": "wrn_10_1", "teacher": "wrn_16_1", "image_size": 8}
    run = Run(method=method, **networks, device="cpu", precision="float32")
    timer = StepTimer(run, repeats=1)
    whole, parts, floor, loaders = tables = (
        timer.whole_steps(compiled=False),
        timer.parts(),
        timer.floor(),
        timer.loader_rates(),
    )
    trainings = ["afd", "labels only"] if method == "afd" else ["labels only"]
    assert whole["step"].tolist() == ["reference, float32", "engine, float32"] * len(trainings)
    assert whole["training"].unique().tolist() == floor["training"].tolist() == trainings
    assert (
        whole["speed-up"][::2].tolist() == [1] * len(trainings)
        and floor["ms"].is_monotonic_decreasing
    )
    assert parts["part"].tolist() == ["batch", "student"] + ["teacher", "kd", "afd"] * (
        method == "afd"
    )
    assert parts["share (%)"].sum() == pytest.approx(100) and loaders["what"].tolist() == [
        "training batches",
        "evaluation",
    ]
    assert all((table.select_dtypes("number") > 0).all(axis=None) for table in tables)
    assert len(step_times(whole, parts, floor, title=timer.name).axes) == 1
    page, taught = (
        timer.page(*tables),
        {"afd": "afd, wrn_16_1 → wrn_10_1", "none": "wrn_10_1"}[method],
    )
    assert (
        page.startswith(f"# A training step: digits, {taught}, 8 px, batch 25, float32, ")
        and timer.machine in page
    )
    assert (
        page.count("|:--") == 5
        and timer.name.startswith("speed-digits-")
        and timer.name.endswith(f"{method}-cpu")
    )


def test_candidates_take_turns_and_warm_ups_are_not_counted(monkeypatch):
    calls, ticks = [], iter(range(1000))
    monkeypatch.setattr(
        "time.perf_counter", lambda: next(ticks) ** 2
    )  # every call takes longer than the one before
    seconds = time_alternately(
        {name: lambda name=name: calls.append(name) for name in "abc"},
        torch.device("cpu"),
        repeats=2,
    )
    assert "".join(calls) == "cbaabccbaabc"
    assert seconds["a"] == ((17**2 - 16**2) + (19**2 - 18**2)) / 2 and len(seconds) == 3


def test_what_a_method_saves_is_counted_also_where_its_steps_are_replayed(monkeypatch):
    of = {
        "student": "wrn_10_1",
        "teacher": "wrn_16_1",
        "image_size": 8,
        "device": "cpu",
        "precision": "float32",
    }
    runs = {method: Run(method=method, **of) for method in ("none", "kd")}
    usual = method_costs(runs)
    monkeypatch.setattr(graph, "capture", lambda step: lambda: None)
    monkeypatch.setattr(engine, "GRAPH_DEVICES", ("cpu",))
    replayed = method_costs(runs)
    assert usual["MB saved"].equals(replayed["MB saved"]) and (usual["MB saved"] > 0.1).all()
    assert usual["method"].tolist() == ["none", "kd"] and usual["times"][0] == 1
