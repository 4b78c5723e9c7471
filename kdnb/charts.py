"""The tables of kdnb.results -> figures of results, as {file name: matplotlib Figure}; `save` keeps them.

Each has one message in its title, computed from what it shows, and units on its axes.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kdnb.results import PUBLISHED, trained_with
from kdnb.runs import write_atomically

__all__ = ["accuracy_over_time", "learning_curves", "legend_below", "save", "step_times", "with_published"]

SVG_BYTES = 150_000  # a larger drawing is kept as PNG alone
TOP1 = "test accuracy, top-1 (%)"
STUDIES = {"this study": "o", "published": "D", "earlier study": "s"}


def learning_curves(curves: pd.DataFrame) -> dict[str, Figure]:
    """Test accuracy over epochs, a line per network and training: the mean over seeds within a band of ± sd.

    curves: of `results.curves`. A figure per data set and way of shortening; all epochs on the left and, of many,
    the last third on the right, where the lines part.
    """
    figures = {}
    for name, title, part in panels(curves):
        last = int(part["epoch"].max())
        late = part[part["epoch"] > last * 2 / 3] if last >= 6 else part[:0]  # few epochs: nothing to enlarge
        ratios = (3, 2) if len(late) else (1,)
        fig, axes = plt.subplots(
            1, len(ratios), figsize=(10, 4.4), layout="constrained", width_ratios=ratios, squeeze=False
        )
        style = {"x": "epoch", "y": "test_top1", "hue": "line", "style": "line", "palette": palette(part)}
        style |= {"hue_order": lines(part), "style_order": lines(part), "errorbar": "sd", "markers": last < 6}
        whole = axes[0, 0]
        sns.lineplot(part, ax=whole, **style)
        whole.set(xlabel="epoch", ylabel=TOP1, title=f"all {last} epochs")
        for end in axes[0, 1:]:
            sns.lineplot(late, ax=end, legend=False, **style)
            end.set(xlabel="epoch", ylabel="", title="the last third, enlarged")
        for ax in axes[0]:
            ax.xaxis.get_major_locator().set_params(integer=True)
            ax.title.set_fontsize(9)
        legend_below(fig, whole)
        sns.despine(fig)
        fig.suptitle(f"{title}\n{outcome(part)}{seeds_note(part)}", fontsize=10)
        figures[f"learning-curves-{name}"] = fig
    return figures


def accuracy_over_time(curves: pd.DataFrame) -> dict[str, Figure]:
    """Test accuracy over the time spent on training, a line per run; the time of a run's teacher is not in it."""
    figures = {}
    for name, title, part in panels(curves):
        factor, unit = time_unit(part["spent"].max())
        if part["device"].nunique() > 1:  # times on different machines are not to be compared unnoticed
            part = part.assign(line=part["line"] + ", " + part["device"])
        part = part.assign(time=part["spent"] / factor)
        fig, ax = plt.subplots(figsize=(8, 4.4), layout="constrained")
        colours = palette(part)
        style = {"hue": "line", "hue_order": lines(part), "palette": colours}
        sns.lineplot(
            part,
            x="time",
            y="test_top1",
            style="line",
            style_order=lines(part),
            units="folder",
            estimator=None,
            linewidth=1.2,
            ax=ax,
            **style,
        )
        ends = part.loc[part.groupby("folder")["epoch"].idxmax()]
        sns.scatterplot(ends, x="time", y="test_top1", s=45, zorder=3, legend=False, ax=ax, **style)
        ax.set(xlabel=f"time spent on training this network ({unit})", ylabel=TOP1, xlim=(0, None))
        legend_below(fig, ax)
        sns.despine(fig)
        ax.set_title(f"{title}\n{price(part)}", fontsize=10)
        figures[f"accuracy-over-time-{name}"] = fig
    return figures


def with_published(table: pd.DataFrame) -> dict[str, Figure]:
    """Full-length results beside the published and the earlier study's, a figure per data set that has both.

    table: of `results.tidy`. Points, not bars: bars have to start at 0, and the differences are of a point or two.
    """
    figures = {}
    full = table[table["changed"] == ""]
    for dataset in sorted(set(full["dataset"]) & {c.dataset for c in PUBLISHED}):
        runs = full[full["dataset"] == dataset].sort_values(["teacher", "method", "network"])
        rows = [(line_name(r.network, r.method, r.teacher), "this study", r.top1, r.kind) for r in runs.itertuples()]
        for c in PUBLISHED:
            if c.dataset == dataset:
                ours = runs[(runs["network"] == c.network) & (runs["teacher"] == c.teacher) & (runs["kind"] == c.kind)]
                method = ours["method"].iloc[0] if len(ours) else c.kind
                study = c.source if c.source == "earlier study" else "published"
                rows.append((line_name(c.network, method, c.teacher), study, c.top1, c.kind))
        told = pd.DataFrame(rows, columns=["line", "study", "top1", "kind"])
        order = list(dict.fromkeys(told["line"]))
        fig, ax = plt.subplots(figsize=(9, 1.4 + 0.5 * len(order)), layout="constrained")
        colours = sns.color_palette("colorblind", len(STUDIES))
        for (study, marker), colour, shift in zip(STUDIES.items(), colours, (-0.2, 0.0, 0.2), strict=True):
            some = told[told["study"] == study]
            if study == "this study":
                some = some.groupby("line", sort=False)["top1"].agg(["mean", "std"]).reset_index()
                ax.errorbar(some["mean"], at(some["line"], order, shift), xerr=some["std"], fmt="none", color=colour)
                some = some.rename(columns={"mean": "top1"})
            ax.scatter(
                some["top1"], at(some["line"], order, shift), marker=marker, color=colour, s=36, label=study, zorder=3
            )
        ax.set(xlabel=f"{TOP1}; here: last epoch, mean ± sd of the seeds", yticks=range(len(order)), yticklabels=order)
        ax.invert_yaxis()
        ax.margins(x=0.06)
        ax.grid(axis="x", alpha=0.3)
        sns.despine(fig, left=True)
        ax.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False, fontsize=8)
        fig.suptitle(f"{dataset}: {distance(told)}", fontsize=10)
        figures[f"with-published-{dataset}"] = fig
    return figures


def step_times(whole: pd.DataFrame, parts: pd.DataFrame, floor: pd.DataFrame, machine: str) -> Figure:
    """The parts of a distillation step stacked, beside whole steps and the floor: tables of `kdnb.speed.Speed`."""
    fig, ax = plt.subplots(figsize=(9, 1.9 + 0.42 * len(whole)), layout="constrained")
    colours = sns.color_palette("colorblind", len(parts))
    left = 0.0
    for part, ms, colour in zip(parts["part"], parts["ms"], colours, strict=True):
        ax.barh("engine, eager, in parts", ms, left=left, color=colour, label=f"{part} ({ms:.1f} ms)")
        left += ms
    for step, ms, rate in zip(whole["step"], whole["ms"], whole["images/s"], strict=True):
        ax.barh(step, ms, color="0.6")
        ax.annotate(f" {rate:,.0f} images/s", (ms, step), va="center", fontsize=8)
    least = floor["ms"].max()
    ax.axvline(least, color="black", linestyle="--", linewidth=1, label=f"floor ({least:.1f} ms)")
    ax.invert_yaxis()
    ax.set(xlabel="milliseconds a step", xlim=(0, 1.22 * max(left, whole["ms"].max())))
    best = whole.loc[whole["ms"].idxmin()]
    title = f"The fastest step, {best['step']}, takes {best['ms'] / least:.1f} times the floor"
    ax.set_title(f"{title}\n{machine.split(';')[0]}", fontsize=10)
    legend_below(fig, ax)
    sns.despine(fig)
    return fig


def save(figures: Mapping[str, Figure], folder: Path) -> list[Path]:
    """Keep each figure as PNG and, if it is small, as SVG, atomically; say where. Raises InputError."""
    paths = []
    for name, fig in figures.items():
        for kind in ("png", "svg"):
            path, data = Path(folder) / f"{name}.{kind}", io.BytesIO()
            with plt.rc_context({"svg.hashsalt": name}):  # the same picture is the same file
                fig.savefig(data, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else None)
            if kind == "svg" and data.tell() > SVG_BYTES:
                path.unlink(missing_ok=True)  # of a smaller figure before
                continue
            write_atomically(path, data.getvalue())
            paths.append(path)
    for path in paths:
        print(path)
    if not paths:
        print("nothing to draw: there is no run for it")
    return paths


# What the figures share


def at(names: pd.Series, order: list[str], shift: float) -> list[float]:
    """The heights at which rows are drawn."""
    return [order.index(name) + shift for name in names]


def line_name(network: str, method: str, teacher: str = "") -> str:
    """How a legend calls a network that was trained so. The teacher is named by its network alone."""
    taught = f" from {teacher.split(' ')[0]}" if teacher else ""
    return f"{network}: {trained_with(method)}{taught}"


def panels(curves: pd.DataFrame) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """File name, title and rows of what may be drawn together: one data set, shortened or changed in one way.

    Adds the column "line", the name of each curve, plainly trained networks first.
    """
    if curves.empty:
        return
    named = curves.assign(
        line=[line_name(*k) for k in curves[["network", "method", "teacher"]].itertuples(index=False)]
    )
    named = named.sort_values(["dataset", "changed", "teacher", "method", "network", "seed", "epoch"], kind="stable")
    for dataset, group in named.groupby("dataset"):
        for changed, part in group.groupby("changed"):
            if part["epoch"].max() < 2:
                continue  # one epoch is no curve
            short = re.sub(r" instead of [^;]*", "", changed)
            slug = re.sub(r"[^a-z0-9.]+", "-", f"{dataset} {short}".lower()).strip("-")
            yield slug, f"{dataset} ({short}: no result of the study)" if changed else dataset, part


def legend_below(fig: Figure, ax: Axes) -> None:
    """Lines may pass anywhere: what they are stands below the axes, where it hides none."""
    handles, names = ax.get_legend_handles_labels()
    if ax.get_legend() is not None:
        ax.get_legend().remove()
    fig.legend(handles, names, loc="outside lower center", ncols=2, frameon=False, fontsize=8)


def lines(part: pd.DataFrame) -> list[str]:
    return list(dict.fromkeys(part["line"]))


def palette(part: pd.DataFrame) -> dict[str, tuple]:
    """A colour-blind-safe colour per line."""
    return dict(zip(lines(part), sns.color_palette("colorblind", len(lines(part))), strict=True))


def taught_and_plain(part: pd.DataFrame) -> tuple[pd.DataFrame, pd.Series | None, pd.Series | None]:
    """Means per line after the last epoch; the most accurate distilled student's, and its network's without a teacher.

    Both are None if there is no such pair.
    """
    ends = part.loc[part.groupby("folder")["epoch"].idxmax()]
    mean = ends.groupby(["network", "kind", "line"], sort=False)[["test_top1", "spent"]].mean().reset_index()
    taught = mean[mean["kind"] != "plain"].sort_values("test_top1")
    for best in (row for _, row in taught[::-1].iterrows()):
        plain = mean[(mean["kind"] == "plain") & (mean["network"] == best["network"])]
        if len(plain):
            return mean, best, plain.iloc[0]
    return mean, None, None


def outcome(part: pd.DataFrame) -> str:
    """Where distillation ends against labels alone; without such a pair, who ends highest."""
    mean, best, plain = taught_and_plain(part)
    if best is not None:
        gain = best["test_top1"] - plain["test_top1"]
        where = "level with" if abs(gain) < 0.005 else f"{abs(gain):.2f} points {'above' if gain > 0 else 'below'}"
        return f"{best['line']} ends at {best['test_top1']:.2f} %, {where} labels alone"
    ends = mean.set_index("line")["test_top1"].round(2)
    top = list(ends.index[ends == ends.max()])
    if len(ends) == 1:
        return f"{top[0]} ends at {ends.max():.2f} %"
    return f"{' and '.join(top)} {'ends' if len(top) == 1 else 'end'} highest, at {ends.max():.2f} %"


def seeds_note(part: pd.DataFrame) -> str:
    """What a line and its band are, if any line has several seeds."""
    seeds = part.groupby("line")["folder"].nunique()
    if seeds.max() == 1:
        return ""
    return (
        f" (means of {seeds.min()} to {seeds.max()} runs, band: ± sd)"
        if seeds.min() != seeds.max()
        else (f" (means of {seeds.max()} runs, band: ± sd)")
    )


def time_unit(seconds: float) -> tuple[float, str]:
    return next((f, u) for f, u in ((3600, "hours"), (60, "minutes"), (1, "seconds")) if seconds >= 2 * f or f == 1)


def price(part: pd.DataFrame) -> str:
    """What the most accurate distilled student gained over the same network's plain one, and for how much time."""
    mean, best, plain = taught_and_plain(part)
    if best is not None and part["device"].nunique() == 1:
        gain, ratio = best["test_top1"] - plain["test_top1"], best["spent"] / plain["spent"]
        return f"distilling {best['network']} took {ratio:.1f} x the time of labels alone, for {gain:+.2f} points"
    top = mean.loc[mean["test_top1"].idxmax()]
    factor, unit = time_unit(top["spent"])
    return f"{top['line']} ends at {top['test_top1']:.2f} % after {top['spent'] / factor:.1f} {unit}"


def distance(told: pd.DataFrame) -> str:
    """How far this study's AFD student (or, without one, its first row) is from the published or the earlier number."""
    ours = told[told["study"] == "this study"]
    for line in dict.fromkeys([*ours.loc[ours["kind"] == "afd", "line"], *ours["line"]]):
        mean = ours.loc[ours["line"] == line, "top1"].mean()
        for study in ("published", "earlier study"):
            theirs = told[(told["line"] == line) & (told["study"] == study)]["top1"]
            if len(theirs):
                whose, number = "published" if study == "published" else "the earlier study's", theirs.iloc[0]
                return f"{line} reaches {mean:.2f} %, {mean - number:+.2f} points from {whose} {number:.2f} %"
    return "no row of this study has a published counterpart yet"
