"""torchvision's classification data sets by name: `torch/cifar10`, `torch/food101` ...

Small images of one size are trained by CIFAR-100's preset, photographs by Stanford 40's.

torchvision checks the pickles of CIFAR-10 by their MD5 sums before it opens them. The files of the
other data sets are images, text, arrays, .mat and .h5 files, from which no code is run.
"""

import importlib.util
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torchvision

from kdnb.data import cifar100, stanford40
from kdnb.data.base import Preset, register
from kdnb.data.convert import as_name, from_arrays, stack
from kdnb.data.digests import no_digest, once
from kdnb.data.download import downloading
from kdnb.data.images import Images
from kdnb.data.photographs import Files, decode, digest
from kdnb.errors import InputError

Arguments = tuple[dict, ...]
TRAIN_OR_NOT = ({"train": True},), ({"train": False},)
SEED = 0  # of the split of a data set without an official one
TEST_SHARE = 0.2


def splits(*train: str, test: str) -> tuple[Arguments, Arguments]:
    """Returns the arguments of the splits of a class with the argument `split`."""
    return tuple({"split": name} for name in train), ({"split": test},)


def caltech_files(dataset) -> Iterable[tuple[str, int]]:
    for i in range(len(dataset)):
        image, label = dataset[i]  # opened, but not decoded
        yield image.filename, label


def pcam_arrays(dataset) -> tuple[np.ndarray, np.ndarray]:
    """The whole arrays: opening the file for each image, as torchvision does, takes minutes."""
    import h5py

    images, targets = (name for name, *_ in dataset._FILES[dataset._split].values())
    with (
        h5py.File(dataset._base_folder / images) as x,
        h5py.File(dataset._base_folder / targets) as y,
    ):
        return x["x"][:], y["y"][:].ravel()


class Source(NamedTuple):
    """How a data set of torchvision is constructed.

    Attributes:
        splits: arguments of its class for the training and the test images; several dictionaries
            are joined. Without those for the test images there is no official split.
        size: side of its images in pixels; 0 for photographs of all sizes.
        flip: whether a mirrored image still is of its class.
        read: function of the torchvision data set: pixels and labels as `from_arrays` takes them,
            or (path, label) pairs of photographs. None: its `data` or all of its items, or what it
            passes to its argument `loader`.
        package: a package that torchvision needs to read it.
    """

    splits: tuple[Arguments, Arguments]
    size: int = 0
    flip: bool = True
    read: Callable | None = None
    package: str = ""


WHOLE: tuple[Arguments, Arguments] = ({},), ()
BALANCED = tuple(({"split": "balanced", **part[0]},) for part in TRAIN_OR_NOT)
SOURCES = {
    "CIFAR10": Source(TRAIN_OR_NOT, 32),
    "EMNIST": Source(BALANCED, 28, flip=False),
    "EuroSAT": Source(WHOLE, 64),
    "FashionMNIST": Source(TRAIN_OR_NOT, 28),
    "KMNIST": Source(TRAIN_OR_NOT, 28, flip=False),
    "MNIST": Source(TRAIN_OR_NOT, 28, flip=False),
    "PCAM": Source(splits("train", test="test"), 96, read=pcam_arrays, package="h5py"),
    "QMNIST": Source(TRAIN_OR_NOT, 28, flip=False),
    "STL10": Source(splits("train", test="test"), 96),
    "STL10-unlabelled": Source(splits("train+unlabeled", test="test"), 96),
    "SVHN": Source(splits("train", test="test"), 32, flip=False),
    "USPS": Source(TRAIN_OR_NOT, 16, flip=False),
    "Caltech101": Source(WHOLE, read=caltech_files),
    "Caltech256": Source(WHOLE, read=caltech_files),
    "Country211": Source(splits("train", test="test")),
    "DTD": Source(splits("train", "val", test="test")),
    "FGVCAircraft": Source(splits("trainval", test="test")),
    "Flowers102": Source(splits("train", "val", test="test")),
    "Food101": Source(splits("train", test="test")),
    "GTSRB": Source(splits("train", test="test"), flip=False, read=lambda d: d._samples),
    "Imagenette": Source(splits("train", test="val")),
    "OxfordIIITPet": Source(
        splits("trainval", test="test"), read=lambda d: zip(d._images, d._labels, strict=True)
    ),
    "RenderedSST2": Source(splits("train", test="test"), flip=False),
    "StanfordCars": Source(splits("train", test="test")),
    "SUN397": Source(WHOLE),
}


def preset(source: Source) -> Preset:
    """Returns CIFAR-100's preset at another size for small images, else Stanford 40's."""
    if not source.size:
        return replace(stanford40.PRESET, flip=source.flip)
    sizes = {"image_size": source.size, "padding": source.size // 8}
    return replace(cifar100.PRESET, flip=source.flip, **sizes)


def open_splits(name: str, root: Path, download: bool) -> tuple[list, list]:
    """Returns the torchvision data sets of the training and of the test images.

    Args:
        name: key in SOURCES.
        root: the root folder, as torchvision calls it.
        download: whether they are downloaded if they are missing.

    Raises InputError if they are missing and are not, or cannot be, downloaded.
    """
    source = SOURCES[name]
    make = getattr(torchvision.datasets, name.partition("-")[0])
    if source.package and importlib.util.find_spec(source.package) is None:
        raise InputError(
            f"torch/{name.lower()} needs {source.package}: pip install {source.package}"
        )
    lists_paths = not source.size and source.read is None
    loader = {"loader": str} if lists_paths else {}  # dataset[i] then is a path and a label

    def open_all(**how) -> tuple[list, list]:
        train, test = (
            [make(root, **each, **loader, **how) for each in part] for part in source.splits
        )
        return train, test

    try:
        return open_all()
    except Exception as error:  # missing and damaged files raise nearly any exception
        if not download:
            raise InputError(f"torch/{name.lower()} is not complete in {root}") from error
    archives = [f"the files of torchvision.datasets.{make.__name__}"]
    with downloading(f"torch/{name.lower()}", archives, root, root / f".{name}.lock"):
        return open_all(download=True)


def class_names(dataset, count: int) -> list[str]:
    """Returns the names of the classes; their numbers for a data set that does not name them."""
    names = getattr(dataset, "classes", None) or getattr(dataset, "categories", None)
    return [as_name(each) for each in names or range(count)]


def divide(name: str, labels: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the indices of training and test images for a data set without an official split."""
    from sklearn.model_selection import train_test_split  # a second to import

    indices = np.arange(len(labels))
    return train_test_split(indices, test_size=TEST_SHARE, stratify=labels, random_state=SEED)


# ------------------------------------------------------------------------------------ small images


def arrays(name: str, dataset) -> tuple[np.ndarray, np.ndarray]:
    """Returns the pixels and the labels of a data set of small images."""
    source = SOURCES[name]
    if source.read:
        return source.read(dataset)
    if not hasattr(dataset, "data"):
        return tuple(map(np.asarray, stack(dataset)))
    labels = np.asarray(dataset.targets if hasattr(dataset, "targets") else dataset.labels)
    return np.asarray(dataset.data), labels[:, 0] if labels.ndim > 1 else labels  # of QMNIST


def load_small(name: str, root: Path, size: int, **_) -> tuple[Images, Images]:
    """Returns the training and the test images of a data set of small images."""
    parts = open_splits(name, root, download=True)
    (pixels, labels), *rest = [
        [np.concatenate(each) for each in zip(*(arrays(name, d) for d in part), strict=True)]
        for part in parts
        if part
    ]
    train, test = (pixels, labels), rest[0] if rest else ()
    if not rest:
        report_split(name)
        train, test = ((pixels[index], labels[index]) for index in divide(name, labels))
    return from_arrays(train, test, class_names(parts[0][0], int(labels.max()) + 1))


# ------------------------------------------------------------------------------------- photographs


def files(name: str, root: Path, download: bool = False) -> Files:
    """Lists the photographs of both splits. Raises InputError as `open_splits` does."""
    source = SOURCES[name]
    parts = open_splits(name, root, download)
    read = source.read or (lambda dataset: (dataset[i] for i in range(len(dataset))))
    found = [sorted(pair for dataset in part for pair in read(dataset)) for part in parts]
    names = [[Path(path).relative_to(root).as_posix() for path, _ in part] for part in found]
    labels = [[label for _, label in part] for part in found]
    if not names[1]:
        indices = divide(name, labels[0])
        names, labels = (
            [[values[0][i] for i in index] for index in indices] for values in (names, labels)
        )
    return Files(root, class_names(parts[0][0], max(labels[0]) + 1), names, labels)


def load_photographs(
    name: str, root: Path, size: int, *, skip_damaged: bool
) -> tuple[Images, Images]:
    """Returns the training and the test images of a data set of photographs."""
    found = files(name, root, download=True)
    if not SOURCES[name].splits[1]:
        report_split(name)
    return decode(f"torch-{name.lower()}", found, size, skip_damaged)


def report_split(name: str) -> None:
    print(
        f"torch/{name.lower()} has no official split: {TEST_SHARE:.0%} of each class, drawn with "
        f"seed {SEED}, are the test images",
        flush=True,
    )


for name, source in SOURCES.items():
    load = load_small if source.size else load_photographs
    own_digest = no_digest if source.size else once(partial(digest, partial(files, name)))
    register(f"torch/{name.lower()}", preset(source), own_digest)(partial(load, name))
