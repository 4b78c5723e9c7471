"""Figures that compare networks: matrices, reliability, classes, energy inside boxes, loss terms.

Networks are called by their names. A name that is a role has the style of the role.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy import stats

from kdnb.plots.heatmaps import heatmap
from kdnb.plots.style import (
    COLOURS,
    NEUTRAL,
    PALE,
    ROLES,
    figure,
    legend_below,
    line_styles,
    whole_epochs,
)
from kdnb.plots.text import wrap


def block_matrices(
    matrices: Mapping[str, np.ndarray], teacher_blocks, student_blocks, heading="", title=""
) -> Figure:
    """{name: (T, S)} as heatmaps side by side, on one colour scale from 0 to 1."""
    T, S = next(iter(matrices.values())).shape
    height = max(2.2, 0.8 + 0.13 * T)
    width = max(1.8, 0.9 + 0.2 * S)
    fig, axes = axes_grid(matrices, heading, title, height, width)
    # Side by side there is room for the names of 33 student blocks.
    columns = min(len(matrices), 5)
    label_every = (T // 10, max(S // 9, -(-S * columns // 33)))
    for ax, values in zip(axes, matrices.values(), strict=True):
        heatmap(ax, values, teacher_blocks, student_blocks, label_every=label_every)
    fig.colorbar(axes[0].images[0], ax=axes, pad=0.01, aspect=30)
    return fig


def axes_grid(
    named: Mapping[str, object], heading: str, title: str, height: float, width: float
) -> tuple[Figure, list]:
    """A figure with axes for each name, up to five in a row; height and width of each in inches."""
    rows = -(-len(named) // 5)
    columns = -(-len(named) // rows)
    fig, axes = figure(
        heading,
        title,
        0.8 + rows * height,
        1.6 + columns * width,
        nrows=rows,
        ncols=columns,
        squeeze=False,
    )
    for ax in axes.flat[len(named) :]:
        ax.remove()
    used = [*axes.flat[: len(named)]]
    for ax, name in zip(used, named, strict=True):
        ax.set_title(wrap(name, 26), fontsize=8)
    return fig, used


def reliability(tables: Mapping[str, tuple[pd.DataFrame, float]], title: str = "") -> Figure:
    """Reliability diagram: accuracy over confidence in bins.

    The area of a mark shows the number of images in its bin.

    Args:
        tables: {name: (bins, ECE)}, as `compare.calibration` returns them.
    """
    heading = "Reliability: accuracy of the predictions by their confidence"
    fig, ax = figure(heading, title, 4.2, 5.4)
    ax.axline((0, 0), slope=1, color="0.5", linestyle="--", linewidth=1, label="calibrated")
    for name, (table, error) in tables.items():
        ax.scatter(
            table["confidence"],
            table["accuracy"],
            s=8 + 200 * table["images"] / table["images"].sum(),
            alpha=0.8,
            color=ROLES[name].color,
            marker=ROLES[name].marker,
            label=f"{name}: ECE {100 * error:.1f} %",
            clip_on=False,
        )
    ax.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1.02), ylim=(0, 1.02))
    legend_below(fig, ax)
    return fig


def class_changes(table: pd.DataFrame, title: str = "", max_classes: int = 24) -> Figure:
    """Difference in accuracy class by class, with its interval.

    Args:
        table: as `compare.class_accuracy` returns it.
        max_classes: of more classes only the largest gains and the largest losses are shown.
    """
    table = table.sort_values("gain", ascending=False, ignore_index=True)
    rows = table
    subset = ""
    if len(table) > max_classes:
        half = max_classes // 2
        rows = pd.concat([table[:half], table[-half:]], ignore_index=True)
        subset = f" ({len(rows)} of {len(table)} classes)"
    before, after = table.columns[2:4]
    heading = f"Accuracy by class, {after} minus {before}{subset}"
    fig, ax = figure(heading, title, 1.2 + 0.21 * len(rows), 7)
    errors = np.abs([rows["gain"] - rows["low"], rows["high"] - rows["gain"]])
    excludes_zero = (rows["low"] > 0) | (rows["high"] < 0)
    colours = np.where(excludes_zero, "black", NEUTRAL)
    ax.errorbar(rows["gain"], rows.index, xerr=errors, fmt="none", color=PALE, linewidth=2)
    ax.scatter(rows["gain"], rows.index, color=colours, s=22, zorder=3)
    ax.axvline(0, color="0.5", linestyle="--", linewidth=1)
    ax.set_yticks(rows.index, [wrap(name, 40) for name in rows["class"]], fontsize=7)
    ax.invert_yaxis()
    legend = "black: excludes 0, as one in twenty does by chance"
    ax.set_xlabel(f"percentage points, with 95 % intervals ({legend})", fontsize=8)
    return fig


def box_energy(box_energy, title: str = "") -> Figure | None:
    """Energy of the maps inside the person's box, over depth; None for None.

    A second panel splits the images at the last block by whether the prediction is correct.

    Args:
        box_energy: with `excess`, {role: (n, blocks)}, `depth`, {role: (blocks,)}, and
            `correct`, {role: (n,)}.
    """
    if box_energy is None:
        return None
    n_images = len(next(iter(box_energy.excess.values())))
    heading = (
        f"Map energy in the person's box, minus that of other images' maps, {n_images:,} images"
    )
    fig, (depth_ax, last_ax) = figure(heading, title, 4.0, ncols=2, width_ratios=(3, 2))
    positions = {role: position for position, role in enumerate(box_energy.correct)}
    for role, excess in box_energy.excess.items():
        colour = ROLES[role].color
        style = {"color": colour, "marker": ROLES[role].marker, "capsize": 2}
        depth = 100 * box_energy.depth[role]
        depth_ax.errorbar(depth, *mean_interval(excess), markersize=4, label=role, **style)
        if role not in box_energy.correct:
            continue
        for is_correct, offset, face in ((True, 0.12, colour), (False, -0.12, "white")):
            last = excess[box_energy.correct[role] == is_correct, -1]
            if len(last) > 1:
                x = positions[role] + offset
                last_ax.errorbar(x, *mean_interval(last), mfc=face, **style)
    for ax in (depth_ax, last_ax):
        ax.axhline(0, color="0.4", linestyle="--", linewidth=1, label="same as other images' maps")
        ax.set_ylabel("energy in the box, minus\nother images' (% points)")
    depth_ax.set_xlabel("depth of the block (%)")
    last_ax.set_xticks(range(len(positions)), positions)
    last_ax.set_xlabel(
        "last block of at least 4 × 4; filled: correct\npredictions, empty: wrong ones", fontsize=8
    )
    legend_below(fig, depth_ax)
    return fig


def mean_interval(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means over the first axis in percent, and half the width of their 95 % t-intervals."""
    half_width = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    return 100 * values.mean(0), 100 * half_width


def loss_terms(shares: pd.DataFrame, norms: pd.DataFrame, title: str = "") -> Figure:
    """Shares of the weighted terms in the loss, and the norms of their gradients.

    Args:
        shares: from 0 to 1, a row per epoch, a column per term.
        norms: a row per point in time, such as "first step", a column per term.
    """
    heading = "Weighted loss terms, and their gradients for the student's weights"
    fig, (share_ax, norm_ax) = figure(heading, title, 3.6, ncols=2, width_ratios=(3, 2))
    terms = shares.columns
    colours = [NEUTRAL, *COLOURS][: len(terms)]  # not those of the roles
    percent = 100 * shares.to_numpy().T
    x = shares.index.to_numpy(dtype=float)
    if len(x) == 1:  # an area needs two points
        x, percent = x[0] + np.array([-0.5, 0.5]), percent.repeat(2, axis=1)
    share_ax.stackplot(x, percent, labels=terms, colors=colours, alpha=0.85)
    share_ax.set(xlabel="epoch", ylabel="share of the training loss (%)")
    share_ax.set(ylim=(0, 100), xlim=x[[0, -1]])
    whole_epochs(share_ax, shares.index)
    share_ax.margins(0)
    norms[terms].plot.bar(ax=norm_ax, color=colours, legend=False, rot=0, alpha=0.85)
    norm_ax.set(xlabel="", ylabel="gradient norm")
    legend_below(fig, share_ax)
    return fig


def correlation_changes(matrices: Mapping[str, np.ndarray], title: str = "") -> Figure | None:
    """Correlations between the classes' logits, minus the teacher's; None without matrices.

    Args:
        matrices: {name: (classes, classes)}, the differences.
    """
    if not matrices:
        return None
    heading = "Correlations between the logits of the classes, minus the teacher's"
    fig, axes = axes_grid(matrices, heading, title, 2.3, 1.9)
    limit = max(np.abs(matrix).max() for matrix in matrices.values())
    for ax, matrix in zip(axes, matrices.values(), strict=True):
        image = ax.imshow(matrix, vmin=-limit, vmax=limit, cmap="PuOr_r", interpolation="nearest")
        ax.set(xticks=[], yticks=[])
        ax.set_xlabel(f"mean |difference| {np.abs(matrix).mean():.3f}", fontsize=8)
    fig.colorbar(image, ax=axes, pad=0.01, aspect=30, label="difference in correlation")
    return fig


def accuracy_and_cost(accuracies: pd.DataFrame, costs: pd.DataFrame, title: str = "") -> Figure:
    """Test accuracy over the time of a training step.

    Args:
        accuracies: a row per run, with the columns line, order, top1 (%) and study. Only rows of
            "this study" are drawn.
        costs: a row per line, with the columns method and times, the time of a step relative to
            the baseline's.
    """
    runs = accuracies[accuracies["study"] == "this study"]
    table = runs.merge(costs, left_on="line", right_on="method")
    fig, ax = figure("Test accuracy and the time of a training step", title, 4.2, 7)
    orders = dict(zip(table["line"], table["order"], strict=True))
    for line, style in line_styles(orders).items():
        rows = table[table["line"] == line]
        x = rows["times"].mean()
        y = rows["top1"].mean()
        error = rows["top1"].std() if len(rows) > 1 else None
        ax.errorbar(x, y, error, fmt=style.marker, color=style.color, label=line)
    ax.set_xlabel("time of a training step, relative to the baseline's")
    ax.set_ylabel("test top-1 accuracy (%),\nmean ± sd over seeds")
    legend_below(fig, ax)
    return fig
