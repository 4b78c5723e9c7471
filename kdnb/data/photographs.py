"""Data sets of photographs: from a list of files to the Images of both splits."""

import hashlib
import json
from collections.abc import Callable, Sequence
from itertools import compress
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image

from kdnb.data.base import Images
from kdnb.data.cache import load_or_build, size_and_time
from kdnb.data.download import shorten_list
from kdnb.errors import InputError

TRAIN_SCALE = 2  # shorter side of stored training images / that of test images
IMAGENET_STATS = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean and std


class Files(NamedTuple):
    """The photographs of a data set.

    Attributes:
        folder: the folder that the names are relative to.
        classes: the class names.
        names: paths of the training images and of the test images.
        labels: indices into `classes`, likewise.
    """

    folder: Path
    classes: Sequence[str]
    names: Sequence[Sequence[str]]
    labels: Sequence[Sequence[int]]


def digest(files: Callable[[Path], Files], root: Path) -> str:
    """Returns eight hex digits that identify the photographs in a folder, without opening them.

    They depend on names, file sizes and labels.

    Args:
        files: function that lists the photographs in `root`.
        root: the folder. If it cannot be listed, "" is returned.
    """
    try:
        folder, _, names, labels = files(root)
    except (InputError, OSError):
        return ""
    sizes = [[(name, size_and_time(folder, name)[0]) for name in split] for split in names]
    return hashlib.sha256(json.dumps([sizes, labels]).encode()).hexdigest()[:8]


def decode(kind: str, files: Files, size: int, skip_damaged: bool) -> tuple[Images, Images]:
    """Returns the training and test images, from the cache or into it.

    Test images are stored with a shorter side of `size`: their centre crops are then those of
    torchvision's Resize and CenterCrop, to the pixel. Training images are stored larger, because
    random-resized crops show parts of them: TRAIN_SCALE times, but no larger than they are.

    Args:
        kind: name of the data set, which the names of the cache files start with.
        files: the photographs.
        size: shorter side of the stored test images in pixels.
        skip_damaged: whether damaged photographs are left out, with a printed line. If not, they
            raise InputError.

    Raises InputError as `kdnb.data.load_data` does.
    """
    folder, classes, names, labels = files
    splits = []
    damaged = []
    for split, side, enlarge in (("train", TRAIN_SCALE * size, False), ("test", size, True)):
        split_names = names[len(splits)]
        facts = [(name, *size_and_time(folder, name)) for name in split_names]
        paths = [folder / name for name in split_names]
        kind_of_split = f"{kind}-{split}"
        images, is_readable = load_or_build(kind_of_split, folder, facts, paths, side, enlarge)
        splits.append((images, is_readable, list(compress(paths, is_readable))))
        damaged += compress(split_names, ~is_readable)
    if damaged:  # of both splits, so that one error names all
        report_damaged(damaged, sum(map(len, names)), folder, skip_damaged)
    train, test = (
        Images(
            images,
            torch.tensor(split_labels, dtype=torch.int64)[is_readable],
            tuple(classes),
            *IMAGENET_STATS,
            paths,
        )
        for (images, is_readable, paths), split_labels in zip(splits, labels, strict=True)
    )
    missing = [
        f"training images of {name}"
        for label, name in enumerate(classes)
        if label not in train.labels
    ]
    if missing or not len(test):
        raise InputError(f"{folder} has no {shorten_list(missing) or 'test images'}")
    return train, test


def report_damaged(damaged: Sequence[str], total: int, folder: Path, skip: bool) -> None:
    """Prints which photographs are left out. Raises InputError instead if they may not be."""
    text = (
        f"{len(damaged):,} of {total:,} images in {folder} cannot be decoded (empty, truncated, "
        f"not an image of 8 bits a channel, or of more than {Image.MAX_IMAGE_PIXELS} pixels)"
    )
    if not skip:
        raise InputError(f"{text}: {shorten_list(damaged)}; skip_damaged leaves them out")
    print(f"{text} and are left out: {shorten_list(damaged)}", flush=True)
