"""Where networks look: their spatial maps laid over the images.

A gallery is an `analysis.maps.Gallery`: images, and each network's maps of them; networks are called by their roles.
"""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from PIL import Image

from kdnb.plots.style import in_lines, pictures, size, words

__all__ = ["map_depth", "map_grid"]

ENERGY = "inferno"  # stands out from what photographs show
MOST = (
    1.5,
    2.5,
)  # between which a figure's colours of spatial maps end, in units of a map's RMS; they begin at 1
OPACITY = 0.85  # of a map over its image, where it has most energy
SMALLEST = 256  # pixels of a picture's side: a digit's few are enlarged


def map_depth(
    gallery, pairs: Sequence[tuple[int, int]], image: int = 0, title: str = ""
) -> Figure | None:
    """One image of a gallery, a column per pair of blocks (t, s), a row per network, by depth; None for no gallery."""
    if gallery is None:
        return None
    what = f"Where each network looks, by depth: “{words(gallery.names[image])}”"
    fig, axes = pictures(len(gallery.maps), len(pairs), what, title)
    most = strongest(gallery, pairs, [image])
    for row, network in zip(axes, gallery.maps, strict=True):
        row[0].set_ylabel(network, fontsize=8)
        for ax, pair in zip(row, pairs, strict=True):
            (name, shape), maps, distances = seen(gallery, network, pair)
            ax.imshow(blend(gallery.pixels[image], maps[image], most))
            ax.set_xlabel(distances[image], fontsize=7, labelpad=2)
            if network != "distilled":  # its blocks are those of the row above
                ax.set_title(f"{name}\n{size(shape)}", fontsize=7, pad=3)
    map_bar(fig, axes, gallery.quantity, most)
    return fig


def map_grid(gallery, pair: tuple[int, int], title: str = "", said: bool = False) -> Figure | None:
    """A column per image: the image, then each network's map of one pair of blocks (t, s); None for no gallery.

    Below each map stands its distance from the teacher's, or what the network `said`. One or two images have a row.
    """
    if gallery is None:
        return None
    what = "What each network says, and where it looks" if said else "Where each network looks"
    few, shape = len(gallery.pixels) <= 2, (1 + len(gallery.maps), len(gallery.pixels))
    fig, axes = pictures(
        *(reversed(shape) if few else shape), what, title, gap=0.4 if few else 0.16
    )
    axes, most = axes.T if few else axes, strongest(gallery, [pair])  # networks, images
    call_network, call_image = (
        (Axes.set_title, Axes.set_ylabel) if few else (Axes.set_ylabel, Axes.set_title)
    )
    call_network(axes[0, 0], "image", fontsize=8)
    for ax, pixels, name in zip(axes[0], gallery.pixels, gallery.names, strict=True):
        ax.imshow(pixels, interpolation="bicubic")
        call_image(ax, in_lines(name, 16), fontsize=8)
    for row, network in zip(axes[1:], gallery.maps, strict=True):
        (name, _), maps, captions = seen(gallery, network, pair)
        captions = (
            [f"“{in_lines(word, 16)}”" for word in gallery.predicted.get(network, ())]
            if said
            else captions
        )
        call_network(row[0], f"{network}\n{name}", fontsize=8)
        for ax, pixels, energies in zip(row, gallery.pixels, maps, strict=True):
            ax.imshow(blend(pixels, energies, most))
        for ax, caption in zip(
            row, captions, strict=False
        ):  # none of a teacher that knows other classes
            ax.set_xlabel(caption, fontsize=7, labelpad=2)
    map_bar(fig, axes, gallery.quantity, most)
    return fig


def seen(gallery, network: str, pair: tuple[int, int]) -> tuple[tuple, np.ndarray, list[str]]:
    """A network's block of a pair (t, s), (name, shape); its maps (n, h, w); their distances from the teacher's."""
    student = network != "teacher"
    distances = gallery.distances[network][:, *pair] if student else []
    captions = [f"distance {d:.2f}" for d in distances] or [""] * len(gallery.pixels)
    return gallery.blocks[student][pair[student]], gallery.maps[network][pair[student]], captions


def strongest(gallery, pairs: Sequence[tuple[int, int]], images=slice(None)) -> float:
    """Where the colours of a figure end: at the most energy in it, in units of a map's RMS, or at the ends of `MOST`,
    so that even maps stay pale and a lone corner does not outshine all others."""
    maps = [seen(gallery, network, pair)[1][images] for network in gallery.maps for pair in pairs]
    return float(np.clip(max(m.max() * np.sqrt(m[0].size) for m in maps), *MOST))


def blend(pixels: np.ndarray, energies: np.ndarray, most: float = MOST[1]) -> np.ndarray:
    """A map (h, w) of L2-normalised energies over its image, both enlarged smoothly; uint8 (side, side, 3).

    Where a map has more energy than its RMS, it lies over the image, and the more, the less that shows through.
    most: where the colours end.
    """
    side = (max(len(pixels), SMALLEST),) * 2
    in_rms = Image.fromarray(
        (energies * np.sqrt(energies.size)).astype(np.float32)
    )  # comparable from size to size
    image = np.asarray(Image.fromarray(pixels).resize(side, Image.Resampling.BICUBIC)) / 255
    return (
        255 * over(np.asarray(in_rms.resize(side, Image.Resampling.BICUBIC)), image, most)
    ).astype(np.uint8)


def over(in_rms: np.ndarray, ground: np.ndarray | float, most: float) -> np.ndarray:
    """The colours (..., 3) of energies over a ground, from 0 to 1."""
    share = np.clip((in_rms - 1) / (most - 1), 0, 1)[..., None]
    return (
        OPACITY * share * plt.get_cmap(ENERGY)(share[..., 0])[..., :3]
        + (1 - OPACITY * share) * ground
    )


def map_bar(fig: Figure, axes, quantity: str, most: float = MOST[1]) -> None:
    """The colours of maps of some quantity, over mid-grey."""
    mappable = ScalarMappable(
        Normalize(1, most), ListedColormap(over(np.linspace(1, most, 256), 0.5, most))
    )
    fig.colorbar(
        mappable, ax=axes, label=f"{quantity} / map's RMS", extend="both", pad=0.01, aspect=30
    )
