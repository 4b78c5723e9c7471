"""Figures of networks in use: what they predict, what they cost, how well they transfer."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from kdnb.plots.style import ROLES, NotebookFigure, figure, image_axes, legend_below
from kdnb.plots.text import wrap

MOST_IMAGES = 8


def predictions(
    pixels: Sequence[np.ndarray], predicted: pd.DataFrame, title: str = ""
) -> NotebookFigure:
    """Images in a row, with the prediction of each network below.

    Args:
        pixels: uint8 (height, width, 3), an array per image. The first MOST_IMAGES are drawn.
        predicted: a row per image, a column of texts per network; its index names the images.
    """
    count = min(len(pixels), MOST_IMAGES)
    subset = "" if count == len(pixels) else f", {count} of {len(pixels)} images"
    heading = f"The most probable class by each network{subset}"
    fig, axes = image_axes(1, count, heading, title, gap=0.4 + 0.3 * predicted.shape[1])
    for ax, image, (name, row) in zip(axes[0], pixels, predicted.iterrows(), strict=False):
        ax.imshow(image)
        ax.set_title(wrap(str(name), 14), fontsize=7)
        for line, (network, text) in enumerate(row.items()):
            ax.annotate(
                wrap(text, 16),
                (0.5, 0),
                (0, -4 - 19 * line),
                xycoords="axes fraction",
                textcoords="offset points",
                ha="center",
                va="top",
                fontsize=7,
                color=ROLES[network].color,
            )
    handles = [axes[0][0].plot([], [], "o", color=ROLES[n].color, label=n)[0] for n in predicted]
    fig.legend(
        handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=8
    )
    return fig


def accuracy_and_latency(table: pd.DataFrame, title: str = "") -> NotebookFigure:
    """Accuracy over the time of one image on one CPU thread; the mark's area is the file's size.

    Args:
        table: a row per network and precision, as `analysis.deployment.cost_table` returns it. Rows
            without an accuracy are left out.
    """
    table = table.dropna(subset=["top-1 (%)"])
    fig, ax = figure("Accuracy and the time of one image on one CPU thread", title, 4.2, 7)
    largest = table["file (MB)"].max()
    latency = "ms, batch 1, 1 thread"
    for role, rows in table.groupby("network", sort=False):
        color, _, marker = ROLES[role]
        ax.plot(rows[latency], rows["top-1 (%)"], color=color, linewidth=1, alpha=0.5)
        for (_, row), face in zip(rows.iterrows(), (color, "white"), strict=False):
            mark = {"marker": marker, "facecolor": face, "edgecolor": color}
            area = 30 + 220 * row["file (MB)"] / largest
            ax.scatter(row[latency], row["top-1 (%)"], s=area, zorder=3, **mark)
            label = f"{role}, {row['precision']}, {row['file (MB)']:.2g} MB"
            ax.scatter([], [], s=30, label=label, **mark)
    ax.set(xscale="log", xlabel="ms (logarithmic)", ylabel="test top-1 accuracy (%)")
    ax.xaxis.set_major_formatter("{x:g}")
    ax.xaxis.set_minor_formatter("{x:g}")
    ax.margins(0.15)
    legend_below(fig, ax)
    return fig


def probe_accuracy(table: pd.DataFrame, title: str = "") -> NotebookFigure:
    """The accuracy of linear probes with 95 % intervals.

    Args:
        table: a row per network, as `analysis.probe.linear_probe` returns it.
    """
    fig, ax = figure("Accuracy of a linear probe on frozen features", title, 2.6, 7)
    for y, row in table.iterrows():
        style = ROLES[row["network"]]
        top1 = row["top-1 (%)"]
        errors = [[top1 - row["low"]], [row["high"] - top1]]
        ax.errorbar(top1, y, xerr=errors, fmt=style.marker, color=style.color, capsize=3)
    labels = [f"{row['network']}\n({row['features']} features)" for _, row in table.iterrows()]
    ax.set_yticks(range(len(table)), labels, fontsize=8)
    ax.set_ylim(len(table) - 0.5, -0.5)
    ax.set_xlabel("test top-1 accuracy (%), with 95 % intervals over the test images", fontsize=8)
    return fig
