"""Arrays -> matplotlib Figures. Each has one message, in its title, and units on its axes."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from kdnb.data import ImageSet
from kdnb.runs import Run

__all__ = ["image_grid", "learning_curves", "link_matrix"]

PALETTE = "colorblind"
SEQUENTIAL = "viridis"


def image_grid(images: ImageSet, columns: int = 10, rows: int = 2) -> Figure:
    """The first images of `columns` classes spread over the set, `rows` of each, under their names."""
    classes = np.linspace(0, len(images.classes) - 1, min(columns, len(images.classes))).astype(int)
    fig, axes = plt.subplots(rows, len(classes), figsize=(9, 1.1 * rows + 0.4), squeeze=False, layout="constrained")
    labels = images.labels.numpy()
    for column, label in zip(axes.T, classes, strict=True):
        members = np.flatnonzero(labels == label)[:rows]
        for ax in column:
            ax.axis("off")
        for ax, member in zip(column, members, strict=False):
            aspect = 1.0 if images.aspect is None else float(images.aspect[member])
            ax.imshow(images.images[member].permute(1, 2, 0).numpy(), aspect=1 / aspect)
        column[0].set_title(images.classes[label].replace("_", "\n"), fontsize=7)
    fig.suptitle(f"{len(images):,} images in {len(images.classes)} classes", fontsize=10)
    return fig


def learning_curves(runs: dict[str, Run]) -> Figure:
    """Test accuracy over epochs, a line per run."""
    rows = [run.metrics.assign(network=name) for name, run in runs.items()]
    table = pd.concat(rows, ignore_index=True)
    fig, ax = plt.subplots(figsize=(7, 3.6), layout="constrained")
    sns.lineplot(table, x="epoch", y="test_top1", hue="network", style="network", palette=PALETTE, ax=ax)
    ends = {name: run.metrics["test_top1"].iloc[-1] for name, run in runs.items()}
    best = max(ends, key=ends.get)
    ax.set(xlabel="epoch", ylabel="test accuracy, top-1 (%)", title=f"{best} ends highest, at {ends[best]:.2f} %")
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.legend(title=None, frameon=False)
    sns.despine(fig)
    return fig


def link_matrix(links: np.ndarray, teacher_blocks: Sequence[str], student_blocks: Sequence[str]) -> Figure:
    """Which student block learns from which teacher block.

    links: mean attention (T, S), rows sum to one; the names of the T and S blocks, shallow to deep.
    """
    T, S = links.shape
    fig, ax = plt.subplots(figsize=(1.8 + 0.62 * S, 1.5 + 0.26 * T), layout="constrained")
    sns.heatmap(
        links,
        vmin=0,
        cmap=SEQUENTIAL,
        annot=True,
        fmt=".2f",
        annot_kws={"fontsize": 7},
        xticklabels=list(student_blocks),
        yticklabels=list(teacher_blocks),
        cbar_kws={"label": "mean attention (each row sums to 1)"},
        ax=ax,
    )
    ax.set(xlabel="student block (group.block)", ylabel="teacher block (group.block)")
    t, s = np.unravel_index(links.argmax(), links.shape)
    ax.set_title(
        f"Strongest link: teacher {teacher_blocks[t]} teaches student {student_blocks[s]} ({links[t, s]:.2f})",
        fontsize=9,
    )
    ax.tick_params(rotation=0)
    return fig
