"""Images from what one has: arrays, or torch data sets of (image, label)."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike
from PIL import Image
from torch import Tensor

from kdnb.data.images import Images
from kdnb.data.photographs import Files, decode
from kdnb.errors import InputError

CHUNK = 1024  # images whose pixels are counted at a time

Statistics = tuple[float, float, float]


def from_arrays(
    train: tuple[ArrayLike, ArrayLike],
    test: tuple[ArrayLike, ArrayLike],
    classes: Sequence[str] = (),
    mean: Statistics | None = None,
    std: Statistics | None = None,
) -> tuple[Images, Images]:
    """Returns the training and the test Images of arrays.

    Args:
        train: pixels and labels. The pixels are uint8, or floats between 0 and 1, of shape
            (n, size, size), (n, size, size, channels) or (n, channels, size, size), with 1 or 3
            channels. The labels are integers (n,), -1 for none.
        test: likewise.
        classes: the class names; by default the numbers from 0 to the largest label.
        mean: mean of each channel of the pixels scaled to 0..1; None: that of the training images.
        std: standard deviation, likewise.

    Raises InputError for arrays of other shapes, types or values.
    """
    pixels = [rgb_pixels(images) for images, _ in (train, test)]
    labels = [torch.as_tensor(np.asarray(labels)).long() for _, labels in (train, test)]
    classes = tuple(map(str, classes)) or tuple(map(str, range(int(max(map(max, labels))) + 1)))
    for part, each in zip(pixels, labels, strict=True):
        if each.shape != part.shape[:1]:
            raise InputError(f"{tuple(each.shape)} labels do not fit {len(part):,} images")
        if len(each) and not -1 <= int(each.min()) <= int(each.max()) < len(classes):
            raise InputError(
                f"labels are from {int(each.min())} to {int(each.max())}: with {len(classes)} "
                f"classes they have to be from 0 to {len(classes) - 1}, or -1 for none"
            )
    own_mean, own_std = statistics(pixels[0])
    splits = (
        Images(part, each, classes, mean or own_mean, std or own_std)
        for part, each in zip(pixels, labels, strict=True)
    )
    return tuple(splits)


def from_datasets(
    train: Sequence, test: Sequence, classes: Sequence[str] = (), size: int = 0, cache: str = ""
) -> tuple[Images, Images]:
    """Returns the training and the test Images of two torch data sets.

    Square images of one size stay as they are. Others are photographs: they are decoded once, into
    the cache, and normalised with ImageNet's statistics.

    Args:
        train: a data set with a length, whose items are (image, label): a PIL image, or an array or
            tensor as `from_arrays` takes them; and an integer, -1 for none.
        test: likewise.
        classes: the class names; by default `train.classes`, or the numbers of the labels.
        size: side in pixels at which photographs are stored; for these only.
        cache: name of their cache. It has to change when the images do. For these only.

    Raises InputError for images of other types, and for photographs without size or cache.
    """
    classes = [as_name(name) for name in classes or getattr(train, "classes", ())]
    splits = [stack(dataset) for dataset in (train, test)]
    if all(splits) and splits[0][0].shape[1:] == splits[1][0].shape[1:]:
        return from_arrays(*splits, classes)
    if not (size and cache):
        raise InputError(
            "the images are not squares of one size, so that they are decoded into a cache: "
            "from_datasets needs their size, and as cache a name that changes when they do"
        )
    labels = [labels_of(dataset) for dataset in (train, test)]
    names = [
        [f"{split}[{i}]" for i in range(len(each))]
        for split, each in zip(("train", "test"), labels, strict=True)
    ]
    classes = classes or [str(i) for i in range(max(map(max, labels)) + 1)]
    photographs = Photographs(train), Photographs(test)
    facts = tuple([cache, each] for each in labels)
    files = Files(Path(cache), classes, names, labels, photographs, facts)
    return decode(cache, files, size, skip_damaged=False)


def as_name(name: object) -> str:
    """Returns a class name as text; some of torchvision's are tuples of synonyms."""
    return name[0] if isinstance(name, tuple) else str(name)


def stack(dataset: Sequence) -> tuple[np.ndarray, list[int]] | None:
    """Returns the pixels (n, size, size, 3) and labels of a data set; None if sizes differ."""
    pixels, labels = None, []
    for i in range(len(dataset)):
        image, label = dataset[i]
        array = to_array(image)
        if pixels is None:
            pixels = np.empty((len(dataset), *array.shape), np.uint8)
        if array.shape != pixels.shape[1:] or array.shape[0] != array.shape[1]:
            return None
        pixels[i] = array
        labels.append(int(label))
    return pixels, labels


def labels_of(dataset: Sequence) -> list[int]:
    """Returns the labels of a data set: its `targets`, or else the label of every item."""
    targets = getattr(dataset, "targets", None)
    if targets is None or getattr(dataset, "target_transform", None):
        targets = [dataset[i][1] for i in range(len(dataset))]
    return [int(label) for label in targets]


class Photographs(Sequence):
    """The images of a torch data set, as PIL images."""

    def __init__(self, dataset: Sequence):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Image.Image:
        image, _ = self.dataset[index]
        return image if isinstance(image, Image.Image) else Image.fromarray(to_array(image))


def to_array(image: Image.Image | ArrayLike | Tensor) -> np.ndarray:
    """Returns an image as RGB pixels, uint8 (height, width, 3). Raises InputError for others."""
    if isinstance(image, Image.Image):
        if image.mode.startswith(("I", "F")):
            raise InputError(f"an image has mode {image.mode}: it has to have 8 bits a channel")
        return np.asarray(image.convert("RGB"))
    return rgb_pixels(np.asarray(image)[None], square=False)[0].permute(1, 2, 0).numpy()


def rgb_pixels(images: ArrayLike, square: bool = True) -> Tensor:
    """Returns pixels in the layout of Images, uint8 (n, 3, height, width).

    Args:
        images: see `from_arrays`.
        square: whether images have to be as high as wide.

    Raises InputError for other shapes, types or values.
    """
    array = np.asarray(images)
    shape = array.shape
    if array.ndim == 3:
        array = array[:, None]
    elif array.ndim == 4 and shape[3] in (1, 3):
        array = array.transpose(0, 3, 1, 2)
    if array.ndim != 4 or array.shape[1] not in (1, 3) or (square and len({*array.shape[2:]}) > 1):
        raise InputError(
            f"images have shape {shape}: it has to be (n, size, size), (n, size, size, channels) "
            "or (n, channels, size, size), with 1 or 3 channels"
        )
    if array.dtype.kind == "f":
        if array.size and not (array.min() >= 0 and array.max() <= 1):
            raise InputError(
                f"images have values from {array.min():g} to {array.max():g}: floats have to be "
                "between 0 and 1"
            )
        array = np.rint(array * 255).astype(np.uint8)
    if array.dtype != np.uint8:
        raise InputError(f"images have type {array.dtype}: it has to be uint8, or a float type")
    if not array.flags.writeable:  # torch would warn
        array = array.copy()
    return torch.from_numpy(array).expand(-1, 3, -1, -1).contiguous()


def statistics(pixels: Tensor) -> tuple[Statistics, Statistics]:
    """Returns mean and standard deviation of each channel, of pixels scaled to 0..1.

    Args:
        pixels: uint8 (n, 3, height, width).
    """
    counts = torch.zeros(3, 256, dtype=torch.float64)  # of each value in each channel
    for chunk in pixels.split(CHUNK):
        for channel in range(3):
            counts[channel] += torch.bincount(chunk[:, channel].flatten(), minlength=256)
    shares = counts / counts.sum(1, keepdim=True)
    values = torch.arange(256) / 255
    mean = shares @ values.double()
    std = (shares * (values - mean[:, None]).square()).sum(1).sqrt()
    return tuple(mean.tolist()), tuple(std.tolist())
