"""Pictures of pixels: data sets and what batches make of them, and spatial maps laid over images.

Like plots.py, arrays -> matplotlib Figures, for a notebook's width.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from kdnb import attention
from kdnb.attention import Gallery, Networks, Survey
from kdnb.batches import Batches
from kdnb.data import ImageSet, Stanford40
from kdnb.experiment import Experiment
from kdnb.plots import PALETTE, SEQUENTIAL, TITLE, WIDTH, in_lines, short

__all__ = [
    "augmentations",
    "class_balance",
    "image_sizes",
    "map_depth",
    "map_grid",
    "mistakes",
    "overlay",
    "person_boxes",
    "photographs",
]

MAP_TOP = 3.0  # where the colours of spatial maps end, one scale for all figures
OPACITY = 0.72  # of a map over its image


# Data sets


def photographs(experiment: Experiment) -> Stanford40 | None:
    """The training photographs as they lie on disk, with their boxes, or None for data sets that are arrays."""
    if experiment.dataset != "stanford40":
        return None
    return Stanford40(experiment.data_folder, boxes=True)


def class_balance(train: ImageSet, test: ImageSet) -> Figure:
    """Images per class in both splits."""
    counts = {n: np.bincount(s.labels.numpy(), minlength=len(s.classes)) for n, s in (("train", train), ("test", test))}
    classes, many = [name.replace("_", " ") for name in train.classes], len(train.classes)
    tall = 3.4 + (0.06 * max(map(len, classes)) if many > 12 else 0)
    fig, axes = plt.subplots(2, 1, figsize=(WIDTH, tall), sharex=True, layout="constrained")
    for ax, (split, count), colour in zip(axes, counts.items(), sns.color_palette(PALETTE), strict=False):
        ax.bar(np.arange(len(count)), count, color=colour, width=0.8)
        spread = f"{count.min()}" if count.min() == count.max() else f"{count.min()} to {count.max()}"
        ax.set_title(f"{split}: {count.sum():,} images, {spread} a class", fontsize=8, loc="left")
        ax.set_ylabel("images")
    axes[1].set_xticks(range(many), classes, rotation=90 if many > 12 else 0, fontsize=8 if many <= 40 else 5.5)
    axes[1].set(xlabel="class", xlim=(-0.6, many - 0.4))
    sns.despine(fig)
    few, most = counts["train"].min(), counts["train"].max()
    balance = (
        f"Every class has {few} training images" if few == most else f"Classes have {few} to {most} training images"
    )
    fig.suptitle(balance, fontsize=TITLE, wrap=True)
    return fig


def image_sizes(images: ImageSet, photographs: Stanford40 | None = None) -> Figure | None:
    """Sizes in pixels of photographs on disk, or the shapes that an ImageSet remembers; a sentence if all are alike."""
    if photographs is None and images.aspect is None:
        print(f"all {len(images):,} images are {images.size} × {images.size} pixels")
        return None
    if photographs is None:
        aspect, wide = images.aspect.numpy(), images.aspect.numpy() > 1
        fig, ax = plt.subplots(figsize=(WIDTH, 3), layout="constrained")
        ax.hist(aspect, bins=40, color=sns.color_palette(PALETTE)[0])
        ax.axvline(1, color="0.3", linestyle="--", linewidth=1)
        ax.set(xlabel="width / height (dashed: square)", ylabel="images")
        ax.set_title(f"{100 * wide.mean():.0f} % of the images are wider than high", fontsize=TITLE, wrap=True)
    else:
        sizes = np.array([file_size(photographs.folder / "JPEGImages" / name) for name in photographs.names])
        fig, ax = plt.subplots(figsize=(WIDTH, 4), layout="constrained")
        ax.scatter(*sizes.T, s=8, alpha=0.25, color=sns.color_palette(PALETTE)[0], edgecolor="none")
        ax.axline((0, 0), slope=1, color="0.3", linestyle="--", linewidth=1)
        ax.set(xlabel="width (pixels; dashed: square)", ylabel="height (pixels)", xlim=(0, None), ylim=(0, None))
        wide = (sizes[:, 0] > sizes[:, 1]).mean()
        width, height = np.median(sizes, 0)
        title = (
            f"{100 * wide:.0f} % of photographs are wider than high; the median has {width:.0f} × {height:.0f} pixels"
        )
        ax.set_title(title, fontsize=TITLE, wrap=True)
    sns.despine(fig)
    return fig


def file_size(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:  # reads the header alone
        return image.size


def augmentations(batches: Batches, columns: int = 9, rows: int = 3) -> Figure:
    """The first training images of a few classes as they are, and as the first epochs' batches show them."""
    labels = batches.set.labels.numpy()
    chosen = [np.flatnonzero(labels == c)[0] for c in np.unique(labels)[:rows]]
    fig, axes = plt.subplots(
        rows, columns, figsize=(WIDTH, 0.5 + rows * 0.97 * WIDTH / columns), squeeze=False, layout="constrained"
    )
    plans = [batches.plan(epoch) for epoch in range(columns - 1)]
    for row, index in zip(axes, chosen, strict=False):
        aspect = 1.0 if batches.set.aspect is None else float(batches.set.aspect[index])
        row[0].imshow(batches.set.images[index].permute(1, 2, 0).numpy(), aspect=1 / aspect)
        for ax, plan in zip(row[1:], plans, strict=True):
            place = np.flatnonzero(plan["index"].cpu().numpy() == index)
            image, _ = batches.make({key: value[place] for key, value in plan.items()})
            pixels = (image.float() - batches.shift) / batches.scale
            ax.imshow(pixels[0].round().clamp(0, 255).byte().permute(1, 2, 0).cpu().numpy())
        row[0].set_ylabel(in_lines(batches.set.classes[labels[index]]), fontsize=8)
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
    for epoch, ax in enumerate(axes[0]):
        ax.set_title(f"epoch {epoch}" if epoch else "on file", fontsize=8)
    plan = batches.plan(0)
    told = ["random-resized crops"] if "box" in plan else []
    told += [f"crops shifted by up to {batches.padding} pixel{'s'[: batches.padding > 1]}"] if "corner" in plan else []
    told += ["mirrored every second time"] if "mirror" in plan else ["never mirrored"]
    size = f"{batches.size} × {batches.size} pixels"
    fig.suptitle(f"What the network sees of one image, {size}: {', '.join(told)}", fontsize=TITLE, wrap=True)
    return fig


def person_boxes(photographs: Stanford40 | None, columns: int = 6, rows: int = 2) -> Figure | None:
    """Photographs with the box around the acting person; a sentence for data sets without boxes."""
    if photographs is None:
        print("this data set has no boxes; Stanford40 has")
        return None
    labels, count = np.array(photographs.targets), columns * rows
    chosen = [
        np.flatnonzero(labels == c)[0] for c in np.linspace(0, len(photographs.classes) - 1, count).round().astype(int)
    ]
    fig, axes = plt.subplots(rows, columns, figsize=(WIDTH, 0.5 + 1.7 * rows), squeeze=False, layout="constrained")
    shares = []
    for ax, index in zip(axes.flat, chosen, strict=True):
        image, (label, box) = photographs[index]
        left, top, right, bottom = box.tolist()
        ax.imshow(image)
        ax.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor="#ffb000", linewidth=2))
        ax.set(xticks=[], yticks=[])
        share = (right - left) * (bottom - top) / (image.width * image.height)
        ax.set_title(photographs.classes[label].replace("_", " "), fontsize=7)
        ax.set_xlabel(f"{100 * share:.0f} % of {image.width} × {image.height}", fontsize=7)
        shares.append(share)
    title = f"The person's box covers {100 * min(shares):.0f} to {100 * max(shares):.0f} % of these {count} photographs"
    fig.suptitle(title, fontsize=TITLE, wrap=True)
    return fig


# Spatial maps


def map_depth(gallery: Gallery, pairs: Sequence[tuple[int, int]], image: int = 0) -> Figure:
    """One image of the gallery, a column per pair of blocks (t, s), a row per network: where each looks, by depth."""
    fig, axes = grid_of(len(gallery.maps), len(pairs))
    distances = {}
    for row, (network, blocks) in zip(axes, gallery.maps.items(), strict=True):
        for ax, (t, s) in zip(row, pairs, strict=True):
            of_teacher = network == "teacher"
            overlay(ax, gallery.pixels[image], blocks[t if of_teacher else s][image])
            label = gallery.teacher_blocks[t] if of_teacher else gallery.student_blocks[s]
            if network != "distilled student":  # its blocks are those of the row above
                ax.set_title("\n".join(label.split()), fontsize=7, pad=3)
            if not of_teacher:
                distance = gallery.distance(network, t, s)[image]
                distances.setdefault(network, []).append(distance)
                ax.set_xlabel(f"distance {distance:.2f}", fontsize=7, labelpad=2)
        row[0].set_ylabel(network, fontsize=8)
    map_bar(fig, axes)
    before, after = (np.array(distances[student]) for student in ("plain student", "distilled student"))
    title = f"“{gallery.names[image].replace('_', ' ')}”: {int((after < before).sum())} of {len(pairs)} student blocks"
    fig.suptitle(f"{title} look more like their teacher block after distillation", fontsize=TITLE, wrap=True)
    return fig


def map_grid(gallery: Gallery, pair: tuple[int, int]) -> Figure:
    """A column per image: the image, then each network's map of one pair of blocks (t, s) laid over it."""
    t, s = pair
    students = [name for name in gallery.maps if name != "teacher"]
    distances = {name: gallery.distance(name, t, s) for name in students}
    captions = {name: [f"distance {d:.2f}" for d in distances[name]] for name in students}
    closer = int((distances["distilled student"] < distances["plain student"]).sum())
    title = f"Distillation brings student block {short(gallery.student_blocks[s])} closer to teacher block"
    title += f" {short(gallery.teacher_blocks[t])} on {closer} of {len(gallery.pixels)} images"
    return columns_of(gallery, pair, captions, title)


def mistakes(networks: Networks, batches: Batches, survey: Survey, better: str, most: int = 6) -> Figure | None:
    """Images that `better`, one of the students, alone gets right, with the maps of a pair of blocks in the middle.

    Those on which the two differ most come first. A sentence if there are none.
    """
    corrected, spoilt = attention.mistakes(survey)
    verb, index = ("corrects", corrected) if better == "distilled student" else ("spoils", spoilt)
    if not len(index):
        print(f"distillation {verb} none of the {len(survey.labels):,} test images")
        return None
    gallery = attention.look(networks, batches, index[:most])
    captions = {}
    for name, answers in survey.answers.items():
        said = [batches.set.classes[answer] for answer in answers[gallery.index]]
        captions[name] = [f"“{in_lines(answer, 16)}”" for answer in said]
    title = f"Distillation {verb} {len(index)} of {len(survey.labels):,} test images"
    title += f" ({100 * len(index) / len(survey.labels):.1f} %)"
    title += f"; the {most} clearest" if len(index) > most else ""
    return columns_of(gallery, survey.middle, captions, title)


def columns_of(gallery: Gallery, pair: tuple[int, int], captions: dict[str, list[str]], title: str) -> Figure:
    t, s = pair
    n = len(gallery.pixels)
    fig, axes = grid_of(1 + len(gallery.maps), max(4, n), 0.16)  # a lone image need not fill the page
    for ax, image, name in zip(axes[0], gallery.pixels, gallery.names, strict=False):
        overlay(ax, image)
        ax.set_title(in_lines(name, 16), fontsize=8)
    axes[0, 0].set_ylabel("image", fontsize=8)
    for row, (network, blocks) in zip(axes[1:], gallery.maps.items(), strict=True):
        block = t if network == "teacher" else s
        for ax, image, energies in zip(row, gallery.pixels, blocks[block], strict=False):
            overlay(ax, image, energies)
        for ax, caption in zip(row, captions.get(network, []), strict=False):
            ax.set_xlabel(caption, fontsize=7, labelpad=2)
        names = gallery.teacher_blocks if network == "teacher" else gallery.student_blocks
        row[0].set_ylabel(f"{network}\n{short(names[block])}", fontsize=8)
    for ax in axes[:, n:].flat:
        ax.axis("off")
    map_bar(fig, axes)
    fig.suptitle(title, fontsize=TITLE, wrap=True)
    return fig


def overlay(ax: Axes, pixels: np.ndarray, energies: np.ndarray | None = None) -> None:
    """The image; or, in grey, under a map (h, w) of L2-normalised energies, whose colours count in its own RMS."""
    ax.set_xticks([])
    ax.set_yticks([])
    if energies is None:
        ax.imshow(pixels)
        return
    extent = (-0.5, pixels.shape[1] - 0.5, pixels.shape[0] - 0.5, -0.5)
    ax.imshow(blend(pixels, energies), extent=extent)


def blend(pixels: np.ndarray, energies: np.ndarray) -> np.ndarray:
    """uint8 (size, size, 3): the map's colours, through which the image shows in grey; mid-grey is the colour bar's."""
    size = max(pixels.shape[0], 64)  # a digit of 8 pixels would hide a map of as few
    rows, columns = (np.arange(size) * n // size for n in energies.shape)
    colours = plt.get_cmap(SEQUENTIAL)(np.clip(scaled(energies) / MAP_TOP, 0, 1))[rows][:, columns, :3]
    places = np.arange(size) * pixels.shape[0] // size
    light = pixels.astype(np.float32).mean(-1)[places][:, places, None] / 255
    return (255 * (OPACITY * colours + (1 - OPACITY) * light)).astype(np.uint8)


def scaled(energies: np.ndarray) -> np.ndarray:
    """L2-normalised maps (..., h, w) in units of their root mean square, comparable from size to size."""
    return energies * np.sqrt(energies.shape[-2] * energies.shape[-1])


def grid_of(rows: int, columns: int, gap: float = 0.3) -> tuple[Figure, np.ndarray]:
    side = (WIDTH - 1.2) / max(columns, 6)
    return plt.subplots(
        rows, columns, figsize=(1.2 + side * columns, 0.5 + rows * (side + gap)), squeeze=False, layout="constrained"
    )


def map_bar(fig: Figure, axes, label: str = "energy (1: the map's root mean square)") -> None:
    colours = plt.get_cmap(SEQUENTIAL)(np.linspace(0, 1, 256))[:, :3]
    mappable = ScalarMappable(Normalize(0, MAP_TOP), ListedColormap(OPACITY * colours + (1 - OPACITY) * 0.5))
    fig.colorbar(mappable, ax=axes, label=label, extend="max", pad=0.01, aspect=30)
