"""Which block teaches which: figures of links, and of how far the maps that they join are apart."""

from collections.abc import Mapping
from functools import cache

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.path import Path
from matplotlib.textpath import TextPath
from matplotlib.transforms import Affine2D, IdentityTransform

from kdnb.plots.style import (
    NEUTRAL,
    PALE,
    ROLES,
    SEQUENTIAL,
    Style,
    figure,
    in_lines,
    legend_below,
    size,
)

__all__ = [
    "link_entropy",
    "link_history",
    "link_matrix",
    "links_by_class",
    "map_distances",
    "run_links",
]


def link_matrix(links: np.ndarray, teacher_blocks, student_blocks, title: str = "") -> Figure:
    """Mean attention (T, S), rows sum to one: which student block learns from which teacher block."""
    T, S = links.shape
    what = "Mean attention of each teacher block on the student's blocks"
    fig, ax = figure(what, title, max(3.7, 1.6 + 0.27 * T), width=3 + 0.72 * S)
    heatmap(
        ax, links, teacher_blocks, student_blocks, "mean attention (each row sums to 1)", sizes=True
    )
    Numbers(ax)
    return fig


def run_links(links, title: str = "") -> Figure | None:
    """The last epoch of a run's `links`: (means (epochs, T, S), teacher's blocks, student's blocks); None for None."""
    if links is None:
        return None
    means, *blocks = links
    return link_matrix(means[-1], *blocks, title)


def link_entropy(links: np.ndarray, teacher_blocks, student_blocks, title: str = "") -> Figure:
    """How far each teacher block spreads its attention, in bits: in the mean of links (n, T, S), and in one image's."""
    mean, most = links.mean(0), np.log2(len(student_blocks))
    values = {
        "of the mean links": entropy(mean),
        "of one image's links, on average": entropy(links).mean(0),
    }
    looks = Style(NEUTRAL, "", "o"), Style(PALE, "", "s")
    what = "Entropy of each teacher block's attention"
    fig, ax = over_blocks(
        values, dict(zip(values, looks, strict=True)), teacher_blocks, what, title
    )
    alike = f"all {len(student_blocks)} student blocks alike: {most:.2f}"
    ax.axhline(most, color="0.4", linestyle="--", linewidth=1, label=alike)
    ax.set(ylabel="entropy (bits)", ylim=(0, 1.05 * most))
    legend_below(fig, ax)
    return fig


def entropy(links: np.ndarray) -> np.ndarray:
    """Bits by which each row of links (..., S) is spread: 0 for one link alone, log2(S) for all alike."""
    return -(links * np.log2(np.clip(links, 1e-12, None))).sum(-1)


def link_history(
    history: np.ndarray, teacher_blocks, student_blocks, title: str = "", most: int = 7
) -> Figure:
    """The links (epochs, T, S) of up to `most` epochs side by side; below, how far each epoch is from the last."""
    epochs, T, S = history.shape
    shown = np.unique(
        np.geomspace(1, epochs, min(most, epochs)).round().astype(int)
    ).tolist()  # most happens early
    what = "Mean attention over the epochs, and how far it is from its end"
    fig, (above, below) = figure(what, title, 3.6 + 0.07 * T, parts=(1.3 + 0.07 * T, 1.3))
    panels, way = above.subplots(1, len(shown), squeeze=False)[0], below.subplots()
    for ax, epoch in zip(panels, shown, strict=True):
        heatmap(ax, history[epoch - 1], teacher_blocks, student_blocks, every=(T - 1, S - 1))
        ax.set_title(f"epoch {epoch}", fontsize=8)
        ax.set_xlabel("")
        if epoch > 1:
            ax.set(ylabel="", yticks=[])
    above.supxlabel("student block", fontsize=8)
    above.colorbar(panels[0].images[0], ax=panels, label="mean attention", pad=0.01)
    left = 50 * np.abs(history - history[-1]).sum(-1).mean(
        -1
    )  # what one link loses another gains: half the sum
    way.plot(np.arange(1, epochs + 1), left, color=NEUTRAL, marker="." if epochs < 60 else None)
    way.set(xlabel="epoch", ylabel="attention still\nto move (%)", ylim=(0, None))
    way.xaxis.get_major_locator().set_params(integer=True)
    return fig


def links_by_class(
    by_class, teacher_blocks, student_blocks, title: str = "", most: int = 12
) -> Figure:
    """How far the links of the `most` deviating classes are from the mean, and in which links the first two are.

    by_class: of `analysis.by_class`, with names (n,), links (n, T, S), mean (T, S), deviation (n,) and chance (n,).
    """
    first, (T, S) = np.argsort(-by_class.deviation)[:most], by_class.mean.shape
    names, panels = [by_class.names[c] for c in first], 1 + min(2, len(first))
    height = max(3.4, 1.3 + 0.2 * T, 1.3 + 0.22 * len(first))
    what = "Classes whose links differ most from the mean"
    fig, (bars, *maps) = figure(
        what, title, height, ncols=panels, width_ratios=[1.1, 1, 1][:panels]
    )
    bars.barh(
        [in_lines(name, 40) for name in names],
        100 * by_class.deviation[first],
        color=NEUTRAL,
        height=0.7,
    )
    bars.scatter(
        100 * by_class.chance[first], range(len(first)), marker="|", s=90, color="black", zorder=3
    )
    bars.invert_yaxis()
    bars.tick_params(axis="y", labelsize=8)
    bars.set_xlabel("attention on other links\nthan the mean's (%)\nblack marks: chance (95 %)")
    differences = by_class.links[first[:2]] - by_class.mean
    extreme = max(np.abs(differences).max(), 1e-6)
    for ax, difference, name in zip(maps, differences, names, strict=False):
        heatmap(ax, difference, teacher_blocks, student_blocks, reach=extreme, every=(1, S // 5))
        ax.set_title(in_lines(name, 20), fontsize=8)
    fig.colorbar(maps[0].images[0], ax=maps, label="attention, class minus mean", pad=0.02)
    return fig


def map_distances(
    distances: Mapping[str, np.ndarray], flat: np.ndarray, links, teacher_blocks, title=""
) -> Figure:
    """How far the students' maps are from each teacher block's, {role: (n, T, S)}, weighed by the mean links; and how
    far a flat map is, (n, T), which is even everywhere."""
    values = {role: (links.mean(0) * each.mean(0)).sum(1) for role, each in distances.items()}
    values |= {"a flat map": flat.mean(0)}
    what = "Distance of the students' maps from each teacher block's"
    looks = {role: ROLES[role] for role in distances} | {"a flat map": Style(NEUTRAL, "", "_")}
    fig, ax = over_blocks(values, looks, teacher_blocks, what, title)
    ax.set_ylabel("distance of maps (1 − cosine)")
    legend_below(fig, ax)
    return fig


def over_blocks(
    values: dict[str, np.ndarray], styles, teacher_blocks, what: str, title: str
) -> tuple[Figure, Axes]:
    """Points {name: (T,)} above each teacher block, joined by a line; styles: {name: Style}."""
    fig, ax = figure(what, title, 3.4)
    places, lines = range(len(teacher_blocks)), np.array([*values.values()])
    ax.vlines(places, lines.min(0), lines.max(0), color="0.75", zorder=1)
    for name, look in styles.items():
        area = 200 if look.marker == "_" else None  # to be seen behind another mark
        ax.scatter(places, values[name], area, marker=look.marker, color=look.color, label=name)
    ax.set_xticks(places, stacked(teacher_blocks), fontsize=8)
    ax.set(xlabel="teacher block", ylim=(0, 1.05 * lines.max()))
    return fig, ax


def heatmap(
    ax, values, teacher_blocks, student_blocks, label="", reach=0.0, sizes=False, every=(1, 1)
) -> None:
    """Teacher blocks down, student blocks across; links from 0 to 1, or differences from -reach to reach.

    label: of the colour bar, if there is to be one; sizes: say those of the blocks; every: name every so many.
    """
    image = ax.imshow(
        values, "PuOr_r" if reach else SEQUENTIAL, vmin=-reach, vmax=reach or 1, aspect="auto"
    )
    down = [f"{name}  {size(shape)}" if sizes else name for name, shape in teacher_blocks]
    across = stacked(student_blocks) if sizes else [name for name, _ in student_blocks]
    for axis, names, step in zip((ax.yaxis, ax.xaxis), (down, across), every, strict=True):
        named = slice(None, None, max(step, 1))
        axis.set_ticks(range(len(names))[named], names[named], fontsize=7)
    ax.set_xlabel("student block", fontsize=8)
    ax.set_ylabel("teacher block", fontsize=8)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    if label:
        ax.figure.colorbar(image, ax=ax, label=label, pad=0.02)


class Numbers(PathCollection):
    """What the cells of the heatmap in `ax` hold, drawn where the cells have room; as one artist, which is quick."""

    def __init__(self, ax: Axes):
        self.rows, self.columns = ax.images[0].get_array().shape
        places = [(s, t) for t, s in np.ndindex(self.rows, self.columns)]
        super().__init__(
            [], [1], offsets=places, offset_transform=ax.transData, linewidth=0, in_layout=False
        )
        self.set_transform(IdentityTransform())  # the size, 1, makes points of the letters' units
        ax.add_collection(self, autolim=False)
        self.write(ax.images[0])

    def write(self, image: AxesImage) -> None:
        """The values of the image, those near zero left out, black on light colours and white on dark ones."""
        values, light = (
            image.get_array(),
            image.to_rgba(image.get_array())[..., :3] @ (0.299, 0.587, 0.114) > 0.5,
        )
        self.texts = [f"{value:.2f}" if abs(value) >= 0.005 else "" for value in values.flat]
        self.set_paths([letters(text) for text in self.texts])
        self.set_facecolor(np.where(light.ravel(), "black", "white"))

    def draw(self, renderer) -> None:
        box, point = self.axes.bbox, self.figure.dpi / 72
        text = letters(max(self.texts, key=len)).get_extents()
        if (
            text.width * point < 0.9 * box.width / self.columns
            and text.height * point < 0.9 * box.height / self.rows
        ):
            super().draw(renderer)


@cache
def letters(text: str) -> Path:
    """A small text around (0, 0), in points."""
    if not text:
        return Path(np.empty((0, 2)))
    path = TextPath((0, 0), text, size=7)
    (left, bottom), (right, top) = path.get_extents().get_points()
    return path.transformed(Affine2D().translate(-(left + right) / 2, -(bottom + top) / 2))


def stacked(blocks) -> list[str]:
    """Names over sizes; names alone where it is many blocks."""
    return [name if len(blocks) > 10 else f"{name}\n{size(shape)}" for name, shape in blocks]
