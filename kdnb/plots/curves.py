"""Figures of accuracies and times, drawn from DataFrames."""

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kdnb.plots.compare import axes_grid
from kdnb.plots.style import (
    NEUTRAL,
    PALE,
    SEQUENTIAL,
    figure,
    legend_below,
    line_styles,
    whole_epochs,
)

TOP1 = "test top-1 accuracy (%)"
MAX_LINES = 10  # in one panel
STUDIES = {  # colour and marker
    "this study": (NEUTRAL, "o"),
    "published": ("black", "D"),
    "earlier study": (PALE, "s"),
    "published, best epoch": ("black", "$\u25c7$"),
}


def learning_curves(table: pd.DataFrame, title: str = "") -> Figure | None:
    """Test accuracy over epochs; None without epochs.

    A line is the mean over its runs, in a band of ± sd. With six epochs or more, a second panel
    enlarges the last third. More than `MAX_LINES` lines have panels of their own, each with the
    baseline (order 1) of the same network.

    Args:
        table: a row per run and epoch, with the columns line (its label in the legend), order (its
            index in `STYLES`), run, epoch and test_top1 (%). With the column lr, drops of the
            learning rate to less than half are marked; with the column classes, chance is.
    """
    if table.empty:
        return None
    if table["line"].nunique() > MAX_LINES:
        return learning_curve_panels(table, title)
    last = table["epoch"].max()
    panels = {"": table}
    if last >= 6:
        panels = {"all epochs": table, "last third, enlarged": table[table["epoch"] > last * 2 / 3]}
    runs = table.groupby("line")["run"].nunique().max()
    heading = "Test accuracy over epochs"
    if runs > 1:
        heading += f", mean ± sd of up to {runs} runs"
    ratios = (3, 2)[: len(panels)]
    fig, axes = figure(heading, title, 4.2, ncols=len(panels), width_ratios=ratios, squeeze=False)
    styles = seaborn_styles(table)
    main_axes = axes[0, 0]
    for ax, (name, part) in zip(axes[0], panels.items(), strict=True):
        draw_curves(ax, part, styles, legend=ax is main_axes)
        draw_single_epochs(ax, part, styles["palette"])
        mark_lr_drops(ax, [epoch for epoch in lr_drops(table) if epoch >= part["epoch"].min()])
        ax.set(xlabel="epoch", ylabel=TOP1)
        ax.set_title(name, fontsize=9)
        whole_epochs(ax, part["epoch"].unique())
    if "classes" in table and table["classes"].nunique() == 1:
        chance = 100 / table["classes"].iloc[0]
        label = f"chance ({chance:g} %)"
        main_axes.axhline(chance, color="0.6", linewidth=1, linestyle=":", zorder=0, label=label)
    legend_below(fig, main_axes)
    return fig


def draw_curves(ax: Axes, table: pd.DataFrame, styles: dict, legend: bool) -> None:
    """Draw the mean of each line over its runs, in a band of ± sd."""
    sns.lineplot(table, x="epoch", y="test_top1", errorbar="sd", legend=legend, ax=ax, **styles)


def draw_single_epochs(ax: Axes, table: pd.DataFrame, colours: dict[str, str]) -> None:
    """Draw lines with a single tested epoch as points: a line through one point is invisible."""
    for line, rows in table.dropna(subset="test_top1").groupby("line"):
        if rows["epoch"].nunique() == 1:
            x = rows["epoch"].iloc[0]
            y = rows["test_top1"].mean()
            ax.errorbar(x, y, fmt="o", color=colours[line], markersize=4)


def mark_lr_drops(ax: Axes, epochs: list[float]) -> None:
    for i, epoch in enumerate(epochs):
        label = "_" if i else "learning rate drops"  # in the legend once
        ax.axvline(epoch, color="0.6", linewidth=0.6, zorder=0, label=label)


def lr_drops(table: pd.DataFrame) -> list[float]:
    """The last epochs before the learning rate of some run falls to less than half."""
    if "lr" not in table:
        return []
    ratio = table["lr"] / table.groupby("run")["lr"].shift()
    # One-cycle's last step goes down to exactly a half, and is no drop.
    return sorted(set(table["epoch"][ratio < 0.499] - 1))


def learning_curve_panels(table: pd.DataFrame, title: str) -> Figure:
    """`learning_curves` with a panel per line, without the first third of the epochs."""
    last = table["epoch"].max()
    is_baseline = table["order"] <= 1
    network = table["line"].str.partition(",")[0]
    students = table if is_baseline.all() else table[~is_baseline]
    lines = students["line"].unique()
    heading = (
        "Test accuracy of each method after the first third of the epochs, "
        "mean ± sd over seeds, with the baseline (orange, dashed)"
    )
    fig, axes = axes_grid(dict.fromkeys(lines), heading, title, 1.4, 1.5)
    styles = seaborn_styles(table)
    lowest = table["test_top1"][table["epoch"] > last / 2].min()
    for ax, line in zip(axes, lines, strict=True):
        has_same_network = network == line.partition(",")[0]
        in_panel = (table["line"] == line) | (is_baseline & has_same_network)
        part = table[in_panel & (table["epoch"] > last / 3)]
        draw_curves(ax, part, styles, legend=False)
        ax.set(xlabel="", ylabel="", ylim=(lowest, 100))
        ax.set_title(line.replace(", ", ",\n", 1), fontsize=8)
        ax.tick_params(labelsize=7)
        whole_epochs(ax, part["epoch"].unique())
    fig.supxlabel("epoch", fontsize=8)
    fig.supylabel(TOP1, fontsize=8)
    return fig


def accuracy_over_time(table: pd.DataFrame, title: str = "") -> Figure | None:
    """Test accuracy over training time, a line per run; None without epochs.

    Args:
        table: as for `learning_curves`, with the column spent, the seconds since the start of the
            run, without its teacher's training. With the column device, the lines of different
            devices are separate. With the column shared, runs on a shared machine are left out.
    """
    if "shared" in table:
        table = table[~table["shared"]]
    if table.empty:
        return None
    if "device" in table and table["device"].nunique() > 1:
        table = table.assign(line=table["line"] + ", " + table["device"])
    longest = table["spent"].max()
    units = {"hours": 3600, "minutes": 60, "seconds": 1}
    unit = next((unit for unit, seconds in units.items() if longest > 2 * seconds), "seconds")
    table = table.assign(time=table["spent"] / units[unit])
    fig, ax = figure("Test accuracy over training time", title, 4.2)
    sns.lineplot(
        table,
        x="time",
        y="test_top1",
        units="run",
        estimator=None,
        linewidth=1.2,
        ax=ax,
        **seaborn_styles(table),
    )
    xlabel = f"training time, without the teacher's training ({unit})"
    ax.set(xlabel=xlabel, ylabel=TOP1, xlim=(0, None))
    legend_below(fig, ax)
    return fig


def accuracy_vs_published(table: pd.DataFrame, title: str = "") -> Figure | None:
    """Accuracies of this study and published ones, as points; None without rows.

    A line of this study is the mean ± sd over its runs; each published number is a point.

    Args:
        table: a row per run or published number, with the columns line, study (a key of `STUDIES`)
            and top1 (%).
    """
    if table.empty:
        return None
    heading = "Test accuracy"
    if table["study"].nunique() > 1:
        heading = "Test accuracy here and as published"
    lines = [*table["line"].unique()]
    fig, ax = figure(heading, title, 1.4 + 0.4 * len(lines))
    for study, rows in table.groupby("study"):
        colour, marker = STUDIES[study]
        y = rows["line"].map(lines.index)
        if study == "this study":
            means = rows.groupby(y)["top1"].agg(["mean", "std"])
            ax.errorbar(
                means["mean"],
                means.index,
                xerr=means["std"].fillna(0),
                fmt=marker,
                color=colour,
                label=study,
            )
        else:
            ax.scatter(rows["top1"], y + 0.25, marker=marker, color=colour, s=30, label=study)
    # At least two points wide, so that a difference of hundredths does not look large.
    middle = table["top1"].mean()
    ax.update_datalim([(middle - 1, 0), (middle + 1, 0)])
    ax.set_yticks(range(len(lines)), lines)
    ax.set(xlabel=f"{TOP1}; this study: last epoch, mean ± sd over seeds")
    ax.set(ylim=(len(lines) - 0.4, -0.6))
    ax.grid(axis="x", alpha=0.3)
    legend_below(fig, ax)
    return fig


def step_times(
    steps: pd.DataFrame, parts: pd.DataFrame, floor: pd.DataFrame, title: str = ""
) -> Figure:
    """Times of whole training steps, and of the parts of one as a stacked bar.

    Args:
        steps: with the columns training (such as a method), step, ms and images/s.
        parts: of the first training in `steps`, with the columns part and ms.
        floor: the shortest possible time of a step, with the columns training and ms.
    """
    fig, ax = figure("Time of a training step, and of its parts", title, 2.1 + 0.42 * len(steps))
    ends = parts["ms"].cumsum()
    colours = sns.color_palette(SEQUENTIAL, len(parts))
    row = f"parts of {steps['training'][0]}"
    for part, ms, end, colour in zip(parts["part"], parts["ms"], ends, colours, strict=True):
        label = f"{part} ({ms:.1f} ms)"
        ax.barh(row, ms, left=end - ms, color=colour, edgecolor="white", label=label)
    bars = ax.barh(steps["training"] + ": " + steps["step"], steps["ms"], color=PALE)
    rates = [f"{rate:,.0f} images/s" for rate in steps["images/s"]]
    ax.bar_label(bars, rates, padding=4, fontsize=8)
    floors = steps["training"].map(floor.set_index("training")["ms"])
    top, bottom = steps.index + 0.6, steps.index + 1.4
    ax.vlines(floors, top, bottom, "black", "--", linewidth=1, label="floor")
    ax.invert_yaxis()
    ax.set(xlabel="milliseconds per step", xlim=(0, 1.22 * max(ends.max(), steps["ms"].max())))
    legend_below(fig, ax)
    return fig


def seaborn_styles(table: pd.DataFrame) -> dict:
    """The arguments of `seaborn.lineplot` for the lines of a table; markers below six epochs."""
    styles = line_styles(dict(zip(table["line"], table["order"], strict=True)))
    markers = {line: style.marker for line, style in styles.items()}
    return {
        "hue": "line",
        "style": "line",
        "palette": {line: style.color for line, style in styles.items()},
        "dashes": {line: style.dashes for line, style in styles.items()},
        "markers": markers if table["epoch"].max() < 6 else False,
    }
