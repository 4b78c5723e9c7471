"""Data sets as arrays of uint8 pixels, and the table that they are registered in.

Each data set is a file in this folder that registers its load function together with its Preset.
`kdnb.data.loader` augments the images on the device.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from kdnb.data.preset import Preset
from kdnb.data.ragged import Ragged
from kdnb.errors import InputError, choose
from kdnb.paths import data_folder


class Batch(NamedTuple):
    """A batch of images.

    Attributes:
        images: normalised pixels, (batch, 3, size, size).
        labels: int64 (batch,).
        index: positions of the images in their split, int64 (batch,).
    """

    images: Tensor
    labels: Tensor
    index: Tensor


# Without eq and repr: comparing tensors gives no single truth value, and they are long to print.
@dataclass(frozen=True, eq=False, repr=False)
class Images:
    """One split of a data set, as arrays.

    Attributes:
        images: pixels 0..255. Images of one size, uint8 (n, 3, size, size), or photographs of
            different aspect ratios, a Ragged. `images[i]` is an image (3, height, width) of either.
            It may be a memory map; writing to it never changes the file.
        labels: indices into `classes`, int64 (n,).
        classes: the class names.
        mean: mean of each channel, of pixels scaled to 0..1. Batches are normalised with it.
        std: standard deviation of each channel, likewise.
        files: the photographs' paths, in the same order; None if there are no files.
    """

    images: Tensor | Ragged
    labels: Tensor
    classes: tuple[str, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    files: Sequence[Path] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        size = f"{self.size} x {self.size} pixels"
        if self.aspect is not None:
            size = f"{self.size} pixels and more"
        return f"Images({len(self):,} of {size}, {len(self.classes)} classes)"

    @property
    def size(self) -> int:
        """The shorter side of the stored images in pixels."""
        if isinstance(self.images, Ragged):
            return int(self.images.sizes.min())
        return self.images.shape[-1]

    @property
    def aspect(self) -> Tensor | None:
        """Width / height of the stored photographs, float32 (n,); None for images of one size."""
        return self.images.aspect if isinstance(self.images, Ragged) else None

    def limit(self, n: int) -> "Images":
        """Returns n images, taken evenly from all classes; all images for n <= 0.

        They are the first image of each class, then the second of each, and so on.

        Raises InputError if there are fewer than n.
        """
        if n > len(self):
            raise InputError(f"train_limit is {n}: there are only {len(self)} training images")
        if n <= 0 or n == len(self):
            return self
        rounds = zip_longest(*self.indices_by_class())
        order = [index for indices in rounds for index in indices if index is not None]
        return self.take(order[:n])

    def split(self, share: float) -> tuple["Images", "Images"]:
        """Holds out a share of the images of each class, rounded up: the last ones of the class.

        Args:
            share: share of the images that is held out, 0..1.

        Returns:
            The remaining images and the held-out ones.

        Raises InputError if a class would have no images left.
        """
        remaining, held_out = [], []
        for name, indices in zip(self.classes, self.indices_by_class(), strict=True):
            # Rounded to 6 digits first: 0.07 * 100 is a little more than 7.
            end = len(indices) - math.ceil(round(share * len(indices), 6))
            if indices and not end:
                raise InputError(f"validation is {share}: that leaves no training image of {name}")
            remaining += indices[:end]
            held_out += indices[end:]
        return self.take(sorted(remaining)), self.take(sorted(held_out))

    def indices_by_class(self) -> list[list[int]]:
        """Returns the indices of the images of each class."""
        return [
            (self.labels == label).nonzero().flatten().tolist()
            for label in range(len(self.classes))
        ]

    def take(self, index: list[int]) -> "Images":
        """Returns the images at these indices, in their order."""
        return replace(
            self,
            images=self.images[index],
            labels=self.labels[index],
            files=None if self.files is None else [self.files[i] for i in index],
        )


Load = Callable[..., tuple[Images, Images]]
Digest = Callable[[Path], str]


class Dataset(NamedTuple):
    """A registered data set, see `register`."""

    preset: Preset
    load: Load
    digest: Digest
    test_images: int


DATASETS: dict[str, Dataset] = {}


def register(
    name: str, preset: Preset, digest: Digest = lambda root: "", test_images: int = 0
) -> Callable[[Load], Load]:
    """Returns a decorator that registers a load function as a data set.

    The function is called as `load(root, size, skip_damaged=...)` with the arguments of
    `load_data`: the folder with the data, the side of the stored images, and whether images that
    cannot be decoded are left out. It returns the training and the test Images.

    Example::

        @register("noise", Preset(student="wrn_16_1", teacher="wrn_16_2", image_size=32, ...))
        def load(root, size, *, skip_damaged): ...

    Args:
        name: name of the data set.
        preset: how it is trained by default.
        digest: function of the root folder that returns eight hex digits, different ones for
            different images in it, or "" if there are no images. Default: always "", for a data
            set whose images never differ.
        test_images: number of test images of the published data set; 0 if there is no such number.
    """

    def add(load: Load) -> Load:
        DATASETS[name] = Dataset(preset, load, digest, test_images)
        return load

    return add


def load_data(
    name: str, root: str | Path = "", size: int = 0, skip_damaged: bool = False
) -> tuple[Images, Images]:
    """Returns the training and the test images of a data set.

    Args:
        name: name in DATASETS: `digits` (part of scikit-learn), `cifar100` or `stanford40`
            (downloaded if missing), `folder` (your own images, `root/train/CLASS/*.jpg` and
            `root/{valid,val,test}/CLASS/*.jpg`), or another that was registered.
        root: folder that holds the data; "": `kdnb.paths.data_folder()`.
        size: side in pixels at which the images are stored, of photographs the shorter one; 0: the
            preset's.
        skip_damaged: whether photographs that cannot be decoded are left out, with a printed line.
            If not, they raise InputError.

    Raises InputError for an unknown name, a size that the data set does not come in, data that are
    missing and cannot be downloaded, damaged photographs, and a cache folder without write access.
    """
    dataset = DATASETS[choose("data set", name, DATASETS)]
    preset = dataset.preset
    if size:
        preset = replace(preset, stored_size=0)  # size already is the size to store
    return dataset.load(data_folder(root), preset.stored(size), skip_damaged=skip_damaged)
