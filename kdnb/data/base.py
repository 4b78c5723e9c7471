"""Data sets as arrays: files -> Images of uint8 pixels, which loader.py augments on the device.

A data set is a file in this folder that registers its load function with its Preset, how it is trained.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from kdnb.errors import InputError, choose
from kdnb.paths import data_folder

MIN_SIZE = 8  # pixels: of less the networks make nothing


class Batch(NamedTuple):
    """Normalised images (batch, 3, size, size), labels (batch,) int64, index (batch,) int64: places in the split."""

    images: Tensor
    labels: Tensor
    index: Tensor


@dataclass(
    frozen=True, eq=False, repr=False
)  # tensors have no single truth to compare by, and long reprs
class Images:
    """One split of a data set, whole, as arrays.

    `images` may be a memory map, whose pages load as they are touched and copy when written to, so that the file never
    changes. `aspect` is the original width / height of images that were squashed; None where they are square by nature.
    """

    images: Tensor  # uint8 (n, 3, size, size), 0..255
    labels: Tensor  # int64 (n,), indices into classes
    classes: tuple[str, ...]
    mean: tuple[
        float, float, float
    ]  # per channel, of pixels scaled to 0..1; what batches are normalised with
    std: tuple[float, float, float]
    aspect: Tensor | None = None  # float32 (n,)
    files: Sequence[Path] | None = None  # of photographs, in the same order

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        return f"Images({len(self):,} of {self.size} x {self.size} pixels, {len(self.classes)} classes)"

    @property
    def size(self) -> int:
        """The side of the stored images in pixels."""
        return self.images.shape[-1]

    def limit(self, n: int) -> "Images":
        """The first image of each class, then the second of each, ... until there are n; all of them for n <= 0.

        Raises InputError if there are fewer.
        """
        if n > len(self):
            raise InputError(f"train_limit is {n}: there are only {len(self)} training images")
        if n <= 0 or n == len(self):
            return self
        return self.take(
            [
                index
                for turn in zip_longest(*self.indices_by_class())
                for index in turn
                if index is not None
            ][:n]
        )

    def split(self, share: float) -> tuple["Images", "Images"]:
        """All but the last images of each class; and those, a `share` of it, rounded up. Raises InputError."""
        kept, held_out = [], []
        for name, its in zip(self.classes, self.indices_by_class(), strict=True):
            end = len(its) - math.ceil(round(share * len(its), 6))
            if its and not end:
                raise InputError(f"validation is {share}: that leaves no training image of {name}")
            kept, held_out = kept + its[:end], held_out + its[end:]
        return self.take(sorted(kept)), self.take(sorted(held_out))

    def indices_by_class(self) -> list[list[int]]:
        """The places of the images of each class."""
        return [
            (self.labels == label).nonzero().flatten().tolist()
            for label in range(len(self.classes))
        ]

    def take(self, index: list[int]) -> "Images":
        aspect = None if self.aspect is None else self.aspect[index]
        files = None if self.files is None else [self.files[i] for i in index]
        return replace(
            self, images=self.images[index], labels=self.labels[index], aspect=aspect, files=files
        )


@dataclass(frozen=True, kw_only=True)
class Preset:
    """How a data set is trained unless a run says otherwise: SGD with momentum, and a schedule of the learning rate."""

    student: str
    teacher: str
    teacher_weights: str = "none"  # "none": trained here first; "imagenet"
    image_size: int  # side of the square that the networks see, in pixels
    stored_size: int = 0  # side of the square that images are stored at; 0: image_size
    fixed_size: bool = False  # no other image_size
    padding: int = 0  # random crops from an image with so many black pixels around; 0: random-resized crops or none
    flip: bool = False  # of training images, left to right, with probability 1/2
    epochs: int
    batch_size: int
    lr: float
    milestones: tuple[
        float, ...
    ] = ()  # shares of the epochs after which lr is multiplied by gamma; none: one cycle
    gamma: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    train_limit: int = -1  # training images of the student, every class alike; -1: all
    for_teacher: dict[str, float] = field(
        default_factory=dict
    )  # of a teacher, otherwise: {"epochs": 6}
    lrs: dict[str, float] = field(
        default_factory=dict
    )  # of networks that are trained by another lr, by their names
    methods: dict[str, str] = field(
        default_factory=dict
    )  # a method weighed otherwise: {"afd": "ce + kd:0.9 + afd:20"}

    def defaults(self, network: str, teacher: bool) -> dict[str, float]:
        """What a run of a network takes from here where it says nothing; a teacher sees all images."""
        own = {
            n: getattr(self, n) for n in ("epochs", "batch_size", "lr", "image_size", "train_limit")
        }
        own["lr"] = self.lrs.get(network, self.lr)
        return own | ({"train_limit": -1, **self.for_teacher} if teacher else {})

    def stored(self, image_size: int = 0) -> int:
        """The side that images are stored at for networks that see `image_size` pixels (0: the preset's).

        Photographs are stored larger than they are seen, always in the same proportion. Raises InputError for a size
        that the data set does not come in.
        """
        image_size = image_size or self.image_size
        if image_size < MIN_SIZE or (self.fixed_size and image_size != self.image_size):
            due = self.image_size if self.fixed_size else f"at least {MIN_SIZE}"
            raise InputError(f"image_size is {image_size}: for these images it has to be {due}")
        return round(image_size * (self.stored_size or self.image_size) / self.image_size)

    def lr_at(self, epoch: float, epochs: int, lr: float) -> float:
        """The learning rate at `epoch` (from 0, with the share of it that is done) of `epochs`; lr: the run's own.

        With milestones: `lr` times `gamma` per milestone that is passed, each after a whole number of epochs. Without:
        one cycle (Smith 2018), in a line from lr / 25 up to lr at 30 % of the epochs, and in a line down to 0.
        """
        if self.milestones:
            return lr * self.gamma ** sum(epoch >= max(1, int(m * epochs)) for m in self.milestones)
        done = epoch / epochs
        return lr * ((1 + 24 * done / 0.3) / 25 if done < 0.3 else (1 - done) / 0.7)


Load = Callable[..., tuple[Images, Images]]  # (root, size, *, skip_damaged): see load_data
Digest = Callable[
    [Path], str
]  # of root: eight hex digits that tell other images apart; "": none there, or always same


class Dataset(NamedTuple):
    """A registered data set."""

    preset: Preset
    load: Load
    digest: Digest
    test_images: int  # that it has in the literature; 0: as many as one likes


DATASETS: dict[str, Dataset] = {}


def register(
    name: str, preset: Preset, digest: Digest = lambda root: "", test_images=0
) -> Callable[[Load], Load]:
    """Makes a load function a data set."""

    def add(load: Load) -> Load:
        DATASETS[name] = Dataset(preset, load, digest, test_images)
        return load

    return add


def load_data(
    name: str, root: str | Path = "", size: int = 0, skip_damaged: bool = False
) -> tuple[Images, Images]:
    """A data set's training and test images, stored at `size` x `size` pixels (0: the preset's).

    name: `digits` (scikit-learn's, always there), `cifar100` and `stanford40` (downloaded where missing), `folder`
    (one's own `root/train/CLASS/*.jpg` and `root/{valid,val,test}/CLASS/*.jpg`), or another in DATASETS. root: folder
    that holds the data; "": `data_folder()`. skip_damaged leaves out photographs that cannot be decoded, in one printed
    line, instead of raising.

    Raises InputError for an unknown name, a size the data set does not come in, data that are missing and cannot be
    downloaded, images that cannot be decoded, a cache folder that cannot be written.
    """
    found = DATASETS[choose("data set", name, DATASETS)]
    size = replace(found.preset, stored_size=0).stored(size) if size else found.preset.stored()
    return found.load(data_folder(root), size, skip_damaged=skip_damaged)
