"""Batches and splits of a data set, as arrays."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from kdnb.data.ragged import Ragged
from kdnb.errors import InputError


class Batch(NamedTuple):
    """A batch of images.

    Attributes:
        images: normalised pixels, (batch, 3, size, size).
        labels: int64 (batch,); -1 for an image without a label.
        index: positions of the images in their split, int64 (batch,).
        teacher_images: the same crops as the teacher sees them, in its normalisation and size;
            None if it sees `images`.
        targets: the probabilities that cross-entropy compares the predictions with, (batch,
            classes); None for those of `labels`.
        teacher_logits: the teacher's answers to them, (batch, classes), if they are known and the
            losses need them; None: the teacher has to compute them.
        teacher_pooled: its pooled features, (batch, channels), likewise.

    With two views of each image, all tensors have two rows per image: those of the first view, then
    those of the second in the same order.
    """

    images: Tensor
    labels: Tensor
    index: Tensor
    teacher_images: Tensor | None = None
    targets: Tensor | None = None
    teacher_logits: Tensor | None = None
    teacher_pooled: Tensor | None = None

    @property
    def for_teacher(self) -> Tensor:
        """The images that a teacher gets."""
        return self.images if self.teacher_images is None else self.teacher_images

    def tensors(self) -> dict[str, Tensor]:
        """The fields that are not None, by name."""
        return {name: value for name, value in self._asdict().items() if value is not None}


def concatenate(batches: Sequence[Batch]) -> Batch:
    """Returns one batch of the rows of several."""
    fields = zip(*batches, strict=True)
    return Batch(*(None if rows[0] is None else torch.cat(rows) for rows in fields))


# Without eq and repr: comparing tensors gives no single truth value, and they are long to print.
@dataclass(frozen=True, eq=False, repr=False)
class Images:
    """One split of a data set, as arrays.

    Attributes:
        images: pixels 0..255. Images of one size, uint8 (n, 3, size, size), or photographs of
            different aspect ratios, a Ragged. `images[i]` is an image (3, height, width) of either.
            It may be a memory map; writing to it never changes the file.
        labels: indices into `classes`, int64 (n,); -1 for an image without a label, which only
            training images may be.
        classes: the class names.
        mean: mean of each channel, of pixels scaled to 0..1. Batches are normalised with it.
        std: standard deviation of each channel, likewise.
        files: the photographs' paths, in the same order; None if there are no files.
        damaged: names of the photographs of the whole split that could not be decoded.
        pixels_digest: digest of the decoded photographs of the whole split, and what decoded them.
    """

    images: Tensor | Ragged
    labels: Tensor
    classes: tuple[str, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    files: Sequence[Path] | None = None
    damaged: tuple[str, ...] = ()
    pixels_digest: str = ""

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        size = f"{self.size} x {self.size} pixels"
        if self.aspect is not None:
            size = f"{self.size} pixels and more"
        rest = f", {self.unlabelled:,} without a label" if self.unlabelled else ""
        return f"Images({len(self):,} of {size}, {len(self.classes)} classes{rest})"

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

    @property
    def unlabelled(self) -> int:
        """The number of images without a label."""
        return int((self.labels < 0).sum())

    def labelled(self) -> "Images":
        """Returns the images that have a label."""
        return self.take(self.indices(self.labels >= 0)) if self.unlabelled else self

    def limit(self, n: int, split: str = "train") -> "Images":
        """Returns n labelled images, taken evenly from all classes; all images for n <= 0.

        They are the first image of each class, then the second of each, and so on. The images
        without a label follow, all of them: n says how many labels there are.

        split: train or test, for the error. Raises InputError if fewer than n have a label.
        """
        labelled = len(self) - self.unlabelled
        if n > labelled:
            noun = "training" if split == "train" else split
            raise InputError(f"{split}_limit is {n}: there are only {labelled} {noun} images")
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
        if not held_out:
            raise InputError(f"validation is {share}: that holds out no image")
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
            files=None if self.files is None else [self.files[i] for i in index],
        )
