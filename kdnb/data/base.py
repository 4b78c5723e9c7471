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

from kdnb.data.digests import digest_of_load
from kdnb.data.preset import Preset
from kdnb.errors import InputError, choose
from kdnb.paths import data_folder
from kdnb.sources import claim


class Batch(NamedTuple):
    """A batch of images.

    Attributes:
        images: normalised pixels, (batch, 3, size, size).
        labels: int64 (batch,); -1 for an image without a label.
        index: positions of the images in their split, int64 (batch,).
        teacher_images: the same crops as the teacher sees them, in its normalisation and size;
            None if it sees `images`.
    """

    images: Tensor
    labels: Tensor
    index: Tensor
    teacher_images: Tensor | None = None

    @property
    def for_teacher(self) -> Tensor:
        """The images that a teacher gets."""
        return self.images if self.teacher_images is None else self.teacher_images


# Without eq and repr: comparing tensors gives no single truth value, and they are long to print.
@dataclass(frozen=True, eq=False, repr=False)
class Images:
    """One split of a data set, as arrays.

    Attributes:
        images: pixels 0..255, uint8 (n, 3, size, size). It may be a memory map; writing to it
            never changes the file.
        labels: indices into `classes`, int64 (n,); -1 for an image without a label, which only
            training images may be.
        classes: the class names.
        mean: mean of each channel, of pixels scaled to 0..1. Batches are normalised with it.
        std: standard deviation of each channel, likewise.
        aspect: width / height of the original images, float32 (n,), if they were squashed to
            squares; None if they are square.
        files: the photographs' paths, in the same order; None if there are no files.
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    aspect: Tensor | None = None
    files: Sequence[Path] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        size = f"{self.size} x {self.size} pixels"
        rest = f", {self.unlabelled:,} without a label" if self.unlabelled else ""
        return f"Images({len(self):,} of {size}, {len(self.classes)} classes{rest})"

    @property
    def size(self) -> int:
        """The side of the stored images in pixels."""
        return self.images.shape[-1]

    @property
    def unlabelled(self) -> int:
        """The number of images without a label."""
        return int((self.labels < 0).sum())

    def labelled(self) -> "Images":
        """Returns the images that have a label."""
        return self.take(self.indices(self.labels >= 0)) if self.unlabelled else self

    def limit(self, n: int) -> "Images":
        """Returns n labelled images, taken evenly from all classes; all images for n <= 0.

        They are the first image of each class, then the second of each, and so on. The images
        without a label follow, all of them: n says how many labels there are.

        Raises InputError if fewer than n have a label.
        """
        labelled = len(self) - self.unlabelled
        if n > labelled:
            raise InputError(f"train_limit is {n}: there are only {labelled} training images")
        if n <= 0 or n == labelled:
            return self
        rounds = zip_longest(*self.indices_by_class())
        order = [index for indices in rounds for index in indices if index is not None]
        return self.take(order[:n] + self.indices(self.labels < 0))

    def split(self, share: float) -> tuple["Images", "Images"]:
        """Holds out a share of the images of each class, rounded up: the last ones of the class.

        Images without a label remain.

        Args:
            share: share of the images that is held out, 0..1.

        Returns:
            The remaining images and the held-out ones.

        Raises InputError if a class would have no images left.
        """
        remaining, held_out = self.indices(self.labels < 0), []
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
        return [self.indices(self.labels == label) for label in range(len(self.classes))]

    @staticmethod
    def indices(mask: Tensor) -> list[int]:
        """Returns the indices at which a mask, bool (n,), is true."""
        return mask.nonzero().flatten().tolist()

    def take(self, index: list[int]) -> "Images":
        """Returns the images at these indices, in their order."""
        return replace(
            self,
            images=self.images[index],
            labels=self.labels[index],
            aspect=None if self.aspect is None else self.aspect[index],
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
    cited_as: str


DATASETS: dict[str, Dataset] = {}


def register(
    name: str,
    preset: Preset,
    digest: Digest | None = None,
    test_images: int = 0,
    cited_as: str = "",
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
            different images in it, or "" if there are no images. None: they are computed from what
            `load` returns, once in a process. `kdnb.data.digests` has others.
        test_images: number of test images of the published data set; 0 if there is no such number.
        cited_as: name of the data set whose published results tables quote for this one, such as
            "cifar100" for its images with another preset; by default its own.
    """

    def add(load: Load) -> Load:
        claim("data set", name, load, getattr(DATASETS.get(name), "load", None))
        from_load = digest or digest_of_load(load, preset.stored())
        DATASETS[name] = Dataset(preset, load, from_load, test_images, cited_as)
        return load

    return add


def dataset_name(name: str) -> str:
    """Returns the name under which a data set is registered, given in any case.

    Raises InputError for an unknown one.
    """
    spellings = {known.lower(): known for known in DATASETS}
    return choose("dataset", spellings.get(name.lower(), name), DATASETS)


def load_data(
    name: str, root: str | Path = "", size: int = 0, skip_damaged: bool = False
) -> tuple[Images, Images]:
    """Returns the training and the test images of a data set.

    Args:
        name: name in DATASETS: `digits` (part of scikit-learn), `cifar100`, `stanford40`,
            `tiny_imagenet` or one of torchvision's such as `torch/food101` (downloaded if missing),
            `imagenet`, `folder` (your own images, `root/train/CLASS/*.jpg` and
            `root/{valid,val,test}/CLASS/*.jpg`), or another that was registered.
        root: folder that holds the data; "": `kdnb.paths.data_folder()`.
        size: side in pixels at which the images are stored; 0: the preset's.
        skip_damaged: whether photographs that cannot be decoded are left out, with a printed line.
            If not, they raise InputError.

    Raises InputError for an unknown name, a size that the data set does not come in, data that are
    missing and cannot be downloaded, damaged photographs, test images without a label, and a cache
    folder without write access.
    """
    dataset = DATASETS[dataset_name(name)]
    preset = dataset.preset
    if size:
        preset = replace(preset, stored_size=0)  # size already is the size to store
    train, test = dataset.load(data_folder(root), preset.stored(size), skip_damaged=skip_damaged)
    if test.unlabelled:
        raise InputError(
            f"{test.unlabelled:,} of the {len(test):,} test images of {name} have no label"
        )
    return train, test
