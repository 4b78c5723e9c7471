"""Figures of the images of data sets, and of the batches that a loader makes of them."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from kdnb.image_files import open_image
from kdnb.plots.style import NEUTRAL, figure, image_axes
from kdnb.plots.text import drawable_text, without_formulas, wrap


def image_grid(images, title: str = "", columns: int = 10, rows: int = 2) -> Figure:
    """The first images of some classes, a column per class.

    Args:
        images: an `Images`.
        columns: maximum number of classes, evenly spaced over all classes.
        rows: images per class.
    """
    n_classes = len(images.classes)
    classes = evenly_spaced(n_classes, columns)
    subset = "" if len(classes) == n_classes else f", {len(classes)} of which are shown"
    heading = f"{len(images):,} images in {n_classes} classes{subset}"
    fig, axes = image_axes(rows, len(classes), heading, title)
    for column, label in zip(axes.T, classes, strict=True):
        column[0].set_title(wrap(images.classes[label]), fontsize=7)
        members = np.flatnonzero(np.asarray(images.labels) == label)
        for ax, index in zip(column, members, strict=False):
            show_stored(ax, images, index)
    return fig


def evenly_spaced(count: int, max_count: int) -> np.ndarray:
    """Up to `max_count` of the integers below `count`, with the first and the last."""
    return np.linspace(0, count - 1, min(max_count, count)).round().astype(int)


def class_balance(train, test, title: str = "") -> Figure:
    """Images per class in both splits, as bars.

    For a split with more than 12 classes of equal size a sentence replaces the bars.
    """
    n_classes = len(train.classes)
    classes = [without_formulas(drawable_text(name)) for name in train.classes]
    has_many = n_classes > 12
    counts, unlabelled = [], []
    for images in (train, test):
        labels = np.asarray(images.labels)
        counts.append(np.bincount(labels[labels >= 0], minlength=n_classes))
        unlabelled.append((labels < 0).sum())
    has_bars = [not has_many or count.min() < count.max() for count in counts]
    name_height = 0.06 * max(map(len, classes)) if has_many else 0.1
    heights = [1.5 if bars else 0.3 for bars in has_bars]
    height = 0.4 + name_height * any(has_bars) + sum(heights)
    fig, axes = figure("Images per class", title, height, nrows=2, height_ratios=heights)
    splits = zip(axes, ("train", "test"), counts, unlabelled, has_bars, strict=True)
    for ax, split, count, without, bars in splits:
        per_class = f"{count.min()}"
        if count.min() < count.max():
            per_class = f"{count.min()} to {count.max()}"
        sentence = f"{split}: {count.sum():,} images in {n_classes} classes, {per_class} in each"
        if without:
            sentence += f", and {without:,} without a label"
        ax.set_title(sentence, fontsize=8, loc="left")
        ax.set_axis_off()
        if bars:
            ax.set_axis_on()
            ax.bar(range(n_classes), count, color=NEUTRAL)
            ax.set(ylabel="images", xlim=(-0.6, n_classes - 0.4), xticks=[])
    for ax in axes[has_bars][-1:]:
        rotation = 90 if has_many else 0
        fontsize = 8 if n_classes <= 40 else 5.5
        ax.set_xticks(range(n_classes), classes, rotation=rotation, fontsize=fontsize)
        ax.set_xlabel("class")
    return fig


def image_sizes(images, photographs=None, title: str = "") -> Figure | None:
    """Widths and heights of the original images.

    Args:
        images: an `Images`. Without photographs, its aspect ratios are drawn; without aspect
            ratios, the result is None.
        photographs: a `Stanford40`, whose widths and heights are drawn.
    """
    if photographs is None and images.aspect is None:
        return None
    fig, ax = figure(f"Width and height of {len(photographs or images):,} images", title, 3.4)
    square = {"color": "0.3", "linestyle": "--", "linewidth": 1}
    if photographs is None:
        ax.hist(np.asarray(images.aspect), bins=40, color=NEUTRAL)
        ax.axvline(1, **square)
        ax.set(xlabel="width / height (dashed: square)", ylabel="images")
        return fig
    sizes = []
    for name in photographs.names:
        # It reads only the header.
        with open_image(photographs.folder / "JPEGImages" / name) as image:
            sizes.append(image.size)
    widths, heights = zip(*sizes, strict=True)
    ax.scatter(widths, heights, s=8, alpha=0.4, color=NEUTRAL, edgecolor="none")
    ax.axline((0, 0), slope=1, **square)
    ax.set(xlabel="width (pixels; dashed: square)", ylabel="height (pixels)")
    ax.set(xlim=(0, None), ylim=(0, None))
    return fig


def augmentations(loader, title: str = "", columns: int = 9, rows: int = 3) -> Figure:
    """Training images of a few classes as they are stored, and as they are in training batches.

    Args:
        loader: a training `Loader`.
        columns: the stored image, and one column for each of the first epochs.
        rows: maximum number of classes.
    """
    labels = np.asarray(loader.images.labels)
    plans = [loader.plan(epoch) for epoch in range(columns - 1)]
    steps = []
    if "box" in plans[0]:
        steps.append("random-resized crops")
    if "corner" in plans[0]:
        steps.append(f"crops shifted by up to {loader.padding} px")
    steps.append("flipped with probability ½" if "flip" in plans[0] else "never flipped")
    size = f"{loader.size} × {loader.size} pixels"
    heading = f"Training images as the network sees them, {size}: {', '.join(steps)}"
    indices = [
        np.flatnonzero(labels == label)[0] for label in np.unique(labels[labels >= 0])[:rows]
    ]
    fig, axes = image_axes(len(indices), columns, heading, title, gap=0.1)
    for row, index in zip(axes, indices, strict=True):
        row[0].set_ylabel(wrap(loader.images.classes[labels[index]]), fontsize=8)
        show_stored(row[0], loader.images, index)
        for ax, plan in zip(row[1:], plans, strict=True):
            position = np.flatnonzero(plan["index"].cpu().numpy() == index)
            batch = loader.make({key: value[position] for key, value in plan.items()})
            pixels = loader.normalise.invert(batch.images)[0].cpu().numpy()
            ax.imshow(pixels.round().clip(0, 255).astype(np.uint8).transpose(1, 2, 0))
    for epoch, ax in enumerate(axes[0]):
        ax.set_title(f"epoch {epoch}" if epoch else "stored", fontsize=8)
    return fig


def person_boxes(photographs, title: str = "", columns: int = 6, rows: int = 2) -> Figure | None:
    """Photographs with the box around the person who performs the action; None for None.

    Args:
        photographs: has `targets`, `classes`, and items (PIL image, (label, box)). A box is left,
            top, right, bottom in pixels.
    """
    if photographs is None:
        return None
    heading = "Box around the person who performs the action, and its share of the photograph"
    fig, axes = image_axes(rows, columns, heading, title)
    classes = evenly_spaced(len(photographs.classes), columns * rows)
    for ax, label in zip(axes.flat, classes, strict=False):
        image, (_, box) = photographs[list(photographs.targets).index(label)]
        left, top, right, bottom = map(float, box)
        width = right - left
        height = bottom - top
        ax.imshow(image)
        outline = {"fill": False, "edgecolor": "#ffb000", "linewidth": 2}
        ax.add_patch(Rectangle((left, top), width, height, **outline))
        share = width * height / (image.width * image.height)
        name = wrap(photographs.classes[label], 22)
        ax.set_title(f"{name}\n{share:.0%} of {image.width} × {image.height}", fontsize=7)
    return fig


def show_stored(ax: Axes, images, index: int) -> None:
    """Draw an image of `images` as it is stored."""
    ax.imshow(np.asarray(images.images[index]).transpose(1, 2, 0))
