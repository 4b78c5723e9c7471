"""What all figures share: a look per role and method, a notebook's width and density, titles, fonts and legends."""

import hashlib
import re
import textwrap
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from html import escape
from io import BytesIO
from itertools import cycle
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from anyascii import anyascii
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager, get_font
from matplotlib.text import Text
from PIL import Image

__all__ = ["ROLES", "STYLES", "Style", "contents", "each", "line_styles", "save"]

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
# The roles, then every colour with four of the dashes: 35 looks, no two alike.
STYLES = [*ROLES.values()]
STYLES += [
    Style(COLOURS[i % 8], DASHES[(i + i // 8) % 8], "^vPX<>*h"[(i + 3 * (i // 8)) % 8])
    for i in range(32)
]


def line_styles(lines: Mapping[str, int]) -> dict[str, Style]:
    """{line: number} -> {line: Style}: that of `STYLES`; for the second line of a number a free one, from the end; of
    more lines than there are styles some look alike."""
    first = {number: line for line, number in reversed(lines.items())}
    free = cycle(
        [style for number, style in reversed([*enumerate(STYLES)]) if number not in first] or STYLES
    )
    own = {line: STYLES[number % len(STYLES)] for number, line in first.items()}
    return {line: own[line] if line in own else next(free) for line in lines}


class Picture(Figure):
    """A figure with a `title`, which a notebook shows at twice the usual density and with alternative text."""

    title = ""

    def fit(self, width: float) -> None:
        """Lay it out anew for so many inches, unless it is narrower; below a page's 7 letters shrink as well."""
        before = self.get_figwidth()
        width = min(width, before)
        small, smaller = (min(1, max(0.6, inches / 7)) for inches in (before, width))
        self.set_size_inches(width, self.get_figheight() * max(width / before, 0.75))
        for text in self.findobj(Text):
            text.set_fontsize(text.get_fontsize() * smaller / small)
        self.suptitle(
            textwrap.fill(self.title, round(11.5 * width / smaller)), fontsize=10 * smaller
        )

    def _ipython_display_(self) -> None:
        from IPython.core.pylabtools import retina_figure

        png, size = retina_figure(self)
        show(
            np.asarray(Image.open(BytesIO(png)).convert("RGB")),
            size["width"],
            described(self, self.title),
        )


def show(pixels: np.ndarray, width: int, text: str) -> None:
    """A picture in a notebook, so many pixels wide on the page; `text` stands for it where it is not seen."""
    from IPython.display import display

    kind, data = min(
        ((k, encoded(pixels, k)) for k in ("png", "jpeg")), key=lambda both: len(both[1])
    )
    data = b64encode(
        data
    ).decode()  # twice: the pages of nbconvert take no alternative text from metadata
    html = f'<img alt="{escape(text)}" width="{width}" src="data:image/{kind};base64,{data}">'
    about = {f"image/{kind}": {"alt": text, "width": width}}
    display(
        {"text/html": html, f"image/{kind}": data, "text/plain": text}, metadata=about, raw=True
    )


def encoded(pixels: np.ndarray, kind: str) -> bytes:
    """uint8 (height, width, 3 or 4) as a PNG, small for lines and letters, or a JPEG, small for photographs."""
    data, options = BytesIO(), {"quality": 92, "subsampling": 0} if kind == "jpeg" else {}
    Image.fromarray(pixels).convert("RGB").save(data, kind, **options)
    return data.getvalue()


def described(fig: Figure, title: str = "") -> str:
    """A figure in words: its title, and how its panels, axes and lines are called."""
    said = [title]
    for ax in fig.axes:
        said += [ax.get_title(), ax.get_title("left"), ax.get_ylabel(), ax.get_xlabel()]
    said += [text.get_text() for legend in fig.legends for text in legend.get_texts()]
    return "; ".join(" ".join(text.split()) for text in said if text)


def figure(
    what: str, title: str, height: float, width: float = WIDTH, parts=(), **grid
) -> tuple[Picture, Axes]:
    """A figure under what it shows, and of which data set or run, if that is said; and its axes, see matplotlib.

    parts: heights of parts to be filled one by one, which are returned in place of the axes.
    """
    fig = plt.figure(FigureClass=Picture, figsize=(min(width, WIDTH), height), layout="constrained")
    fig.title = f"{what} – {title}" if title else what
    fig.fit(WIDTH)
    axes = fig.subfigures(len(parts), 1, height_ratios=parts) if parts else fig.subplots(**grid)
    sns.despine(fig)
    return fig, axes


def pictures(
    rows: int, columns: int, what: str, title: str, gap: float = 0.3
) -> tuple[Figure, np.ndarray]:
    """A figure of square pictures without frames, and their axes (rows, columns); `gap` inches between the rows."""
    side = (WIDTH - 1.2) / max(columns, 4)  # a lone image need not fill the page
    width = 1.2 + side * max(columns, 2)
    fig, axes = figure(
        what, title, 0.5 + rows * (side + gap), width, nrows=rows, ncols=columns, squeeze=False
    )
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


def each(
    draw: Callable[[object, str], Figure | None], things: Mapping[str, object]
) -> dict[str, Figure | None]:
    """{"learning-curves-TITLE": figure} of what `draw` makes of each of {title: thing}."""
    return {
        f"{draw.__name__.replace('_', '-')}-{short(title)}": draw(thing, title)
        for title, thing in things.items()
    }


def short(title: str, most: int = 48) -> str:
    """A title as part of a file name; what is too long is cut and ends on six hex digits of the whole."""
    name = re.sub(r"[^\w.=+]+", "-", title).strip("-")
    cut = name[: most - 7].rpartition("-")[0] or name[: most - 7]
    return name if len(name) <= most else f"{cut}-{hashlib.sha256(title.encode()).hexdigest()[:6]}"


def save(
    figures: Mapping[str, Picture | None], folder: str | Path, kind="png", width: float = WIDTH
) -> list[Path]:
    """Keep {name: figure} as NAME.png in `folder`, without those that are None.

    kind: png, or pdf or svg for a paper. width: inches, such as a column's, which no figure is to exceed.
    """
    folder, drawn = Path(folder), {name: fig for name, fig in figures.items() if fig is not None}
    folder.mkdir(parents=True, exist_ok=True)
    for name, fig in drawn.items():
        fig.fit(width)
        with plt.rc_context(
            {"pdf.fonttype": 42}
        ):  # journals refuse matplotlib's usual Type 3 fonts
            fig.savefig(
                folder / f"{name}.{kind}",
                dpi=150 if kind == "png" else 300,
                metadata={"Title": fig.title},
            )
    return [folder / f"{name}.{kind}" for name in drawn]


def contents(folder: str | Path) -> None:
    """Write README.md of a folder of figures, which shows all of its PNGs, their titles for who does not see them."""
    titles = {
        path.name: Image.open(path).info.get("Title", path.stem)
        for path in sorted(Path(folder).glob("*.png"))
    }
    page = ["# Figures", *(f"![{title}]({name})" for name, title in titles.items())]
    (Path(folder) / "README.md").write_text("\n\n".join(page) + "\n", "utf-8")


def spread(count: int, most: int) -> np.ndarray:
    """Up to `most` of the numbers below `count`, the first and the last among them."""
    return np.linspace(0, count - 1, min(most, count)).round().astype(int)


def size(shape: Sequence[int]) -> str:
    return "×".join(str(n) for n in shape)


def in_lines(name: str, width: int = 11) -> str:
    """A class name in words, broken into lines of up to `width` letters."""
    return textwrap.fill(words(name), width, break_long_words=False)


def words(name: str) -> str:
    """A class name in words that can be drawn: where matplotlib's font lacks a letter, in another, or in Latin ones."""
    text, families = name.replace("_", " "), plt.rcParams["font.family"]
    for letter in {letter for letter in text if not letter.isascii()}:
        family = font_with(letter)
        if family and family not in families:
            families.append(family)
            plt.rcParams["font.family"] = families
        text = text if family else text.replace(letter, anyascii(letter))
    return text


@cache
def font_with(letter: str) -> str:
    """The installed font that has a letter, the usual one before all others; "" if none has."""
    for font in sorted(
        fontManager.ttflist, key=lambda font: (font.name != "DejaVu Sans", font.style != "normal")
    ):
        with suppress(RuntimeError, OSError):  # bitmaps alone, or removed since
            if "Last Resort" not in font.name and get_font(font.fname).get_char_index(ord(letter)):
                return font.name
    return ""
