"""Augmented, normalised batches of Images, made on the device.

All random choices of an epoch are drawn before it starts, on the CPU, by a generator that is seeded
with (seed, epoch). So an epoch can be resumed at any batch, on any device, with the same images.
"""

from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kdnb.data.base import Batch, Images
from kdnb.data.crops import TEST_CROP, centre_boxes, random_boxes, resample, resample_each
from kdnb.errors import InputError

CACHE_VALUES = 2**20  # pixels that a CPU core's cache holds as bytes and floats


@dataclass(eq=False, repr=False)
class Loader:
    """Batches of one split of a data set; `epoch` iterates over them.

    For training (`train=True`) the images are shuffled and augmented. The last batch may be
    smaller, as in the official code; a last batch of one image is left out, since batch norm cannot
    compute its variance. For testing the images come in order and are not augmented.

    Images with an `aspect` are cropped and resized: by random-resized crops for training, by a
    centre square for testing.

    A teacher may see the same crops in another size and normalisation: then the batches have
    `teacher_images`, too. Photographs are cut anew from the stored pixels, other images resized.

    Args:
        images: the split.
        batch_size: images in a batch.
        size: side in pixels of the images in a batch.
        train: whether the batches are for training.
        seed: seed of all random choices.
        padding: black pixels around a training image before it is cropped at random; 0: no such
            crops. Not used for images with an `aspect`.
        flip: whether training images are flipped left to right with probability 1/2.
        device: where the batches are made. A CUDA or MPS device holds all images of the split.
        dtype: type of the batches' pixels.
        test_crop: side of the centre square for testing, as a share of the shorter side.
        teacher_stats: mean and std of each channel that a teacher's images are normalised with;
            None: those of `images`.
        teacher_size: side in pixels of a teacher's images; 0: size.

    Raises InputError if there are fewer training images than batch_size, and if size differs from
    that of images without an `aspect`.
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
        if images.aspect is None and self.size != images.size:
            raise InputError(
                f"image_size is {self.size}: the stored images are of {images.size} x "
                f"{images.size} pixels"
            )
        self.device = torch.device(self.device)
        self.resized = images.aspect is not None
        if self.resized or not self.train:
            self.padding = 0
        pixels = images.images
        if self.padding:
            pixels = F.pad(pixels, [self.padding] * 4)  # with 0, black, before normalisation
        self.pixels = pixels.to(self.device)  # on the CPU a memory map stays one
        self.labels = images.labels.to(self.device)
        own_stats = images.mean, images.std
        teacher_stats = self.teacher_stats or own_stats
        self.scale, self.shift = self.scale_and_shift(*own_stats)
        self.teacher_size = self.teacher_size or self.size
        self.teacher_differs = (teacher_stats, self.teacher_size) != (own_stats, self.size)
        self.teacher_scale, self.teacher_shift = self.scale_and_shift(*teacher_stats)

    def scale_and_shift(self, mean: Sequence[float], std: Sequence[float]) -> tuple[Tensor, Tensor]:
        """Returns what pixels 0..255 are multiplied with, and what is added, to normalise them."""
        means = torch.tensor(mean, device=self.device).view(1, 3, 1, 1)
        stds = torch.tensor(std, device=self.device).view(1, 3, 1, 1)
        return 1 / (255 * stds), -means / stds

    def __len__(self) -> int:
        """The number of batches in an epoch."""
        full, rest = divmod(len(self.images), self.batch_size)
        smallest = 2 if self.train else 1
        return full + (rest >= smallest)

    def plan(self, epoch: int) -> dict[str, Tensor]:
        """Draws all choices of an epoch: tensors on the device with a row per image, in order.

        Returns a dictionary with
            "index": int64 (n,), the index of the image;
            "box": float32 (n, 4), for images with an `aspect`: left, top, width and height of the
                crop as fractions of the image;
            "corner": int64 (n, 2), with `padding`: row and column of the crop's first pixel;
            "flip": bool (n,), with `flip` in training: whether it is flipped.
        """
        n = len(self.images)
        rng = np.random.default_rng([self.seed, epoch])
        order = rng.permutation(n) if self.train else np.arange(n)
        choices = {"index": order}
        if self.resized:
            aspect = self.images.aspect.numpy()[order].astype(np.float64)
            boxes = (
                random_boxes(aspect, rng) if self.train else centre_boxes(aspect, self.test_crop)
            )
            choices["box"] = boxes.astype(np.float32)  # MPS devices have no float64
        elif self.padding:
            choices["corner"] = rng.integers(0, 2 * self.padding + 1, (n, 2))
        if self.train and self.flip:
            choices["flip"] = rng.random(n) < 0.5
        return {name: torch.from_numpy(rows).to(self.device) for name, rows in choices.items()}

    def epoch(self, epoch: int = 0, start: int = 0) -> Iterator[Batch]:
        """Yields the batches of an epoch.

        Args:
            epoch: number of the epoch. For testing all epochs are the same.
            start: the batch to start with.
        """
        plan = self.plan(epoch)
        for step in range(start, len(self)):
            rows = slice(step * self.batch_size, (step + 1) * self.batch_size)
            yield self.make({name: values[rows] for name, values in plan.items()})

    def take(self, index) -> Batch:
        """Returns a batch of some rows of the plan of epoch 0.

        For testing these are the images at `index`; for training the plan is shuffled.
        """
        rows = torch.as_tensor(index, device=self.device)
        return self.make({name: values[rows] for name, values in self.plan(0).items()})

    def make(self, plan: dict[str, Tensor]) -> Batch:
        """Returns the batch of some rows of a `plan`, in the memory format channels_last."""
        index = plan["index"]
        flip = plan.get("flip")
        pixels = self.crop(plan, self.size)
        images = self.normalise(pixels, flip, self.scale, self.shift)
        teacher_images = None
        if self.teacher_differs:
            pixels = self.teacher_pixels(plan, pixels)
            teacher_images = self.normalise(pixels, flip, self.teacher_scale, self.teacher_shift)
        return Batch(images, self.labels[index], index, teacher_images)

    def teacher_pixels(self, plan: dict[str, Tensor], pixels: Tensor) -> Tensor:
        """Returns the pixels 0..255 of the crops in the teacher's size; pixels: the student's."""
        if self.teacher_size == self.size:
            return pixels
        if self.resized:
            return self.crop(plan, self.teacher_size)
        size = self.teacher_size, self.teacher_size
        return F.interpolate(pixels.float(), size=size, mode="bilinear", antialias=True)

    def normalise(
        self, pixels: Tensor, flip: Tensor | None, scale: Tensor, shift: Tensor
    ) -> Tensor:
        """Returns pixels 0..255, flipped where `flip` says so, times `scale` plus `shift`."""
        images = torch.empty(
            pixels.shape, dtype=self.dtype, device=self.device, memory_format=torch.channels_last
        )
        # A CPU normalises a few images at a time, so that they stay in its cache. The result is the
        # same.
        chunk = len(pixels)
        if self.device.type == "cpu":
            chunk = max(1, CACHE_VALUES // pixels[0].numel())
        for start in range(0, len(pixels), chunk):
            part = slice(start, start + chunk)
            values = pixels[part]
            if flip is not None:
                values = torch.where(flip[part].view(-1, 1, 1, 1), values.flip(3), values)
            # A copy also of floats: a teacher's images are made of the same pixels.
            floats = values.to(torch.float32, copy=True)
            images[part] = floats.mul_(scale).add_(shift)
        return images

    def crop(self, plan: dict[str, Tensor], size: int) -> Tensor:
        """Returns the cropped pixels 0..255 of some rows of a `plan`, (batch, 3, size, size)."""
        index = plan["index"]
        if self.resized:
            crop_and_resize = resample_each if self.device.type == "cpu" else resample
            return crop_and_resize(self.pixels, index, plan["box"], size)
        if self.padding:
            # A view of all windows: n 3 y x size size
            windows = self.pixels.unfold(2, size, 1).unfold(3, size, 1)
            return windows[index, :, plan["corner"][:, 0], plan["corner"][:, 1]]
        return self.pixels[index]
