"""How networks differ, drawn: matrices beside each other, reliability, classes, the energy inside boxes, loss terms.

Networks are called by their names; those that are a role look like it.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy import stats

from kdnb.plots.links import heatmap
from kdnb.plots.style import (
    COLOURS,
    NEUTRAL,
    PALE,
    ROLES,
    figure,
    in_lines,
    legend_below,
    line_styles,
)

__all__ = [
    "accuracy_and_cost",
    "block_matrices",
    "box_shares",
    "class_changes",
    "correlation_changes",
]
__all__ += ["loss_terms", "reliability"]


def block_matrices(
    matrices: Mapping[str, np.ndarray], teacher_blocks, student_blocks, what="", title=""
) -> Figure:
    """{name: (T, S)} side by side in the layout of the links, on one scale from 0 to 1."""
    T, S = next(iter(matrices.values())).shape
    fig, axes = panels(matrices, what, title, max(2.2, 0.8 + 0.13 * T), max(1.8, 0.9 + 0.2 * S))
    every = (
        T // 10,
        max(S // 9, -(-S * min(len(matrices), 5) // 33)),
    )  # 33 names have room side by side
    for ax, values in zip(axes, matrices.values(), strict=True):
        heatmap(ax, values, teacher_blocks, student_blocks, every=every)
    fig.colorbar(axes[0].images[0], ax=axes, pad=0.01, aspect=30)
    return fig


def panels(
    named: Mapping[str, object], what: str, title: str, height: float, width: float
) -> tuple[Figure, list]:
    """A figure with axes for each name, under it, up to five in a row; height and width of each in inches."""
    rows = -(-len(named) // 5)
    columns = -(-len(named) // rows)
    size = 0.8 + rows * height, 1.6 + columns * width
    fig, axes = figure(what, title, *size, nrows=rows, ncols=columns, squeeze=False)
    for ax in axes.flat[len(named) :]:
        ax.remove()
    for ax, name in zip(axes.flat, named, strict=False):
        ax.set_title(in_lines(name, 26), fontsize=8)
    return fig, [*axes.flat[: len(named)]]


def reliability(tables: Mapping[str, tuple[pd.DataFrame, float]], title: str = "") -> Figure:
    """Accuracy over confidence in bins, {name: of `compare.calibration`}; marks are as large as their bins are full."""
    fig, ax = figure(
        "How often is a prediction right that is given this confidence?", title, 4.2, 5.4
    )
    ax.axline((0, 0), slope=1, color="0.5", linestyle="--", linewidth=1, label="calibrated")
    for name, (table, error) in tables.items():
        how = {
            "color": ROLES[name].color,
            "marker": ROLES[name].marker,
            "label": f"{name}: ECE {100 * error:.1f} %",
        }
        area = 8 + 200 * table["images"] / table["images"].sum()
        ax.scatter(table["confidence"], table["accuracy"], area, alpha=0.8, **how)
    ax.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1.02), ylim=(0, 1.02))
    legend_below(fig, ax)
    return fig


def class_changes(table: pd.DataFrame, title: str = "", most: int = 24) -> Figure:
    """Difference of accuracy class by class with its interval, of `compare.class_accuracy`; the largest if many."""
    table = table.sort_values("gain", ascending=False, ignore_index=True)
    shown = (
        table
        if len(table) <= most
        else pd.concat([table[: most // 2], table[-most // 2 :]], ignore_index=True)
    )
    before, after = table.columns[2:4]
    left = "" if len(shown) == len(table) else f", {len(shown)} of {len(table)} classes"
    fig, ax = figure(
        f"Accuracy of {after} minus {before} by class{left}", title, 1.2 + 0.21 * len(shown), 7
    )
    off = [shown["gain"] - shown["low"], shown["high"] - shown["gain"]]
    sure = (shown["low"] > 0) | (shown["high"] < 0)
    ax.errorbar(shown["gain"], shown.index, xerr=np.abs(off), fmt="none", color=PALE, linewidth=2)
    ax.scatter(shown["gain"], shown.index, color=np.where(sure, "black", NEUTRAL), s=22, zorder=3)
    ax.axvline(0, color="0.5", linestyle="--", linewidth=1)
    ax.set_yticks(shown.index, [in_lines(name, 40) for name in shown["class"]], fontsize=7)
    ax.invert_yaxis()
    told = "percentage points, with 95 % intervals (black: it excludes 0, as one in twenty does by chance)"
    ax.set_xlabel(told, fontsize=8)
    return fig


def box_shares(inside, title: str = "") -> Figure | None:
    """What `evidence.inside` found: over depth, and in the last of its blocks by whether the prediction is right."""
    if inside is None:
        return None
    count = len(next(iter(inside.excess.values())))
    what = f"Energy of each map inside the person's box, beyond that of other images' maps, {count:,} photographs"
    fig, (depth, last) = figure(what, title, 4.0, ncols=2, width_ratios=(3, 2))
    places = {role: place for place, role in enumerate(inside.correct)}
    for role, excess in inside.excess.items():
        look = {"color": ROLES[role].color, "marker": ROLES[role].marker, "capsize": 2}
        depth.errorbar(100 * inside.depth[role], *means(excess), markersize=4, label=role, **look)
        for right, face in (
            ((True, look["color"]), (False, "white")) if role in inside.correct else ()
        ):
            of_these = excess[inside.correct[role] == right, -1]
            if len(of_these) > 1:
                last.errorbar(
                    places[role] + (0.12 if right else -0.12), *means(of_these), mfc=face, **look
                )
    for ax in (depth, last):
        ax.axhline(0, color="0.4", linestyle="--", linewidth=1, label="as in other images' maps")
        ax.set_ylabel("energy inside the box, minus\nother images' (percentage points)")
    depth.set_xlabel("depth of the block (%)")
    last.set_xticks(range(len(places)), places)
    last.set_xlabel(
        "last block of 4 × 4 or more; filled: right\npredictions, empty: wrong ones", fontsize=8
    )
    legend_below(fig, depth)
    return fig


def means(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means over the first axis in percent, and half the width of their 95 % intervals (Student's t)."""
    return 100 * values.mean(0), 100 * stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)


def loss_terms(shares: pd.DataFrame, norms: pd.DataFrame, title: str = "") -> Figure:
    """Shares of the weighted terms in the loss (epochs x terms), and norms of their gradients (times x terms)."""
    what = "Weighted terms of the loss, and their gradients for the student"
    fig, (over, slopes) = figure(what, title, 3.6, ncols=2, width_ratios=(3, 2))
    shades = [NEUTRAL, *COLOURS][: len(shares.columns)]  # a term is nobody's role
    over.stackplot(
        shares.index, 100 * shares.to_numpy().T, labels=shares.columns, colors=shades, alpha=0.85
    )
    over.set(
        xlabel="epoch",
        ylabel="share of the training loss (%)",
        ylim=(0, 100),
        xlim=shares.index[[0, -1]],
    )
    over.margins(0)
    norms[shares.columns].plot.bar(ax=slopes, color=shades, legend=False, rot=0, alpha=0.85)
    slopes.set(xlabel="", ylabel="norm of the gradient")
    legend_below(fig, over)
    return fig


def correlation_changes(matrices: Mapping[str, np.ndarray], title: str = "") -> Figure | None:
    """{name: (classes, classes)} of correlations minus the teacher's, over their mean distances; None of none."""
    if not matrices:
        return None
    fig, axes = panels(
        matrices, "Correlations of the classes' logits, minus the teacher's", title, 2.3, 1.9
    )
    reach = max(np.abs(m).max() for m in matrices.values())
    for ax, values in zip(axes, matrices.values(), strict=True):
        image = ax.imshow(values, vmin=-reach, vmax=reach, cmap="PuOr_r", interpolation="nearest")
        ax.set(xticks=[], yticks=[])
        ax.set_xlabel(f"mean distance {np.abs(values).mean():.3f}", fontsize=8)
    fig.colorbar(image, ax=axes, pad=0.01, aspect=30, label="difference of correlation")
    return fig


def accuracy_and_cost(accuracies: pd.DataFrame, costs: pd.DataFrame, title: str = "") -> Figure:
    """Accuracy over the cost of a step.

    accuracies: line, order, top1 and study, a row per run of this study (others are left out); costs: of each line, its
    method and times, the baseline's being 1.
    """
    table = accuracies[accuracies["study"] == "this study"].merge(
        costs, left_on="line", right_on="method"
    )
    fig, ax = figure("Test accuracy and what a step costs", title, 4.2, 7)
    for line, look in line_styles(dict(zip(table["line"], table["order"], strict=True))).items():
        rows = table[table["line"] == line]
        bars = rows["top1"].std() if len(rows) > 1 else None
        ax.errorbar(
            rows["times"].mean(),
            rows["top1"].mean(),
            bars,
            fmt=look.marker,
            color=look.color,
            label=line,
        )
    ax.set_xlabel("time of a training step, times the baseline's")
    ax.set_ylabel("test accuracy, top-1 (%), mean ± sd of the seeds")
    legend_below(fig, ax)
    return fig
