"""Figures of spatial maps, overlaid on their images.

A gallery is an `analysis.maps.Gallery`: images, and each network's maps of them. Networks are
called by their roles.
"""

from collections.abc import Sequence
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from PIL import Image

from kdnb.plots.style import image_axes
from kdnb.plots.text import drawable_text, format_shape, wrap

COLOUR_MAP = "inferno"  # over a grey image, every colour is the map's
# A colour scale starts at an energy of 1, in units of the RMS of a map, and ends between these two.
MIN_LIMIT = 1.5
MAX_LIMIT = 2.5
MIN_ROW_LIMIT = 1.2  # of a row with a scale of its own
OPACITY = 0.85  # of a map over its image, where its energy is highest
MIN_SIDE = 256  # pixels; smaller images are enlarged


def map_depth(
    gallery, pairs: Sequence[tuple[int, int]], image: int = 0, title: str = ""
) -> Figure | None:
    """The maps of one image by depth: a row per network, a column per pair of blocks.

    Args:
        gallery: a Gallery, or None, for which the result is None.
        pairs: (t, s) indices of a teacher block and a student block.
        image: index of the image.
    """
    if gallery is None:
        return None
    heading = f"Where each network looks, by depth: “{drawable_text(gallery.names[image])}”"
    fig, axes = image_axes(len(gallery.maps), len(pairs), heading, title)
    limits = colour_limits(gallery, pairs, [image])
    for row, network in zip(axes, gallery.maps, strict=True):
        row[0].set_ylabel("\n".join([network, *limits.label(network)]), fontsize=8)
        for ax, pair in zip(row, pairs, strict=True):
            (name, shape), maps, distances = maps_of_pair(gallery, network, pair)
            ax.imshow(overlay(gallery.pixels[image], maps[image], limits.of[network]))
            ax.set_xlabel(distances[image], fontsize=7, labelpad=2)
            if network != "distilled":  # it has the blocks of the baseline, the row above
                ax.set_title(f"{name}\n{format_shape(shape)}", fontsize=7, pad=3)
    add_colour_bar(fig, axes, gallery.quantity, limits)
    return fig


def map_grid(
    gallery, pair: tuple[int, int], title: str = "", with_predictions: bool = False
) -> Figure | None:
    """Images, and each network's maps of one pair of blocks (t, s).

    An image is a column; with one or two images, it is a row.

    Args:
        gallery: a Gallery, or None, for which the result is None.
        with_predictions: below each map stands the predicted class in place of the distance from
            the teacher's map.
    """
    if gallery is None:
        return None
    heading = "Where each network looks"
    if with_predictions:
        heading = "What each network predicts, and where it looks"
    n_images = len(gallery.pixels)
    n_rows = 1 + len(gallery.maps)
    images_are_rows = n_images <= 2
    limits = colour_limits(gallery, [pair])
    if images_are_rows:
        gap = 1.0 if limits.by_network else 0.7  # for one more line of text
        fig, axes = image_axes(n_images, n_rows, heading, title, gap=gap)
        axes = axes.T
        label_network, label_image = Axes.set_title, Axes.set_ylabel
    else:
        fig, axes = image_axes(n_rows, n_images, heading, title, gap=0.16)
        label_network, label_image = Axes.set_ylabel, Axes.set_title
    # From here on axes are (networks, images).
    label_network(axes[0, 0], "image", fontsize=8)
    for ax, pixels, name in zip(axes[0], gallery.pixels, gallery.names, strict=True):
        ax.imshow(pixels, interpolation="bicubic")
        label_image(ax, wrap(name, 16), fontsize=8)
    for row, network in zip(axes[1:], gallery.maps, strict=True):
        (name, _), maps, captions = maps_of_pair(gallery, network, pair)
        if with_predictions:
            # A teacher whose classes have no names has no predictions.
            captions = [f"“{wrap(label, 16)}”" for label in gallery.predicted.get(network, ())]
        label_network(row[0], "\n".join([network, name, *limits.label(network)]), fontsize=8)
        for ax, pixels, energies in zip(row, gallery.pixels, maps, strict=True):
            ax.imshow(overlay(pixels, energies, limits.of[network]))
        for ax, caption in zip(row, captions, strict=False):
            ax.set_xlabel(caption, fontsize=7, labelpad=2)
    add_colour_bar(fig, axes, gallery.quantity, limits)
    return fig


def likeliest_classes(gallery, image: int = 0) -> pd.DataFrame | None:
    """The likeliest classes of one image with their probabilities, a column per network.

    None for None, and for a gallery whose networks predict no class that has a name.
    """
    if gallery is None or not gallery.likeliest:
        return None
    columns = {
        role: [f"{name} {probability:.1%}" for name, probability in images[image]]
        for role, images in gallery.likeliest.items()
    }
    table = pd.DataFrame.from_dict(columns, "index").fillna("").T
    return table.set_axis(range(1, len(table) + 1))


def maps_of_pair(
    gallery, network: str, pair: tuple[int, int]
) -> tuple[tuple, np.ndarray, list[str]]:
    """A network's block of a pair (t, s).

    Returns the block, (name, shape); its maps (n, h, w); and n captions with the distance of each
    map from the teacher's, "" for the teacher.
    """
    if network == "teacher":
        block = gallery.blocks[0][pair[0]]
        return block, gallery.maps[network][pair[0]], [""] * len(gallery.pixels)
    distances = gallery.distances[network][:, *pair]
    captions = [f"distance {distance:.2f}" for distance in distances]
    return gallery.blocks[1][pair[1]], gallery.maps[network][pair[1]], captions


class ColourLimits(NamedTuple):
    """Where the colour scales of a figure end, in units of the RMS of a map.

    Attributes:
        of: {network: the end of its scale}.
        by_network: whether each network has a scale of its own.
    """

    of: dict[str, float]
    by_network: bool

    def label(self, network: str) -> list[str]:
        """The range of a network's own scale; empty if there is one scale for all."""
        return [f"scale 1–{self.of[network]:.2f}"] if self.by_network else []


def colour_limits(gallery, pairs: Sequence[tuple[int, int]], images=slice(None)) -> ColourLimits:
    """The ends of the colour scales of a figure: the highest energies, in units of the RMS.

    Over photographs each network has its own scale: an ImageNet teacher's maps may have several
    times the contrast of a student's, whose maps would be invisible on the teacher's scale. Over
    images without colour, such as digits, there is one scale. The ends are clipped: uniform maps
    stay pale, and one bright corner does not darken all other maps.
    """
    highest = dict.fromkeys(gallery.maps, 0.0)
    for network in gallery.maps:
        for pair in pairs:
            maps = maps_of_pair(gallery, network, pair)[1][images]
            highest[network] = max(highest[network], maps.max() * np.sqrt(maps[0].size))
    by_network = any(is_coloured(pixels) for pixels in gallery.pixels)
    lowest = MIN_ROW_LIMIT if by_network else MIN_LIMIT
    if not by_network:
        highest = dict.fromkeys(highest, max(highest.values()))
    ends = {name: float(np.clip(value, lowest, MAX_LIMIT)) for name, value in highest.items()}
    return ColourLimits(ends, by_network)


def is_coloured(pixels: np.ndarray) -> bool:
    """Whether an image (side, side, 3) is more than shades of grey."""
    return bool((pixels != pixels[..., :1]).any())


def overlay(pixels: np.ndarray, energies: np.ndarray, limit: float = MAX_LIMIT) -> np.ndarray:
    """Overlay a map on its image in grey, both enlarged smoothly; returns uint8 (side, side, 3).

    The map is visible where its energy is above its RMS. The more energy, the more opaque it is.

    Args:
        pixels: uint8 (side, side, 3).
        energies: (h, w), with an L2 norm of 1.
        limit: the end of the colour scale, in units of the RMS.
    """
    side = max(len(pixels), MIN_SIDE)
    # In units of the RMS, maps of different sizes are comparable.
    ratios = Image.fromarray((energies * np.sqrt(energies.size)).astype(np.float32))
    ratios = np.asarray(ratios.resize((side, side), Image.Resampling.BICUBIC))
    image = Image.fromarray(pixels).convert("L").resize((side, side), Image.Resampling.BICUBIC)
    return (255 * blend(ratios, np.asarray(image)[..., None] / 255, limit)).astype(np.uint8)


def blend(ratios: np.ndarray, background: np.ndarray | float, limit: float) -> np.ndarray:
    """Colours (..., 3), from 0 to 1, of energies in units of the RMS over a background."""
    share = np.clip((ratios - 1) / (limit - 1), 0, 1)[..., None]
    colours = plt.get_cmap(COLOUR_MAP)(share[..., 0])[..., :3]
    return OPACITY * share * colours + (1 - OPACITY * share) * background


def add_colour_bar(fig: Figure, axes, quantity: str, limits: ColourLimits | None = None) -> None:
    """Add a colour bar of maps of `quantity`, with the colours that they have over mid-grey.

    limits: without them, the bar ends at `MAX_LIMIT`.
    """
    limit = max(limits.of.values()) if limits else MAX_LIMIT
    colours = ListedColormap(blend(np.linspace(1, limit, 256), 0.5, limit))
    mappable = ScalarMappable(Normalize(1, limit), colours)
    label = f"{quantity} / map's RMS"
    bar = fig.colorbar(mappable, ax=axes, label=label, extend="both", pad=0.01, aspect=30)
    if limits and limits.by_network:
        bar.set_ticks([1, limit], labels=["1", "end"])
