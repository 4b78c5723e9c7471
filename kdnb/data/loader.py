"""Augmented, normalised batches of Images, made on the device.

All random choices of an epoch are drawn before it starts, on the CPU, by a generator that is seeded
with (seed, epoch). So an epoch can be resumed at any batch, on any device, with the same images.
"""

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import KW_ONLY, dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kdnb.data.crops import (
    TEST_CROP,
    centre_boxes,
    copy_windows,
    crop_each,
    gather_windows,
    random_boxes,
    resize_windows,
)
from kdnb.data.images import Batch, Images
from kdnb.data.kept_crops import KeptCrops
from kdnb.data.normalise import Normalise
from kdnb.data.ragged import Ragged
from kdnb.data.stream import stream
from kdnb.errors import InputError


@dataclass(eq=False, repr=False)
class Loader:
    """Batches of one split of a data set; `epoch` iterates over them.

    For training (`train=True`) the images are shuffled and augmented. The last batch may be
    smaller, as in the official code; a last batch of one image is left out, since batch norm cannot
    compute its variance. For testing the images come in order and are not augmented.

    Photographs (a Ragged) are cropped and resized: by random-resized crops for training, by a
    centre square for testing. Test crops that were cut on a CPU are kept for the next epoch.

    A teacher may see the same crops in another size and normalisation: then the batches have
    `teacher_images`, too. Photographs are cut anew from the stored pixels, other images resized.

    Args:
        images: the split.
        batch_size: images in a batch.
        size: side in pixels of the images in a batch.
        train: whether the batches are for training.
        seed: seed of all random choices.
        padding: black pixels around a training image before it is cropped at random; 0: no such
            crops. Not used for photographs.
        flip: whether training images are flipped left to right with probability 1/2.
        device: where the batches are made.
        on_device: whether the device holds all images of the split; on a CPU, a memory map stays
            one. If not, a thread reads the pixels of each batch and sends them to the device, two
            batches ahead. The batches are the same.
        dtype: type of the batches' pixels.
        test_crop: side of the centre square for testing, as a share of the shorter side.
        teacher_stats: mean and std of each channel that a teacher's images are normalised with;
            None: those of `images`.
        teacher_size: side in pixels of a teacher's images; 0: size.

    Raises InputError if there are fewer training images than batch_size, and if size differs from
    that of images of one size.
    """

    images: Images
    batch_size: int
    size: int
    _: KW_ONLY
    train: bool = False
    seed: int = 0
    padding: int = 0
    flip: bool = False
    device: str | torch.device = "cpu"
    on_device: bool = True
    dtype: torch.dtype = torch.float32
    test_crop: float = TEST_CROP
    teacher_stats: tuple[Sequence[float], Sequence[float]] | None = None
    teacher_size: int = 0

    def __post_init__(self):
        images = self.images
        if self.train and len(images) < self.batch_size:
            raise InputError(
                f"batch_size {self.batch_size}: there are only {len(images)} training images"
            )
        self.has_photographs = isinstance(images.images, Ragged)
        if not self.has_photographs and self.size != images.size:
            raise InputError(
                f"image_size is {self.size}: the stored images are of {images.size} x "
                f"{images.size} pixels"
            )
        self.device = torch.device(self.device)
        if self.has_photographs or not self.train:
            self.padding = 0
        is_cpu = self.device.type == "cpu"
        self.stored = images.images
        if self.on_device and not is_cpu:
            self.stored = self.stored.to(self.device)
        self.crops_each = self.has_photographs and self.on_device and is_cpu
        self.kept_crops = (
            KeptCrops(self.stored, self.size) if self.crops_each and not self.train else None
        )
        self.labels = images.labels.to(self.device)
        own_stats = images.mean, images.std
        teacher_stats = self.teacher_stats or own_stats
        self.teacher_size = self.teacher_size or self.size
        self.teacher_differs = (teacher_stats, self.teacher_size) != (own_stats, self.size)
        self.normalise = Normalise(*own_stats, self.device, self.dtype)
        self.normalise_for_teacher = Normalise(*teacher_stats, self.device, self.dtype)

    def __len__(self) -> int:
        """The number of batches in an epoch."""
        full, rest = divmod(len(self.images), self.batch_size)
        smallest = 2 if self.train else 1
        return full + (rest >= smallest)

    def plan(self, epoch: int) -> dict[str, Tensor]:
        """Draws all choices of an epoch: tensors on the CPU with a row per image, in order.

        Returns a dictionary with
            "index": int64 (n,), the index of the image;
            "box": int64 (n, 4), for photographs: left, top, width and height of the crop in pixels
                of the stored image;
            "corner": int64 (n, 2), with `padding`: row and column of the crop's first pixel;
            "flip": bool (n,), with `flip` in training: whether it is flipped.
        """
        n = len(self.images)
        rng = np.random.default_rng([self.seed, epoch])
        order = rng.permutation(n) if self.train else np.arange(n)
        choices = {"index": order}
        if self.has_photographs:
            sizes = self.images.images.sizes.numpy()[order]
            choices["box"] = (
                random_boxes(sizes, rng) if self.train else centre_boxes(sizes, self.test_crop)
            )
        elif self.padding:
            choices["corner"] = rng.integers(0, 2 * self.padding + 1, (n, 2))
        if self.train and self.flip:
            choices["flip"] = rng.random(n) < 0.5
        return {name: torch.from_numpy(rows) for name, rows in choices.items()}

    def epoch(self, epoch: int = 0, start: int = 0) -> Iterator[Batch]:
        """Yields the batches of an epoch.

        Args:
            epoch: number of the epoch. For testing all epochs are the same.
            start: the batch to start with.
        """
        plan = self.plan(epoch)
        if self.on_device and not self.has_photographs:  # at once: each copy costs a launch
            plan = {name: values.to(self.device) for name, values in plan.items()}
        steps = range(start * self.batch_size, len(self) * self.batch_size, self.batch_size)
        parts = (
            {name: values[i : i + self.batch_size] for name, values in plan.items()} for i in steps
        )
        if self.on_device:
            yield from map(self.make, parts)
            return
        with closing(stream(self.read, parts, self.device)) as sent:
            yield from map(self.finish, sent)

    def take(self, index) -> Batch:
        """Returns a batch of some rows of the plan of epoch 0.

        For testing these are the images at `index`; for training the plan is shuffled.
        """
        rows = torch.as_tensor(index)
        return self.make({name: values[rows] for name, values in self.plan(0).items()})

    def make(self, plan: dict[str, Tensor]) -> Batch:
        """Returns the batch of some rows of a `plan`, in the memory format channels_last."""
        part = self.read(plan)
        return self.finish({name: values.to(self.device) for name, values in part.items()})

    def read(self, plan: dict[str, Tensor]) -> dict[str, Tensor]:
        """Returns some rows of a `plan` with the stored "pixels" that `crop` needs.

        They are where all images are: on the device or on the CPU.
        """
        if self.crops_each:
            return plan
        shape = plan["box"][:, 2:].amax(0).tolist() if self.has_photographs else None
        if self.on_device:
            # Not blocking, which would wait until the GPU has finished the steps before.
            is_cuda = self.device.type == "cuda"
            plan = {k: v.to(self.device, non_blocking=is_cuda) for k, v in plan.items()}
        if self.has_photographs:
            windows = gather_windows if self.on_device else copy_windows
            pixels = windows(self.stored, plan["index"], plan["box"], *shape)
        else:
            pixels = self.stored[plan["index"]]
        return plan | {"pixels": pixels}

    def crop(self, part: dict[str, Tensor], size: int) -> Tensor:
        """Returns the cropped pixels 0..255 of what `read` returns, (batch, 3, size, size)."""
        if self.crops_each:
            if self.kept_crops and size == self.size:
                return self.kept_crops(part["index"], part["box"])
            return crop_each(self.stored, part["index"], part["box"], size)
        if self.has_photographs:
            return resize_windows(part["pixels"], part["box"], size)
        if self.padding:
            padded = F.pad(part["pixels"], [self.padding] * 4)  # black, before normalisation
            windows = padded.unfold(2, size, 1).unfold(3, size, 1)  # a view: b 3 y x size size
            rows, columns = part["corner"].unbind(1)
            return windows[torch.arange(len(padded), device=self.device), :, rows, columns]
        return part["pixels"]

    def finish(self, part: dict[str, Tensor]) -> Batch:
        """Returns the batch of what `read` returns, which is on the device."""
        index = part["index"]
        flip = part.get("flip")
        pixels = self.crop(part, self.size)
        images = self.normalise(pixels, flip)
        teacher_images = None
        if self.teacher_differs:
            teacher_images = self.normalise_for_teacher(self.teacher_pixels(part, pixels), flip)
        return Batch(images, self.labels[index], index, teacher_images)

    def teacher_pixels(self, part: dict[str, Tensor], pixels: Tensor) -> Tensor:
        """Returns the pixels 0..255 of the crops in the teacher's size; pixels: the student's."""
        if self.teacher_size == self.size:
            return pixels
        if self.has_photographs:
            return self.crop(part, self.teacher_size)
        size = self.teacher_size, self.teacher_size
        return F.interpolate(pixels.float(), size=size, mode="bilinear", antialias=True)
