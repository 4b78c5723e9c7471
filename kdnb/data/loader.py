"""Images -> augmented, normalised batches, made on the device.

Every random choice of an epoch is drawn before it starts from a generator that depends on (seed, epoch) alone, on the
CPU: the same epoch can be entered again at any step, on any device, with the same images.
"""

import math
from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kdnb.data.base import Batch, Images
from kdnb.errors import InputError

CACHE_VALUES = 2**20  # values: what a core's cache holds of bytes and floats


@dataclass(eq=False, repr=False)
class Loader:
    """Batches of Images, normalised. Raises InputError for too few training images, or square ones of another size.

    For training they are shuffled and augmented; the last, smaller batch counts too, as in the official code, unless it
    is one lone image, of which batch norm has no statistics. Otherwise they come in order and whole; those with an
    `aspect` are centre crops of 7/8 of the shorter side.
    """

    images: Images
    batch_size: int
    size: int  # side of the batches' images in pixels
    _: KW_ONLY
    train: bool = False
    seed: int = 0
    padding: int = (
        0  # black pixels around images to train with, of which a crop is taken; none with `aspect`
    )
    flip: bool = False  # of training images, left to right, with probability 1/2
    device: str | torch.device = "cpu"
    dtype: torch.dtype = torch.float32  # of the pixels

    def __post_init__(self):
        images, size = self.images, self.size
        if self.train and len(images) < self.batch_size:
            raise InputError(
                f"batch_size {self.batch_size}: there are only {len(images)} training images"
            )
        if images.aspect is None and size != images.size:
            raise InputError(
                f"image_size is {size}: the stored images are of {images.size} x {images.size} pixels"
            )
        self.device = torch.device(self.device)
        self.resized = images.aspect is not None
        self.padding *= self.train and not self.resized
        pixels = (
            F.pad(images.images, [self.padding] * 4) if self.padding else images.images
        )  # 0, black, not the mean
        # A memory map stays one on the CPU; an accelerator takes everything once, and nothing waits for data again.
        self.pixels, self.labels = pixels.to(self.device), images.labels.to(self.device)
        mean, std = (
            torch.tensor(v, device=self.device).view(1, 3, 1, 1) for v in (images.mean, images.std)
        )
        self.scale, self.shift = 1 / (255 * std), -mean / std

    def __len__(self) -> int:
        full, rest = divmod(len(self.images), self.batch_size)
        return full + (rest > (1 if self.train else 0))

    def plan(self, epoch: int) -> dict[str, Tensor]:
        """Every choice of an epoch, one row per image: which, and where it is cut; all on the device."""
        n = len(self.images)
        rng = np.random.default_rng([self.seed, epoch])
        order = rng.permutation(n) if self.train else np.arange(n)
        choices = {"index": order}
        if self.resized:
            aspect = self.images.aspect.numpy()[order].astype(np.float64)
            boxes = random_boxes(aspect, rng) if self.train else centre_boxes(aspect)
            choices["box"] = boxes.astype(np.float32)  # Apple's devices have no float64
        elif self.padding:
            choices["corner"] = rng.integers(0, 2 * self.padding + 1, (n, 2))
        if self.train and self.flip:
            choices["flip"] = rng.random(n) < 0.5
        return {k: torch.from_numpy(v).to(self.device) for k, v in choices.items()}

    def epoch(self, epoch: int = 0, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch, from batch `start` on."""
        plan = self.plan(epoch)
        for step in range(start, len(self)):
            rows = slice(step * self.batch_size, (step + 1) * self.batch_size)
            yield self.make({k: v[rows] for k, v in plan.items()})

    def take(self, index) -> Batch:
        """The batch of the images at the places `index` of its epoch 0, which are their own unless it is shuffled."""
        rows = torch.as_tensor(index, device=self.device)
        return self.make({k: v[rows] for k, v in self.plan(0).items()})

    def make(self, plan: dict[str, Tensor]) -> Batch:
        """The batch that some rows of a plan describe."""
        index, flip = plan["index"], plan.get("flip")
        if self.resized:
            cut = resample_each if self.device.type == "cpu" else resample
            pixels = cut(self.pixels, index, plan["box"], self.size)
        elif self.padding:
            windows = self.pixels.unfold(2, self.size, 1).unfold(
                3, self.size, 1
            )  # n 3 y x size size, a view
            pixels = windows[index, :, plan["corner"][:, 0], plan["corner"][:, 1]]
        else:
            pixels = self.pixels[index]
        images = torch.empty(
            pixels.shape, dtype=self.dtype, device=self.device, memory_format=torch.channels_last
        )
        # A CPU normalises a few images at a time, so that they stay in its cache; they end up the same.
        few = (
            max(1, CACHE_VALUES // pixels[0].numel()) if self.device.type == "cpu" else len(pixels)
        )
        for part in (slice(i, i + few) for i in range(0, len(pixels), few)):
            some = pixels[part]
            if flip is not None:
                some = torch.where(flip[part].view(-1, 1, 1, 1), some.flip(3), some)
            images[part] = some.float().mul_(self.scale).add_(self.shift)
        return Batch(images, self.labels[index], index)


def resample(images: Tensor, index: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Cut a box out of each of some images and resize it to size x size, bilinear with antialias.

    images: uint8 (n, 3, height, width); index: (batch,) which of them; boxes: (batch, 4), left, top, width, height as
    fractions of the image. Returns float32 (batch, 3, size, size), 0..255.

    A resize is linear along each axis, so it is two matrix products per image: what an accelerator does best.
    """
    rows = filters(boxes[:, 1], boxes[:, 3], size, images.shape[2])[:, None]  # b 1 size height
    columns = filters(boxes[:, 0], boxes[:, 2], size, images.shape[3])[:, None]  # b 1 size width
    return rows @ images[index].float() @ columns.mT


def resample_each(images: Tensor, index: Tensor, boxes: Tensor, size: int) -> Tensor:
    """What `resample` does, one image after the other, with boxes rounded to whole pixels; uint8.

    torch's resize of bytes is 1.8 to 3.3 times as fast on a CPU as the matrix products (docs/lab-notes.md).
    """
    ends = torch.stack([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1)  # b start-end x-y
    ends = (ends * torch.tensor([images.shape[3], images.shape[2]])).round().int().tolist()
    out = torch.empty(len(index), images.shape[1], size, size, dtype=torch.uint8)
    for target, i, ((left, top), (right, bottom)) in zip(out, index.tolist(), ends, strict=True):
        box = images[i : i + 1, :, top : max(bottom, top + 1), left : max(right, left + 1)]
        target.copy_(F.interpolate(box, size=(size, size), mode="bilinear", antialias=True)[0])
    return out


def filters(start: Tensor, length: Tensor, out: int, size: int) -> Tensor:
    """Weights (batch, out, size) of each of `size` pixels in each of `out` samples of [start, start + length)."""
    scale = (length * size / out)[:, None, None].float()  # pixels a sample
    centre = (start * size)[:, None, None].float() + scale * (
        torch.arange(out, device=start.device) + 0.5
    )[:, None]
    pixel = torch.arange(size, device=start.device) + 0.5
    weight = (1 - (pixel - centre).abs() / scale.clamp(min=1)).clamp(
        min=0
    )  # the triangle that Pillow uses
    return weight / weight.sum(-1, keepdim=True)


def random_boxes(aspect: np.ndarray, rng: np.random.Generator, tries: int = 10) -> np.ndarray:
    """Random-resized crops (Szegedy et al., CVPR 2015) as torchvision draws them: area 8 to 100 %, ratio 3/4 to 4/3.

    aspect: width / height of the images. Returns (n, 4): left, top, width, height as fractions of the image.
    """
    n = len(aspect)
    area = rng.uniform(0.08, 1.0, (tries, n))
    ratio = np.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3), (tries, n)))
    width, height = np.sqrt(area * ratio / aspect), np.sqrt(area / ratio * aspect)
    fits = (width <= 1) & (height <= 1)
    first = fits.argmax(0), np.arange(n)
    # None of the tries fits: the largest centre crop within the allowed ratios.
    whole = np.clip(aspect, 3 / 4, 4 / 3)
    width = np.where(fits.any(0), width[first], np.minimum(1, whole / aspect))
    height = np.where(fits.any(0), height[first], np.minimum(1, aspect / whole))
    place = np.where(fits.any(0), rng.random((2, n)), 0.5)
    return np.stack([place[0] * (1 - width), place[1] * (1 - height), width, height], 1)


def centre_boxes(aspect: np.ndarray, share: float = 224 / 256) -> np.ndarray:
    """The centre square of `share` of the shorter side: resize 256, centre crop 224."""
    width, height = share * np.minimum(1, 1 / aspect), share * np.minimum(1, aspect)
    return np.stack([(1 - width) / 2, (1 - height) / 2, width, height], 1)
