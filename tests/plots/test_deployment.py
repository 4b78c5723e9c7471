"""Figures of networks in use, and their background in a dark notebook."""

from unittest.mock import patch

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import PathCollection

from kdnb import plots
from kdnb.plots import style

ROLES = ["teacher", "baseline", "distilled"]


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def test_predictions_stand_below_their_images():
    predicted = pd.DataFrame({role: [f"{role} {i}" for i in range(9)] for role in ROLES})
    figure = plots.predictions([np.zeros((4, 4, 3), np.uint8)] * 9, predicted)
    first, *_, last = figure.axes
    assert len(figure.axes) == 8 and "8 of 9 images" in figure.title
    assert [text.get_text() for text in first.texts] == [f"{role} 0" for role in ROLES]
    assert [text.get_text() for text in last.texts] == [f"{role} 7" for role in ROLES]


def test_networks_are_at_their_accuracy_and_latency():
    rows = [(role, kind, 90.0 + i) for i, role in enumerate(ROLES) for kind in ("float32", "int8")]
    table = pd.DataFrame(rows, columns=["network", "precision", "top-1 (%)"])
    table["ms, batch 1, 1 thread"] = [4.0, 3.0, 2.0, 1.0, 2.0, 1.0]
    table["file (MB)"] = [8.0, 2.0, 4.0, 1.0, 4.0, 1.0]
    table.loc[table["network"] == "teacher", "top-1 (%)"] = np.nan  # it knows other classes
    (ax,) = plots.accuracy_and_latency(table).axes
    marks = [mark for mark in ax.collections if isinstance(mark, PathCollection)]
    points = [tuple(mark.get_offsets()[0]) for mark in marks if len(mark.get_offsets())]
    assert points == [(2, 91), (1, 91), (2, 92), (1, 92)]


def test_a_probe_has_its_interval():
    rows = [(role, 64, 80.0 + i, 78.0, 85.0) for i, role in enumerate(ROLES)]
    table = pd.DataFrame(rows, columns=["network", "features", "top-1 (%)", "low", "high"])
    (ax,) = plots.probe_accuracy(table).axes
    intervals = [bar.lines[2][0].get_segments()[0][:, 0].tolist() for bar in ax.containers]
    assert intervals == [[78, 85]] * 3


def test_a_displayed_figure_is_readable_on_a_dark_page():
    with (
        plt.rc_context({"figure.facecolor": "none", "savefig.facecolor": "none"}),
        patch.object(style, "display_image") as display,
    ):
        plots.predictions([np.zeros((4, 4, 3), np.uint8)], pd.DataFrame({"teacher": ["cat"]}))
        plt.gcf()._ipython_display_()
    pixels = display.call_args.args[0]
    assert pixels.shape[2] == 3 and (pixels[0] == 255).all()
