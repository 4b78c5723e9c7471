"""Pictures of data sets, and of what a loader makes of them."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from kdnb.plots.style import NEUTRAL, figure, in_lines, pictures, spread, words

__all__ = ["augmentations", "class_balance", "image_grid", "image_sizes", "person_boxes"]


def image_grid(images, title: str = "", columns: int = 10, rows: int = 2) -> Figure:
    """The first images of `columns` classes spread over the set, `rows` of each, under their names."""
    classes = spread(len(images.classes), columns)
    shown = "" if len(classes) == len(images.classes) else f", {len(classes)} of which are shown"
    fig, axes = pictures(
        rows, len(classes), f"{len(images):,} images in {len(images.classes)} classes{shown}", title
    )
    for column, label in zip(axes.T, classes, strict=True):
        column[0].set_title(in_lines(images.classes[label]), fontsize=7)
        for ax, member in zip(
            column, np.flatnonzero(np.asarray(images.labels) == label), strict=False
        ):
            show_stored(ax, images, member)
    return fig


def class_balance(train, test, title: str = "") -> Figure:
    """Images per class in both splits; a sentence in place of many bars that are all equal."""
    classes, many = [words(name) for name in train.classes], len(train.classes)
    counts = [np.bincount(np.asarray(images.labels), minlength=many) for images in (train, test)]
    drawn = [many <= 12 or count.min() < count.max() for count in counts]
    names = (0.06 * max(map(len, classes)) if many > 12 else 0.1) * any(drawn)
    heights = [1.5 if bars else 0.3 for bars in drawn]
    fig, axes = figure(
        "Images of each class", title, 0.4 + names + sum(heights), nrows=2, height_ratios=heights
    )
    for ax, split, count, bars in zip(axes, ("train", "test"), counts, drawn, strict=True):
        each = f"{count.min()}" if count.min() == count.max() else f"{count.min()} to {count.max()}"
        ax.set_title(
            f"{split}: {count.sum():,} images in {many} classes, {each} in each",
            fontsize=8,
            loc="left",
        )
        ax.set_axis_off()
        if bars:
            ax.set_axis_on()
            ax.bar(range(many), count, color=NEUTRAL)
            ax.set(ylabel="images", xlim=(-0.6, many - 0.4), xticks=[])
    for ax in axes[drawn][-1:]:
        ax.set_xticks(
            range(many), classes, rotation=90 if many > 12 else 0, fontsize=8 if many <= 40 else 5.5
        )
        ax.set_xlabel("class")
    return fig


def image_sizes(images, photographs=None, title: str = "") -> Figure | None:
    """Widths and heights in pixels of `photographs`, a Stanford40; without, the shapes that Images remember, if any."""
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
        with Image.open(
            photographs.folder / "JPEGImages" / name
        ) as image:  # reads the header alone
            sizes.append(image.size)
    ax.scatter(*zip(*sizes, strict=True), s=8, alpha=0.4, color=NEUTRAL, edgecolor="none")
    ax.axline((0, 0), slope=1, **square)
    ax.set(
        xlabel="width (pixels; dashed: square)",
        ylabel="height (pixels)",
        xlim=(0, None),
        ylim=(0, None),
    )
    return fig


def augmentations(loader, title: str = "", columns: int = 9, rows: int = 3) -> Figure:
    """The first training images of a few classes as they are stored, and as the first epochs' batches show them."""
    labels, plans = (
        np.asarray(loader.images.labels),
        [loader.plan(epoch) for epoch in range(columns - 1)],
    )
    done = ["random-resized crops"] if "box" in plans[0] else []
    done += [f"crops shifted by up to {loader.padding} px"] if "corner" in plans[0] else []
    done += ["flipped with probability ½" if "flip" in plans[0] else "never flipped"]
    what = (
        f"What a network sees of an image, {loader.size} × {loader.size} pixels: {', '.join(done)}"
    )
    chosen = [np.flatnonzero(labels == c)[0] for c in np.unique(labels)[:rows]]
    fig, axes = pictures(len(chosen), columns, what, title, gap=0.1)
    for row, index in zip(axes, chosen, strict=True):
        row[0].set_ylabel(in_lines(loader.images.classes[labels[index]]), fontsize=8)
        show_stored(row[0], loader.images, index)
        for ax, plan in zip(row[1:], plans, strict=True):
            place = np.flatnonzero(plan["index"].cpu().numpy() == index)
            batch = loader.make({key: value[place] for key, value in plan.items()})
            pixels = ((batch.images.float() - loader.shift) / loader.scale)[0].cpu().numpy()
            ax.imshow(pixels.round().clip(0, 255).astype(np.uint8).transpose(1, 2, 0))
    for epoch, ax in enumerate(axes[0]):
        ax.set_title(f"epoch {epoch}" if epoch else "stored", fontsize=8)
    return fig


def person_boxes(photographs, title: str = "", columns: int = 6, rows: int = 2) -> Figure | None:
    """Photographs with the box around the acting person; None for None, a data set without boxes.

    photographs: with `targets`, `classes`, and items (PIL image, (label, box)), box: left, top, right, bottom (pixels).
    """
    if photographs is None:
        return None
    fig, axes = pictures(
        rows, columns, "The box around the person who acts, and its share of the photograph", title
    )
    for ax, label in zip(axes.flat, spread(len(photographs.classes), columns * rows), strict=False):
        image, (_, box) = photographs[list(photographs.targets).index(label)]
        left, top, right, bottom = map(float, box)
        ax.imshow(image)
        ax.add_patch(
            Rectangle(
                (left, top),
                right - left,
                bottom - top,
                fill=False,
                edgecolor="#ffb000",
                linewidth=2,
            )
        )
        share = (right - left) * (bottom - top) / (image.width * image.height)
        name = in_lines(photographs.classes[label], 22)
        ax.set_title(f"{name}\n{share:.0%} of {image.width} × {image.height}", fontsize=7)
    return fig


def show_stored(ax: Axes, images, index: int) -> None:
    """One of Images as it is stored, in the shape that it had on file."""
    aspect = 1.0 if images.aspect is None else float(images.aspect[index])
    ax.imshow(np.asarray(images.images[index]).transpose(1, 2, 0), aspect=1 / aspect)
