"""kdnb.speed: a step is taken apart, and the parts add up to a page and a picture."""

import pytest
import torch

from kdnb import Run
from kdnb.plots import step_times
from kdnb.speed import Speed, alternate


@pytest.mark.parametrize("method", ["afd", "none"])
def test_a_step_is_taken_apart(method):
    networks = {"student": "wrn_10_1", "teacher": "wrn_16_1", "image_size": 8}
    run = Run(method=method, **networks, device="cpu", precision="float32")
    speed = Speed(run, repeats=1)
    whole, parts, floor, loaders = tables = speed.whole(compiled=False), speed.parts(), speed.floor(), speed.loaders()
    assert whole["step"].tolist() == ["plain, float32", "engine, float32", "engine, float32, labels only"]
    assert parts["part"].tolist() == ["batch", "student"] + ["teacher", "kd", "afd"] * (method == "afd")
    assert parts["share (%)"].sum() == pytest.approx(100) and loaders["what"].tolist() == [
        "training batches",
        "evaluation",
    ]
    assert all((table.select_dtypes("number") > 0).all(axis=None) for table in tables)
    assert len(step_times(whole, parts, floor, title=speed.name).axes) == 1
    page, teacher = speed.page(*tables), {"afd": "wrn_16_1", "none": "nobody"}[method]
    assert page.startswith(
        f"# A step of {method}: {teacher} teaches wrn_10_1 on digits, 8 px, batch 25\n\n{speed.machine}"
    )
    assert page.count("|:--") == 3 and speed.name.startswith("speed-digits-") and speed.name.endswith(f"{method}-cpu")


def test_candidates_take_turns_and_warm_ups_are_not_counted(monkeypatch):
    calls, ticks = [], iter(range(1000))
    monkeypatch.setattr("time.perf_counter", lambda: next(ticks) ** 2)  # every call takes longer than the one before
    seconds = alternate({name: lambda name=name: calls.append(name) for name in "abc"}, torch.device("cpu"), repeats=2)
    assert "".join(calls) == "cbaabccbaabc"
    assert seconds["a"] == ((17**2 - 16**2) + (19**2 - 18**2)) / 2 and len(seconds) == 3
