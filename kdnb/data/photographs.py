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
from kdnb.data.cache import Photograph, load_or_build, size_and_time
from kdnb.data.download import shorten_list
from kdnb.errors import InputError

IMAGENET_STATS = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean and std


class Files(NamedTuple):
    """The photographs of a data set.

    Attributes:
        folder: the folder that the names are relative to.
        classes: the class names.
        names: paths of the training images and of the test images.
        labels: indices into `classes`, likewise; -1 for a training image without a label.
        photographs: the images themselves, training images first, as `load_or_build` takes them;
            None: the files at `names`.
        facts: what the cache is made from if there are no files, as `load_or_build` takes it.
    """

    folder: Path
    classes: Sequence[str]
    names: Sequence[Sequence[str]]
    labels: Sequence[Sequence[int]]
    photographs: Sequence[Photograph] | None = None
    facts: object = None


def digest(files: Callable[[Path], Files], root: Path) -> str:
    """Returns eight hex digits that identify the photographs in a folder, without opening them.

    They depend on names, file sizes and labels.

    Args:
        files: function that lists the photographs in `root`.
        root: the folder. If it cannot be listed, "" is returned.
    """
    try:
        folder, _, names, labels, *_ = files(root)
    except (InputError, OSError):
        return ""
    sizes = [[(name, size_and_time(folder, name)[0]) for name in split] for split in names]
    return hashlib.sha256(json.dumps([sizes, labels]).encode()).hexdigest()[:8]


def decode(kind: str, files: Files, size: int, skip_damaged: bool) -> tuple[Images, Images]:
    """Returns the training and test images, squashed to size x size, from the cache or into it.

    Args:
        kind: name of the data set, which the name of the cache file starts with.
        files: the photographs.
        size: side of the squares in pixels.
        skip_damaged: whether damaged photographs are left out, with a printed line. If not, they
            raise InputError.

    Raises InputError as `kdnb.data.load_data` does.
    """
    # Both splits at once, so that one error names all damaged photographs.
    names = [*files.names[0], *files.names[1]]
    facts, photographs = files.facts, files.photographs
    if photographs is None:
        facts = [(name, *size_and_time(files.folder, name)) for name in names]
        photographs = [files.folder / name for name in names]
    pixels, aspect = load_or_build(kind, files.folder, facts, photographs, size)
    is_readable = aspect > 0
    if damaged := [name for name, ok in zip(names, is_readable, strict=True) if not ok]:
        report_damaged(damaged, len(names), files.folder, skip_damaged)
    labels = torch.tensor([*files.labels[0], *files.labels[1]], dtype=torch.int64)[is_readable]
    aspect = aspect[is_readable]
    paths = list(compress(photographs, is_readable)) if files.photographs is None else None
    train_count = int(is_readable[: len(files.names[0])].sum())
    train, test = (
        Images(
            pixels[part],
            labels[part],
            tuple(files.classes),
            *IMAGENET_STATS,
            aspect[part],
            paths and paths[part],
        )
        for part in (slice(train_count), slice(train_count, None))
    )
    missing = [
        f"training images of {name}"
        for label, name in enumerate(files.classes)
        if label not in train.labels
    ]
    if missing or not len(test):
        raise InputError(f"{files.folder} has no {shorten_list(missing) or 'test images'}")
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
