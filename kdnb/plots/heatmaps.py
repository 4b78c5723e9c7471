"""Heatmaps of teacher blocks by student blocks, and the values of their cells."""

from collections.abc import Sequence
from functools import cache

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.image import AxesImage
from matplotlib.path import Path
from matplotlib.textpath import TextPath
from matplotlib.transforms import Affine2D, IdentityTransform

from kdnb.plots.style import SEQUENTIAL
from kdnb.plots.text import format_shape


def heatmap(
    ax: Axes,
    values: np.ndarray,
    teacher_blocks,
    student_blocks,
    label: str = "",
    limit: float = 0.0,
    show_shapes: bool = False,
    label_every: Sequence[int] = (1, 1),
) -> None:
    """Draw values (T, S): teacher blocks are rows, student blocks are columns.

    Args:
        label: of a colour bar; "" draws none.
        limit: 0 for links, from 0 to 1; else the values are differences from -limit to limit.
        show_shapes: show the shapes of the blocks below their names.
        label_every: steps between the blocks whose names are shown, rows and columns.
    """
    colours = "PuOr_r" if limit else SEQUENTIAL
    image = ax.imshow(values, colours, vmin=-limit, vmax=limit or 1, aspect="auto")
    rows = [name for name, _ in teacher_blocks]
    columns = [name for name, _ in student_blocks]
    if show_shapes:
        rows = [f"{name}  {format_shape(shape)}" for name, shape in teacher_blocks]
        columns = tick_labels(student_blocks)
    for axis, names, step in zip((ax.yaxis, ax.xaxis), (rows, columns), label_every, strict=True):
        labelled = slice(None, None, max(step, 1))
        axis.set_ticks(range(len(names))[labelled], names[labelled], fontsize=7)
    ax.set_xlabel("student block", fontsize=8)
    ax.set_ylabel("teacher block", fontsize=8)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    if label:
        ax.figure.colorbar(image, ax=ax, label=label, pad=0.02)


def tick_labels(blocks) -> list[str]:
    """Names of blocks above their shapes; of more than ten blocks, only the names."""
    if len(blocks) > 10:
        return [name for name, _ in blocks]
    return [f"{name}\n{format_shape(shape)}" for name, shape in blocks]


class CellValues(PathCollection):
    """The values of the cells of the heatmap in `ax`, drawn if they fit into the cells.

    All values are a single artist, which draws fast.
    """

    def __init__(self, ax: Axes):
        self.rows, self.columns = ax.images[0].get_array().shape
        offsets = [(s, t) for t, s in np.ndindex(self.rows, self.columns)]
        # A size of 1 makes points the unit of the paths.
        super().__init__(
            [], [1], offsets=offsets, offset_transform=ax.transData, linewidth=0, in_layout=False
        )
        self.set_transform(IdentityTransform())
        ax.add_collection(self, autolim=False)
        self.update_values(ax.images[0])

    def update_values(self, image: AxesImage) -> None:
        """Take the values of the image: black on light colours, white on dark ones.

        Values that round to 0.00 are left out.
        """
        values = image.get_array()
        luminance = image.to_rgba(values)[..., :3] @ (0.299, 0.587, 0.114)
        self.texts = [f"{value:.2f}" if abs(value) >= 0.005 else "" for value in values.flat]
        self.set_paths([text_path(text) for text in self.texts])
        self.set_facecolor(np.where(luminance.ravel() > 0.5, "black", "white"))

    def draw(self, renderer) -> None:
        pixels_per_point = self.figure.dpi / 72
        text = text_path(max(self.texts, key=len)).get_extents()
        cell_width = self.axes.bbox.width / self.columns
        cell_height = self.axes.bbox.height / self.rows
        fits_across = text.width * pixels_per_point < 0.9 * cell_width
        fits_down = text.height * pixels_per_point < 0.9 * cell_height
        if fits_across and fits_down:
            super().draw(renderer)


@cache
def text_path(text: str) -> Path:
    """The outline of a text of 7 points, centred at (0, 0)."""
    if not text:
        return Path(np.empty((0, 2)))
    path = TextPath((0, 0), text, size=7)
    (left, bottom), (right, top) = path.get_extents().get_points()
    return path.transformed(Affine2D().translate(-(left + right) / 2, -(bottom + top) / 2))
