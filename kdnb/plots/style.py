"""What all figures share: a colour and a dash per role, a notebook's width, titles, labels and legends."""

import textwrap
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

__all__ = ["ROLES", "Style", "each", "role_styles", "save"]

WIDTH = 9  # inches, a notebook's
SEQUENTIAL = "viridis"
NEUTRAL, PALE = "#4d6073", "#c3ccd5"  # of what is nobody's role


class Style(NamedTuple):
    """How a line is drawn: its colour, its dashes (on, off, ... in line widths; "": solid) and its mark."""

    color: str
    dashes: tuple[float, ...] | str
    marker: str


ROLES = {  # a role looks alike in every figure, also to a colour-blind reader and in grey
    "teacher": Style("#333333", (1.2, 1.2), "D"),
    "baseline": Style("#de8f05", (4, 1.5), "s"),
    "distilled": Style("#0173b2", "", "o"),
}
COLOURS = ["#029e73", "#cc78bc", "#56b4e9", "#d55e00", "#949494", "#ca9161", "#ece133", "#fbafe4"]
DASHES = [(6, 1.5, 1.2, 1.5), (2.5, 1), (6, 1.5, 1.2, 1.5, 1.2, 1.5), (8, 2), (3, 1, 1.2, 1), (1, 2), (5, 3), (9, 1)]
FURTHER = [Style(*look) for look in zip(COLOURS, DASHES, "^vPX<>*h", strict=True)]


def role_styles(lines: dict[str, str]) -> dict[str, Style]:
    """{line: role} -> {line: Style}: its role's; for other roles, and a role's second line, in the order given."""
    first, further = {role: line for line, role in reversed(lines.items()) if role in ROLES}, cycle(FURTHER)
    return {line: ROLES[role] if first.get(role) == line else next(further) for line, role in lines.items()}


def figure(what: str, title: str, height: float, width: float = WIDTH, mosaic=None, **grid) -> tuple[Figure, Axes]:
    """A figure under what it shows, and of which data set or run, if that is said; and its axes, see matplotlib."""
    fig = plt.figure(figsize=(min(width, WIDTH), height), layout="constrained")
    fig.suptitle(f"{what} – {title}" if title else what, fontsize=10, wrap=True)
    axes = fig.subplot_mosaic(mosaic, **grid) if mosaic else fig.subplots(**grid)
    sns.despine(fig)
    return fig, axes


def pictures(rows: int, columns: int, what: str, title: str, gap: float = 0.3) -> tuple[Figure, np.ndarray]:
    """A figure of square pictures without frames, and their axes (rows, columns); `gap` inches between the rows."""
    side = (WIDTH - 1.2) / max(columns, 6)  # a lone image need not fill the page
    width = 1.2 + side * max(columns, 2)
    fig, axes = figure(what, title, 0.5 + rows * (side + gap), width, nrows=rows, ncols=columns, squeeze=False)
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[], frame_on=False)
    return fig, axes


def legend_below(fig: Figure, ax: Axes) -> None:
    """Lines may pass anywhere: what they are stands below the axes, where it hides none."""
    handles, names = ax.get_legend_handles_labels()
    if ax.get_legend() is not None:
        ax.get_legend().remove()
    columns = 3 if max(map(len, names), default=0) < 30 else 2
    fig.legend(handles, names, loc="outside lower center", ncols=columns, frameon=False, fontsize=8)


def each(draw: Callable[[object, str], Figure | None], things: Mapping[str, object]) -> dict[str, Figure | None]:
    """{"learning-curves-NAME": figure} of what `draw` makes of each of {name: thing}, the name being its title."""
    return {f"{draw.__name__.replace('_', '-')}-{name}": draw(thing, name) for name, thing in things.items()}


def save(figures: Mapping[str, Figure | None], folder: str | Path) -> list[Path]:
    """Keep {name: figure} as NAME.png in `folder`, without those that are None."""
    drawn = {Path(folder) / f"{name}.png": fig for name, fig in figures.items() if fig is not None}
    Path(folder).mkdir(parents=True, exist_ok=True)
    for path, fig in drawn.items():
        fig.savefig(path, dpi=150)
    return list(drawn)


def spread(count: int, most: int) -> np.ndarray:
    """Up to `most` of the numbers below `count`, the first and the last among them."""
    return np.linspace(0, count - 1, min(most, count)).round().astype(int)


def size(shape: Sequence[int]) -> str:
    return "×".join(str(n) for n in shape)


def in_lines(name: str, width: int = 11) -> str:
    """A class name in words, broken into lines of up to `width` letters."""
    return textwrap.fill(name.replace("_", " "), width, break_long_words=False)
