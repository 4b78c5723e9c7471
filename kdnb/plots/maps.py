"""Where networks look: their spatial maps laid over the images.

A gallery is an `analysis.Gallery`: images, and each network's maps of them; networks are called by their roles.
"""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure

from kdnb.plots.style import SEQUENTIAL, in_lines, pictures, size

__all__ = ["map_depth", "map_grid"]

MAP_TOP = 3.0  # where the colours of spatial maps end, one scale for all figures
OPACITY = 0.72  # of a map over its image


def map_depth(gallery, pairs: Sequence[tuple[int, int]], image: int = 0, title: str = "") -> Figure:
    """One image of the gallery, a column per pair of blocks (t, s), a row per network: where each looks, by depth."""
    what = f"Where each network looks, by depth: “{gallery.names[image].replace('_', ' ')}”"
    fig, axes = pictures(len(gallery.maps), len(pairs), what, title)
    for row, network in zip(axes, gallery.maps, strict=True):
        row[0].set_ylabel(network, fontsize=8)
        for ax, pair in zip(row, pairs, strict=True):
            (name, shape), maps, distances = seen(gallery, network, pair)
            ax.imshow(blend(gallery.pixels[image], maps[image]))
            ax.set_xlabel(distances[image], fontsize=7, labelpad=2)
            if network != "distilled":  # its blocks are those of the row above
                ax.set_title(f"{name}\n{size(shape)}", fontsize=7, pad=3)
    map_bar(fig, axes)
    return fig


def map_grid(gallery, pair: tuple[int, int], title: str = "", said: bool = False) -> Figure | None:
    """A column per image: the image, then each network's map of one pair of blocks (t, s); None for no gallery.

    Below each map stands its distance from the teacher's, or what the network `said`.
    """
    if gallery is None:
        return None
    what = "What each network says, and where it looks" if said else "Where each network looks"
    fig, axes = pictures(1 + len(gallery.maps), len(gallery.pixels), what, title, gap=0.16)
    axes[0, 0].set_ylabel("image", fontsize=8)
    for ax, pixels, name in zip(axes[0], gallery.pixels, gallery.names, strict=True):
        ax.imshow(pixels)
        ax.set_title(in_lines(name, 16), fontsize=8)
    for row, network in zip(axes[1:], gallery.maps, strict=True):
        (name, _), maps, captions = seen(gallery, network, pair)
        captions = [f"“{in_lines(word, 16)}”" for word in gallery.said.get(network, ())] if said else captions
        row[0].set_ylabel(f"{network}\n{name}", fontsize=8)
        for ax, pixels, energies in zip(row, gallery.pixels, maps, strict=True):
            ax.imshow(blend(pixels, energies))
        for ax, caption in zip(row, captions, strict=False):  # none of a teacher that knows other classes
            ax.set_xlabel(caption, fontsize=7, labelpad=2)
    map_bar(fig, axes)
    return fig


def seen(gallery, network: str, pair: tuple[int, int]) -> tuple[tuple, np.ndarray, list[str]]:
    """A network's block of a pair (t, s), (name, shape); its maps (n, h, w); their distances from the teacher's."""
    student = network != "teacher"
    distances = gallery.distances[network][:, *pair] if student else []
    captions = [f"distance {d:.2f}" for d in distances] or [""] * len(gallery.pixels)
    return gallery.blocks[student][pair[student]], gallery.maps[network][pair[student]], captions


def blend(pixels: np.ndarray, energies: np.ndarray) -> np.ndarray:
    """The colours of a map (h, w) of L2-normalised energies in its own RMS, through which the image shows in grey.

    uint8 (size, size, 3). Over mid-grey the colours are those of `map_bar`.
    """
    size = max(pixels.shape[0], 64)  # a digit of 8 pixels would hide a map of as few
    rows, columns, places = (np.arange(size) * n // size for n in (*energies.shape, pixels.shape[0]))
    in_rms = energies * np.sqrt(energies.size)  # comparable from size to size
    colours = plt.get_cmap(SEQUENTIAL)(np.clip(in_rms / MAP_TOP, 0, 1))[rows][:, columns, :3]
    light = pixels.astype(np.float32).mean(-1)[places][:, places, None] / 255
    return (255 * (OPACITY * colours + (1 - OPACITY) * light)).astype(np.uint8)


def map_bar(fig: Figure, axes, label: str = "energy (1: the map's root mean square)") -> None:
    """The colours of maps over mid-grey."""
    colours = plt.get_cmap(SEQUENTIAL)(np.linspace(0, 1, 256))[:, :3]
    mappable = ScalarMappable(Normalize(0, MAP_TOP), ListedColormap(OPACITY * colours + (1 - OPACITY) * 0.5))
    fig.colorbar(mappable, ax=axes, label=label, extend="max", pad=0.01, aspect=30)
