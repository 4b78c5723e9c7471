"""Arrays -> matplotlib Figures of images, curves and links. Each has one message, in its title, and units on its axes.

All are made for a notebook's width, nine inches, and of palettes that a colour-blind reader can tell apart.
"""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from kdnb import attention
from kdnb.charts import legend_below
from kdnb.data import ImageSet
from kdnb.models import create_model
from kdnb.runs import Run

__all__ = [
    "all_links",
    "image_grid",
    "learning_curves",
    "link_entropy",
    "link_history",
    "link_matrix",
    "links_by_class",
    "map_distances",
    "run_links",
]

PALETTE = "colorblind"
SEQUENTIAL = "viridis"
DIVERGING = "PuOr_r"
WIDTH = 9  # inches
TITLE = 10  # points


# Images and curves


def image_grid(images: ImageSet, columns: int = 10, rows: int = 2) -> Figure:
    """The first images of `columns` classes spread over the set, `rows` of each, under their names."""
    classes = np.linspace(0, len(images.classes) - 1, min(columns, len(images.classes))).round().astype(int)
    lines = max(1 + in_lines(images.classes[label]).count("\n") for label in classes)
    fig, axes = plt.subplots(
        rows, len(classes), figsize=(WIDTH, 0.86 * rows + 0.3 + 0.13 * lines), squeeze=False, layout="constrained"
    )
    labels = images.labels.numpy()
    for column, label in zip(axes.T, classes, strict=True):
        members = np.flatnonzero(labels == label)[:rows]
        for ax in column:
            ax.axis("off")
        for ax, member in zip(column, members, strict=False):
            aspect = 1.0 if images.aspect is None else float(images.aspect[member])
            ax.imshow(images.images[member].permute(1, 2, 0).numpy(), aspect=1 / aspect)
        column[0].set_title(in_lines(images.classes[label]), fontsize=7)
    shown = "" if len(classes) == len(images.classes) else f", {len(classes)} of which are shown"
    fig.suptitle(f"{len(images):,} images in {len(images.classes)} classes{shown}", fontsize=TITLE, wrap=True)
    return fig


def learning_curves(runs: dict[str, Run]) -> Figure:
    """Test accuracy over epochs, a line per run."""
    rows = [run.metrics.assign(network=name) for name, run in runs.items()]
    table = pd.concat(rows, ignore_index=True)
    fig, ax = plt.subplots(figsize=(7, 3.6), layout="constrained")
    sns.lineplot(table, x="epoch", y="test_top1", hue="network", style="network", palette=PALETTE, ax=ax)
    ends = {name: run.metrics["test_top1"].iloc[-1] for name, run in runs.items()}
    top = max(ends.values())
    first = [name for name, value in ends.items() if round(value, 2) == round(top, 2)]
    who = "all networks" if len(first) == len(ends) > 1 else " and ".join(first)
    verb = f"end{'s' * (len(first) == 1)}" + (" highest," if len(first) < len(ends) else "")
    ax.set_title(f"{who[0].upper()}{who[1:]} {verb} at {top:.2f} %", fontsize=TITLE, wrap=True)
    ax.set(xlabel="epoch", ylabel="test accuracy, top-1 (%)")
    ax.xaxis.get_major_locator().set_params(integer=True)
    legend_below(fig, ax)
    sns.despine(fig)
    return fig


# Links


def link_matrix(links: np.ndarray, teacher_blocks: Sequence[str], student_blocks: Sequence[str]) -> Figure:
    """Which student block learns from which teacher block.

    links: mean attention (T, S), rows sum to one; the names of the T and S blocks, shallow to deep, perhaps followed
    by two spaces and their size.
    """
    T, S = links.shape
    fig, ax = plt.subplots(figsize=(min(WIDTH, 3 + 0.72 * S), max(3.7, 1.6 + 0.27 * T)), layout="constrained")
    heatmap(ax, links, teacher_blocks, student_blocks, numbers=S <= 10)
    fig.colorbar(ax.images[0], ax=ax, label="mean attention (each row sums to 1)", pad=0.02)
    sizes = [np.array([area(block) for block in blocks]) for blocks in (teacher_blocks, student_blocks)]
    alike = sizes[0][:, None] == sizes[1]
    if all("×" in block for block in (*teacher_blocks, *student_blocks)) and alike.any(1).all():
        share, even = 100 * (links * alike).sum() / T, 100 * alike.mean()
        title = f"{share:.0f} % of attention joins maps of the same size (without preference: {even:.0f} %)"
    else:
        t, s = np.unravel_index(links.argmax(), links.shape)
        title = f"Strongest link: teacher {short(teacher_blocks[t])} teaches student {short(student_blocks[s])}"
        title += f" ({links[t, s]:.2f})"
    fig.suptitle(title, fontsize=TITLE, wrap=True)
    return fig


def run_links(run: Run) -> Figure | None:
    """The links of a run's last epoch, over its training images; a sentence for a run without AFD."""
    if run.links is None:
        print("no AFD in this run (beta is 0): nothing is linked")
        return None
    recipe = run.config["recipe"]
    networks = create_model(recipe["teacher"], 2), create_model(recipe["student"], 2)
    return link_matrix(run.links[-1], *(attention.block_labels(n, recipe["image_size"]) for n in networks))


def all_links(runs: Sequence[Run]) -> dict[str, Figure]:
    """{"links-RUN": its `run_links`} of the runs with AFD."""
    return {f"links-{run.name}": run_links(run) for run in runs if run.links is not None}


def link_entropy(links: np.ndarray, teacher_blocks: Sequence[str]) -> Figure:
    """How far each teacher block spreads its attention: in the mean of the links (n, T, S), and in single images'."""
    mean_entropy, image_entropy = attention.entropy(links.mean(0)), attention.entropy(links).mean(0)
    S = links.shape[2]
    blocks, most = np.arange(len(mean_entropy)), np.log2(S)
    colours = sns.color_palette(PALETTE)
    fig, ax = plt.subplots(figsize=(WIDTH, 3.2), layout="constrained")
    ax.vlines(blocks, image_entropy, mean_entropy, color="0.75", zorder=1)
    ax.scatter(blocks, mean_entropy, color=colours[0], label="of the mean links")
    ax.scatter(blocks, image_entropy, color=colours[1], marker="s", label="of one image's links, on average")
    ax.axhline(most, color="0.4", linestyle="--", linewidth=1)
    alike = f"{S} blocks alike: {most:.2f} "
    ax.text(blocks[-1] + 0.4, 1.03 * most, alike, ha="right", va="bottom", fontsize=8, color="0.3")
    ax.set_xticks(blocks, stacked(teacher_blocks), fontsize=8)
    ax.set(xlabel="teacher block", ylabel="entropy (bits)", ylim=(0, 1.35 * most), xlim=(-0.5, len(blocks) - 0.5))
    low = int(mean_entropy.argmin())
    title = f"Teacher block {short(teacher_blocks[low])} is the choosiest: its links reach {2 ** mean_entropy[low]:.1f}"
    ax.set_title(f"{title} of the student's {S} blocks", fontsize=TITLE, wrap=True)
    ax.legend(frameon=False, loc="upper left", fontsize=8)  # above the dashed line, where no mark can be
    sns.despine(fig)
    return fig


def link_history(history: np.ndarray, teacher_blocks, student_blocks, most: int = 7) -> Figure:
    """The links (epochs, T, S) of up to `most` epochs side by side; below, how far each epoch is from the last."""
    settled = attention.settled(history)
    epochs, T, _ = history.shape
    shown = np.unique(np.geomspace(1, epochs, min(most, epochs)).round().astype(int))  # most happens early
    fig = plt.figure(figsize=(WIDTH, 3.6 + 0.07 * T), layout="constrained")
    grid = fig.add_gridspec(2, len(shown), height_ratios=[1.3 + 0.07 * T, 1.3])
    axes = [fig.add_subplot(grid[0, i]) for i in range(len(shown))]
    for ax, epoch in zip(axes, shown, strict=True):
        ax.imshow(history[epoch - 1], vmin=0, vmax=history.max(), cmap=SEQUENTIAL, aspect="auto")
        ax.set_title(f"epoch {epoch}", fontsize=8)
        ax.set_xticks([0, len(student_blocks) - 1], [short(student_blocks[0]), short(student_blocks[-1])], fontsize=7)
        ax.set_yticks([])
    axes[0].set_yticks([0, T - 1], [short(teacher_blocks[0]), short(teacher_blocks[-1])], fontsize=7)
    axes[0].set_ylabel("teacher block")
    axes[len(axes) // 2].set_xlabel("student block")
    fig.colorbar(axes[0].images[0], ax=axes, label="mean attention", pad=0.01)
    left = 50 * np.abs(history - history[-1]).sum(-1).mean(-1)
    way = fig.add_subplot(grid[1, :])
    way.plot(np.arange(1, epochs + 1), left, color=sns.color_palette(PALETTE)[0], marker="." if epochs < 60 else None)
    way.axvline(settled, color="0.4", linestyle="--", linewidth=1)
    way.set(xlabel="epoch", ylabel="attention still\nto move (%)", ylim=(0, None))
    way.xaxis.get_major_locator().set_params(integer=True)
    sns.despine(ax=way)
    title = f"By epoch {settled} of {epochs}, nine tenths of the links' way is done: {left[0]:.0f} % of attention moved"
    fig.suptitle(title, fontsize=TITLE, wrap=True)
    return fig


def links_by_class(links, labels, classes, teacher_blocks, student_blocks, most: int = 12) -> Figure:
    """Which classes use other links than the mean: how far each is from it, and in which links the first two are.

    links: (n, T, S) of single images; labels: (n,); the `most` deviating classes are shown.
    """
    mean, by_class = links.mean(0), attention.class_links(links, labels, len(classes))
    deviation = attention.deviation(by_class, mean)
    chance = attention.chance_deviation(links, labels, len(classes))
    order = [c for c in np.argsort(-deviation) if np.isfinite(deviation[c])]
    first, T = order[:most], len(mean)
    fig = plt.figure(figsize=(WIDTH, max(3.4, 1.3 + 0.2 * T, 1.3 + 0.22 * len(first))), layout="constrained")
    bars, *maps = fig.subplots(1, 3, width_ratios=[1.1, 1, 1])
    rows = np.arange(len(first))
    bars.barh(rows, 100 * deviation[first], color=sns.color_palette(PALETTE)[0], height=0.7)
    bars.scatter(100 * chance[first], rows, marker="|", s=90, color="black", zorder=3)
    bars.set_yticks(rows, [classes[c].replace("_", " ") for c in first], fontsize=8)
    bars.invert_yaxis()
    bars.set_xlabel("attention on other links\nthan the mean's (%)\nblack marks: chance (95 %)")
    sns.despine(ax=bars)
    extreme = max(np.abs(by_class[c] - mean).max() for c in first[:2])
    for ax, c in zip(maps, first[:2], strict=False):
        heatmap(ax, by_class[c] - mean, teacher_blocks, student_blocks, (-extreme, extreme), DIVERGING, sizes=False)
        ax.set_title(classes[c].replace("_", " "), fontsize=9)
    for ax in maps[len(first[:2]) :]:
        ax.axis("off")
    fig.colorbar(maps[0].images[0], ax=maps, label="attention, class minus mean", pad=0.02)
    beyond = int((deviation[order] > chance[order]).sum())
    title = f"{beyond} of {len(order)} classes use other links more than chance would have it"
    fig.suptitle(
        f"{title}; “{classes[order[0]].replace('_', ' ')}” most ({100 * deviation[order[0]]:.1f} %)", fontsize=TITLE
    )
    return fig


# Maps


def map_distances(distances: dict[str, np.ndarray], teacher_blocks: Sequence[str]) -> Figure:
    """How far the students' maps are from each teacher block's: {student: (T,)}, plain first, means over all images."""
    (_, before), (_, after) = distances.items()
    blocks = np.arange(len(before))
    fig, ax = plt.subplots(figsize=(WIDTH, 3.2), layout="constrained")
    ax.vlines(blocks, after, before, color="0.75", zorder=1)
    for (name, values), marker, colour in zip(distances.items(), "so", (1, 0), strict=True):
        ax.scatter(blocks, values, marker=marker, color=sns.color_palette(PALETTE)[colour], label=name)
    ax.set_xticks(blocks, stacked(teacher_blocks), fontsize=8)
    ax.set(
        xlabel="teacher block", ylabel="distance of maps (1 − cosine)", ylim=(0, 1.12 * max(before.max(), after.max()))
    )
    closer = int((after < before).sum())
    change = 100 * (after.mean() / before.mean() - 1)
    title = f"Distillation brings the student closer to {closer} of {len(blocks)} teacher blocks"
    ax.set_title(f"{title} (distance {change:+.0f} % on average)".replace("-", "−"), fontsize=TITLE, wrap=True)
    ax.legend(frameon=False, fontsize=8, ncols=2, loc="upper right")
    sns.despine(fig)
    return fig


# Labels


def heatmap(ax, values, teacher_blocks, student_blocks, limits=(0, None), cmap=SEQUENTIAL, sizes=True, numbers=False):
    """Teacher blocks down, student blocks across, from the first row and column at the top left."""
    image = ax.imshow(values, vmin=limits[0], vmax=limits[1], cmap=cmap, aspect="auto")
    many = values.shape[1] > 10
    across = stacked(student_blocks) if sizes else [short(b) for b in student_blocks]
    ax.set_xticks(range(values.shape[1]), across, fontsize=7, rotation=90 if many else 0)
    down = teacher_blocks if sizes else [short(b) for b in teacher_blocks]
    ax.set_yticks(range(values.shape[0]), down, fontsize=7)
    units = ["channels×height×width" if "×" in labels[0] else "group.block" for labels in (across, down)]
    ax.set_xlabel(f"student block ({units[0]})", fontsize=9)
    ax.set_ylabel(f"teacher block ({units[1]})", fontsize=9)
    ax.tick_params(length=0)
    for (t, s), value in np.ndenumerate(values) if numbers else ():
        red, green, blue, _ = image.cmap(image.norm(value))
        dark = 0.3 * red + 0.59 * green + 0.11 * blue < 0.5
        ax.text(s, t, f"{value:.2f}", ha="center", va="center", fontsize=7, color="white" if dark else "black")


def area(block: str) -> str:
    """The height×width in a block's label, or "" if it has none."""
    return block.partition("×")[2]


def short(block: str) -> str:
    """The name of a block without its size."""
    return block.split()[0]


def stacked(blocks: Sequence[str]) -> list[str]:
    """Names over sizes; names alone where it is many blocks."""
    return [short(b) if len(blocks) > 10 else "\n".join(b.split()) for b in blocks]


def in_lines(name: str, width: int = 11) -> str:
    """A class name broken at its underscores into lines of up to `width` letters."""
    lines = [""]
    for word in name.split("_"):
        if lines[-1] and len(lines[-1]) + len(word) >= width:
            lines.append(word)
        else:
            lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines)
