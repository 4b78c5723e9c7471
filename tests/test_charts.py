"""kdnb.charts: that what is drawn, and what its titles say, is what the runs of test_results.py hold."""

# ruff: noqa: F401, F811  outputs is a fixture
from __future__ import annotations

import re

import matplotlib.pyplot as plt
import pytest
from test_results import make, outputs, tidy

from kdnb import charts, results


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def test_curves_add_up_the_seconds(outputs):
    curves = results.curves(tidy(outputs))
    run = curves[curves["folder"].str.endswith("plain0")]
    assert list(run["spent"]) == [30.0, 40.0, 50.0] and list(run["test_top1"]) == [52.0, 72.25, 72.0]


def test_learning_curves_draw_seeds_as_a_band_and_say_what_is_true(outputs):
    figures = charts.learning_curves(results.curves(tidy(outputs)))
    assert set(figures) == {"learning-curves-cifar100", "learning-curves-cifar100-epochs-2"}
    full = figures["learning-curves-cifar100"]
    title = full.get_suptitle()
    assert "wrn_16_2: labels, kd, afd from wrn_40_2 ends at 75.50 %, 2.50 points above labels alone" in title
    assert "no result of the study" not in title
    names = [text.get_text() for text in full.legends[0].get_texts()]
    assert names == ["wrn_16_2: labels", "wrn_40_2: labels", "wrn_16_2: labels, kd, afd from wrn_40_2"]
    bands = [c for c in full.axes[0].collections if len(c.get_paths())]
    assert len(bands) == 2  # plain and distilled have several seeds, the teacher has one
    top = max(path.vertices[:, 1].max() for c in bands for path in c.get_paths())
    assert top == pytest.approx(75.75 + 0.5)  # mean + sd of the distilled students in epoch 2
    assert "no result of the study" in figures["learning-curves-cifar100-epochs-2"].get_suptitle()


def test_time_counts_what_distilling_costs(outputs):
    for seed in range(3):
        path = outputs / f"runs/afd{seed}/metrics.csv"
        path.write_text(path.read_text().replace("30.0", "80.0"))  # 50 s -> 100 s in all
    figure = charts.accuracy_over_time(results.curves(tidy(outputs)))["accuracy-over-time-cifar100"]
    assert "took 2.0 x the time of labels alone, for +2.50 points" in figure.axes[0].get_title()
    assert figure.axes[0].get_xlabel().endswith("(seconds)")


def test_times_of_two_devices_are_not_compared(outputs):
    make(outputs, "cpu", 73.0, seed=4, device="AMD EPYC")
    figure = charts.accuracy_over_time(results.curves(tidy(outputs)))["accuracy-over-time-cifar100"]
    assert "times the time" not in figure.axes[0].get_title() and " x the time" not in figure.axes[0].get_title()
    assert "wrn_16_2: labels, AMD EPYC" in [text.get_text() for text in figure.legends[0].get_texts()]


def test_published_points_stand_where_they_are(outputs):
    figures = charts.with_published(tidy(outputs))
    assert set(figures) == {"with-published-cifar100"}
    figure = figures["with-published-cifar100"]
    assert "reaches 75.50 %, +0.03 points from published 75.47 %" in figure.get_suptitle()
    drawn = {c.get_label(): sorted(c.get_offsets()[:, 0].round(2)) for c in figure.axes[0].collections if c.get_label()}
    assert drawn["this study"] == [73.0, 75.5, 76.0]
    cited = [c for c in results.PUBLISHED if c.dataset == "cifar100"]
    assert drawn["published"] == sorted(c.top1 for c in cited if c.source != "earlier study")
    assert drawn["earlier study"] == sorted(c.top1 for c in cited if c.source == "earlier study")


def test_figures_are_kept_and_the_same_again(outputs, capsys):
    table, folder = tidy(outputs), outputs / "figures"
    first = {path: path.read_bytes() for path in charts.save(charts.with_published(table), folder)}
    assert {path.suffix for path in first} == {".png", ".svg"}
    charts.save(charts.with_published(table), folder)
    assert {path: path.read_bytes() for path in first} == first
    assert re.search(r"with-published-cifar100\.png", capsys.readouterr().out)


def test_a_large_drawing_is_kept_as_png_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(charts, "SVG_BYTES", 10)
    (tmp_path / "f.svg").write_text("of before")
    assert [path.name for path in charts.save({"f": plt.figure()}, tmp_path)] == ["f.png"]
    assert not (tmp_path / "f.svg").exists()


def test_nothing_to_draw_is_said(tmp_path, capsys):
    table = tidy(tmp_path)
    assert charts.save(charts.learning_curves(results.curves(table)) | charts.with_published(table), tmp_path) == []
    assert "nothing to draw" in capsys.readouterr().out
