"""Data sets of photographs: from a list of files to the Images of both splits."""

import hashlib
import json
from collections.abc import Callable, Sequence
from itertools import compress
from pathlib import Path
from typing import NamedTuple

import PIL
import torch
from PIL import Image, features

from kdnb.data.cache import Photograph, load_or_build, size_and_time
from kdnb.data.download import shorten_list
from kdnb.data.images import Images
from kdnb.errors import InputError
from kdnb.progress import count

TRAIN_SCALE = 2  # shorter side of stored training images / that of test images
# What decodes JPEG files: another version may give other pixels.
DECODER = f"Pillow {PIL.__version__}, JPEG {features.version('jpg')}"
IMAGENET_STATS = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean and std


class Files(NamedTuple):
    """The photographs of a data set.

    Attributes:
        folder: the folder that the names are relative to.
        classes: the class names.
        names: paths of the training images and of the test images.
        labels: indices into `classes`, likewise; -1 for a training image without a label.
        photographs: the training and the test images, as `load_or_build` takes them; None: the
            files at `names`.
        facts: what each split's cache is made from if there are no files, likewise.
        left_out: the files in the folder that are not used.
    """

    folder: Path
    classes: Sequence[str]
    names: Sequence[Sequence[str]]
    labels: Sequence[Sequence[int]]
    photographs: tuple[Sequence[Photograph], Sequence[Photograph]] | None = None
    facts: tuple[object, object] | None = None
    left_out: Sequence[str] = ()


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
    if files.left_out:
        print(
            f"{count(len(files.left_out), 'file')} in {files.folder} left out (no image by the "
            f"ending, no regular file, or a link to what is there anyway): "
            f"{shorten_list(files.left_out)}",
            flush=True,
        )
    photographs, facts = files.photographs, files.facts
    if photographs is None:
        photographs = [[files.folder / name for name in split] for split in files.names]
        facts = [
            [(name, *size_and_time(files.folder, name)) for name in split] for split in files.names
        ]
    stored = []
    damaged = []
    for i, split in enumerate(("train", "test")):
        # Training images are not enlarged: their crops are resized in any case.
        is_train = split == "train"
        images, is_readable, digest = load_or_build(
            f"{kind}-{split}",
            files.folder,
            facts[i],
            photographs[i],
            TRAIN_SCALE * size if is_train else size,
            enlarge=not is_train,
        )
        labels = torch.tensor(files.labels[i], dtype=torch.int64)[is_readable]
        paths = list(compress(photographs[i], is_readable)) if files.photographs is None else None
        lost = tuple(compress(files.names[i], ~is_readable))
        facts_of = {"files": paths, "damaged": lost, "pixels_digest": f"{digest[:16]} ({DECODER})"}
        stored.append(Images(images, labels, tuple(files.classes), *IMAGENET_STATS, **facts_of))
        damaged += lost
    if damaged:  # of both splits, so that one error names all
        report_damaged(damaged, sum(map(len, files.names)), files.folder, skip_damaged)
    train, test = stored
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
