"""Tables -> figures of accuracies and times."""

import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from kdnb.plots.compare import panels
from kdnb.plots.style import NEUTRAL, PALE, SEQUENTIAL, figure, legend_below, line_styles

__all__ = ["accuracy_over_time", "learning_curves", "step_times", "with_published"]

TOP1 = "test accuracy, top-1 (%)"
MOST = 10  # lines in one panel


def learning_curves(table: pd.DataFrame, title: str = "") -> Figure | None:
    """Test accuracy over epochs: a line per `line`, the mean of its runs, in a band of ± sd; None without epochs.

    table: a row per run and epoch with the columns line (what the legend says), order (its place in `STYLES`), run,
    epoch and test_top1 (%), perhaps lr, of which falls to less than half are marked, and classes, which tell what
    chance is. Of six epochs or more the last third stands enlarged on the right, where the lines part. More than
    `MOST` lines have panels of their own, each beside the one of order 1 of the same network, the baseline's.
    """
    if table.empty:
        return None
    if table["line"].nunique() > MOST:
        return panel_each(table, title)
    last, runs = table["epoch"].max(), table.groupby("line")["run"].nunique().max()
    parts = {"all epochs": table, "the last third, enlarged": table[table["epoch"] > last * 2 / 3]}
    parts = parts if last >= 6 else {"": table}
    what = "Test accuracy over epochs" + (f", mean ± sd of up to {runs} runs" if runs > 1 else "")
    fig, axes = figure(
        what, title, 4.2, ncols=len(parts), width_ratios=(3, 2)[: len(parts)], squeeze=False
    )
    for ax, (name, part) in zip(axes[0], parts.items(), strict=True):
        sns.lineplot(
            part,
            x="epoch",
            y="test_top1",
            errorbar="sd",
            legend=ax is axes[0, 0],
            ax=ax,
            **looks(table),
        )
        for line, epochs in part.groupby("line"):
            if epochs["epoch"].nunique() == 1:  # a line of one point is none
                look = looks(table)["palette"][line]
                ax.errorbar(
                    epochs["epoch"].iloc[0],
                    epochs["test_top1"].mean(),
                    fmt="o",
                    color=look,
                    markersize=4,
                )
        ax.set(xlabel="epoch", ylabel=TOP1)
        ax.set_title(name, fontsize=9)
        ax.xaxis.get_major_locator().set_params(integer=True)
        drops = [epoch for epoch in lr_drops(table) if epoch >= part["epoch"].min()]
        for i, epoch in enumerate(drops):
            ax.axvline(
                epoch,
                color="0.6",
                linewidth=0.6,
                zorder=0,
                label="_" if i else "learning rate drops",
            )
    if "classes" in table and table["classes"].nunique() == 1:
        chance = 100 / table["classes"].iloc[0]
        axes[0, 0].axhline(
            chance,
            color="0.6",
            linewidth=1,
            linestyle=":",
            zorder=0,
            label=f"chance ({chance:g} %)",
        )
    legend_below(fig, axes[0, 0])
    return fig


def panel_each(table: pd.DataFrame, title: str) -> Figure:
    """`learning_curves` of many lines, but for the first third of the epochs, in which most rise."""
    last, first, network = (
        table["epoch"].max(),
        table["order"] <= 1,
        table["line"].str.partition(",")[0],
    )
    lines = (table[~first] if (~first).any() else table).sort_values("order")["line"].unique()
    what = "Test accuracy of each method after a third of the epochs, mean ± sd of the seeds, beside the baseline"
    fig, axes = panels(dict.fromkeys(lines), f"{what} (orange, dashed)", title, 1.4, 1.5)
    for ax, line in zip(axes, lines, strict=True):
        beside = first & (network == line.partition(",")[0])
        part = table[(beside | (table["line"] == line)) & (table["epoch"] > last / 3)]
        sns.lineplot(
            part, x="epoch", y="test_top1", errorbar="sd", legend=False, ax=ax, **looks(table)
        )
        ax.set(
            xlabel="", ylabel="", ylim=(table["test_top1"][table["epoch"] > last / 2].min(), 100)
        )
        ax.set_title(line.replace(", ", ",\n", 1), fontsize=8)
        ax.tick_params(labelsize=7)
    fig.supxlabel("epoch", fontsize=8)
    fig.supylabel(TOP1, fontsize=8)
    return fig


def lr_drops(table: pd.DataFrame) -> list[float]:
    """The ends of the epochs after which the learning rate of some run was less than half, if the table has it."""
    if "lr" not in table:
        return []
    share = table["lr"] / table.groupby("run")["lr"].shift()
    return sorted(set(table["epoch"][share < 0.499] - 1))  # a cycle's last step down is to a half


def accuracy_over_time(table: pd.DataFrame, title: str = "") -> Figure | None:
    """Test accuracy over the time spent on training, a line per run; the time of a run's teacher is not in it.

    table: as for `learning_curves`, with the column spent, seconds since the start, and perhaps device: times of
    different machines are not to be compared unnoticed, so that their lines are told apart; and shared, of runs whose
    machine did other things, which are left out. None without epochs.
    """
    table = table[~table["shared"]] if "shared" in table else table
    if table.empty:
        return None
    if "device" in table and table["device"].nunique() > 1:
        table = table.assign(line=table["line"] + ", " + table["device"])
    units = {"hours": 3600, "minutes": 60, "seconds": 1}
    unit = next(
        (unit for unit, seconds in units.items() if table["spent"].max() > 2 * seconds), "seconds"
    )
    table = table.assign(time=table["spent"] / units[unit])
    fig, ax = figure("Test accuracy over time, to the last epoch", title, 4.2)
    sns.lineplot(
        table,
        x="time",
        y="test_top1",
        units="run",
        estimator=None,
        linewidth=1.2,
        ax=ax,
        **looks(table),
    )
    ax.set(xlabel=f"time spent on training this network ({unit})", ylabel=TOP1, xlim=(0, None))
    legend_below(fig, ax)
    return fig


def with_published(table: pd.DataFrame, title: str = "") -> Figure | None:
    """Accuracies beside the published ones. Points, not bars: bars start at 0, and differences are of a point or two.

    table: a row per run or citation with the columns line, study (one of `looks` below) and top1 (%); the runs of a
    line of this study are drawn as their mean ± sd, each citation by itself. None without rows.
    """
    if table.empty:
        return None
    what = (
        "Test accuracy here and as published" if table["study"].nunique() > 1 else "Test accuracy"
    )
    names = [*table["line"].unique()]
    fig, ax = figure(what, title, 1.4 + 0.4 * len(names))
    looks = {
        "this study": (NEUTRAL, "o"),
        "published": ("black", "D"),
        "earlier study": (PALE, "s"),
    }
    looks |= {"published, best epoch": ("black", "$\u25c7$")}
    for study, rows in table.groupby("study"):
        colour, mark = looks[study]
        at = rows["line"].map(names.index) + (0 if study == "this study" else 0.25)
        if study == "this study":
            told = rows.groupby(at)["top1"].agg(["mean", "std"])
            ax.errorbar(
                told["mean"],
                told.index,
                xerr=told["std"].fillna(0),
                fmt=mark,
                color=colour,
                label=study,
            )
        else:
            ax.scatter(rows["top1"], at, marker=mark, color=colour, s=30, label=study)
    ax.update_datalim(
        [(table["top1"].mean() + points, 0) for points in (-1, 1)]
    )  # hundredths must not look like much
    ax.set_yticks(range(len(names)), names)
    ax.set(
        xlabel=f"{TOP1}; here: last epoch, mean ± sd of the seeds", ylim=(len(names) - 0.4, -0.6)
    )
    ax.grid(axis="x", alpha=0.3)
    legend_below(fig, ax)
    return fig


def step_times(
    whole: pd.DataFrame, parts: pd.DataFrame, floor: pd.DataFrame, title: str = ""
) -> Figure:
    """The parts of a training step stacked, beside whole steps and the least that the machine could need for each.

    whole: columns training (what is trained), step, ms and images/s; parts, of the first training: part and ms; floor:
    training and ms.
    """
    fig, ax = figure("Time of a training step, and of its parts", title, 2.1 + 0.42 * len(whole))
    ends, least = parts["ms"].cumsum(), whole["training"].map(floor.set_index("training")["ms"])
    shades = sns.color_palette(SEQUENTIAL, len(parts))
    for part, ms, end, shade in zip(parts["part"], parts["ms"], ends, shades, strict=True):
        label = f"{part} ({ms:.1f} ms)"
        ax.barh(
            f"parts of {whole['training'][0]}",
            ms,
            left=end - ms,
            color=shade,
            edgecolor="white",
            label=label,
        )
    bars = ax.barh(whole["training"] + ": " + whole["step"], whole["ms"], color=PALE)
    ax.bar_label(
        bars, [f"{rate:,.0f} images/s" for rate in whole["images/s"]], padding=4, fontsize=8
    )
    ax.vlines(
        least, whole.index + 0.6, whole.index + 1.4, "black", "--", linewidth=1, label="floor"
    )
    ax.invert_yaxis()
    ax.set(xlabel="milliseconds a step", xlim=(0, 1.22 * max(ends.max(), whole["ms"].max())))
    legend_below(fig, ax)
    return fig


def looks(table: pd.DataFrame) -> dict:
    """How seaborn is to draw each line: with marks only where epochs are few."""
    styles = line_styles(dict(zip(table["line"], table["order"], strict=True)))
    colours, dashes, markers = (
        {line: style[i] for line, style in styles.items()} for i in range(3)
    )
    markers = markers if table["epoch"].max() < 6 else False
    return {
        "hue": "line",
        "style": "line",
        "palette": colours,
        "dashes": dashes,
        "markers": markers,
    }
