"""What all figures share: a style per role and method, size, titles, legends and files."""

import contextlib
import textwrap
import warnings
from collections.abc import Callable, Mapping, Sequence
from html import escape
from io import BytesIO
from itertools import cycle
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from kdnb.plots.display import alt_text, display_image
from kdnb.plots.text import file_stem, without_formulas

WIDTH = 9  # inches, the width of a notebook
SEQUENTIAL = "viridis"
NEUTRAL = "#4d6073"  # NEUTRAL and PALE: for what belongs to no role
PALE = "#c3ccd5"


class Style(NamedTuple):
    """How a line is drawn.

    Args:
        color: any matplotlib colour.
        dashes: lengths on, off, on, ... in line widths; "" is a solid line.
        marker: any matplotlib marker.
    """

    color: str
    dashes: tuple[float, ...] | str
    marker: str


# A role has the same style in every figure; the styles differ in greyscale and with colour
# blindness as well.
ROLES = {
    "teacher": Style("#333333", (1.2, 1.2), "D"),
    "baseline": Style("#de8f05", (4, 1.5), "s"),
    "distilled": Style("#0173b2", "", "o"),
}
COLOURS = ["#029e73", "#cc78bc", "#7a3fa0", "#d55e00", "#949494", "#8c613c", "#b5b000", "#56b4e9"]
DASHES = [
    (6, 1.5, 1.2, 1.5),
    (2.5, 1),
    (6, 1.5, 1.2, 1.5, 1.2, 1.5),
    (8, 2),
    (3, 1, 1.2, 1),
    (1, 2),
    (5, 3),
    (9, 1),
]
MARKERS = "^vPX<>*h"
# The roles, then each colour with four of the dashes: 35 different styles.
STYLES = [*ROLES.values()]
STYLES += [
    Style(COLOURS[i % 8], DASHES[(i + i // 8) % 8], MARKERS[(i + 3 * (i // 8)) % 8])
    for i in range(32)
]


def line_styles(lines: Mapping[str, int]) -> dict[str, Style]:
    """{line: number} -> {line: Style}.

    The first line of a number gets the style `STYLES[number]`, a further line of the same number
    an unused style from the end of `STYLES`. With more lines than styles, styles repeat.
    """
    first_lines = {number: line for line, number in reversed(lines.items())}
    styles = {line: STYLES[number % len(STYLES)] for number, line in first_lines.items()}
    unused = [style for number, style in enumerate(STYLES) if number not in first_lines]
    spare = cycle(unused[::-1] or STYLES)
    return {line: styles[line] if line in styles else next(spare) for line in lines}


class NotebookFigure(Figure):
    """A figure with a `title`.

    A notebook displays it at twice the usual density, with alternative text.
    """

    title = ""

    def fit(self, width: float) -> None:
        """Shrink the figure to `width` inches, unless it is narrower already.

        Below 7 inches the text shrinks with it.
        """
        old_width = self.get_figwidth()
        width = min(width, old_width)
        old_scale, scale = (min(1, max(0.6, inches / 7)) for inches in (old_width, width))
        self.set_size_inches(width, self.get_figheight() * max(width / old_width, 0.75))
        for text in self.findobj(Text):
            text.set_fontsize(text.get_fontsize() * scale / old_scale)
        title = textwrap.fill(self.title, round(11.5 * width / scale))
        self.suptitle(without_formulas(title), fontsize=10 * scale)

    def _ipython_display_(self) -> None:
        from IPython.core.pylabtools import retina_figure

        png, size = retina_figure(self)
        image = Image.open(BytesIO(png)).convert("RGBA")
        # On white, also where the user's matplotlib makes figures transparent: black text on
        # JupyterLab's dark theme cannot be read.
        background = Image.new("RGBA", image.size, "white")
        pixels = np.asarray(Image.alpha_composite(background, image).convert("RGB"))
        display_image(pixels, size["width"], alt_text(self, self.title))


def figure(
    heading: str, title: str, height: float, width: float = WIDTH, parts=(), **grid
) -> tuple[NotebookFigure, Axes]:
    """A figure and its axes.

    Args:
        heading: what the figure shows.
        title: of which data set or run, appended to the heading; "" appends nothing.
        height, width: inches.
        parts: height ratios of subfigures, which are returned in place of the axes.
        grid: arguments of `Figure.subplots`.
    """
    size = (min(width, WIDTH), height)
    fig = plt.figure(FigureClass=NotebookFigure, figsize=size, layout="constrained")
    fig.title = f"{heading} – {title}" if title else heading
    fig.fit(WIDTH)
    axes = fig.subfigures(len(parts), 1, height_ratios=parts) if parts else fig.subplots(**grid)
    sns.despine(fig)
    return fig, axes


def image_axes(
    rows: int, columns: int, heading: str, title: str, gap: float = 0.3
) -> tuple[Figure, np.ndarray]:
    """A figure for square images and its axes (rows, columns), which have no frames.

    gap: inches between rows.
    """
    side = (WIDTH - 1.2) / max(columns, 4)  # one image does not fill the page
    width = 1.2 + side * max(columns, 2)
    height = 0.5 + rows * (side + gap)
    fig, axes = figure(heading, title, height, width, nrows=rows, ncols=columns, squeeze=False)
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[], frame_on=False)
    return fig, axes


def whole_epochs(ax: Axes, epochs: Sequence[int]) -> None:
    """Ticks at whole epochs on the x axis, also where there is a single one."""
    if len(epochs) == 1:  # the locator would show fractions of an epoch
        ax.set_xticks(epochs)
    else:
        ax.xaxis.get_major_locator().set_params(integer=True)


def legend_below(fig: Figure, ax: Axes) -> None:
    """Put the legend of `ax` below the axes, where it hides no line."""
    handles, labels = ax.get_legend_handles_labels()
    if ax.get_legend() is not None:
        ax.get_legend().remove()
    columns = 3 if max(map(len, labels), default=0) < 30 else 2
    fig.legend(
        handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=8
    )


def draw_each(
    draw: Callable[[object, str], Figure | None], data: Mapping[str, object]
) -> dict[str, Figure | None]:
    """Draw a figure of each value of `data`, which is {title: value}.

    Returns {file name: figure}; a file name is made of the name of `draw` and the title.
    """
    kind = draw.__name__.replace("_", "-")
    return {f"{kind}-{file_stem(title)}": draw(value, title) for title, value in data.items()}


def save(
    figures: Mapping[str, NotebookFigure | None],
    folder: str | Path,
    kind: str = "png",
    width: float = WIDTH,
) -> list[Path]:
    """Save {name: figure} as files in `folder`, and return their paths; None is skipped.

    Files that cannot be written are left out with a warning: the figures are still displayed.

    Args:
        kind: png, or pdf or svg for a paper.
        width: inches. Wider figures shrink to it, for example to the column of a paper.
    """
    paths = []
    for name, fig in figures.items():
        if fig is None:
            continue
        fig.fit(width)
        path = Path(folder) / f"{name}.{kind}"
        data = BytesIO()
        dpi = 150 if kind == "png" else 300
        # Journals reject Type 3 fonts, matplotlib's default in PDFs.
        with plt.rc_context({"pdf.fonttype": 42}):
            fig.savefig(data, format=kind, dpi=dpi, metadata={"Title": fig.title})
        if write(path, data.getvalue()):
            paths.append(path)
    return paths


def write(path: Path, data: bytes) -> bool:
    """Write a file whole; return False, with a warning, if it cannot be written."""
    part = path.with_name(f"{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(data)
        part.replace(path)
    except OSError as error:
        warnings.warn(f"{path} is not written: {error.strerror}", stacklevel=3)
        return False
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
    return True


def write_index(folder: str | Path) -> None:
    """Write the README.md of a folder: all PNGs in it, their titles as alternative text.

    There is a warning instead if it cannot be written.
    """
    folder = Path(folder)
    lines = ["# Figures"]
    for path in sorted(folder.glob("*.png")):
        with Image.open(path) as image:
            title = image.info.get("Title", path.stem)
        text = escape(title, quote=False).replace("[", r"\[").replace("]", r"\]")
        lines.append(f"![{text}]({quote(path.name)})")
    write(folder / "README.md", ("\n\n".join(lines) + "\n").encode())
