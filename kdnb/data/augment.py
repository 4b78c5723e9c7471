"""Strong augmentation of training images: TrivialAugment and RandAugment, on the images' device.

The operations and magnitudes are those of torchvision's TrivialAugmentWide and RandAugment, which
augment one image at a time. Here an operation is applied to all images of a batch that drew it.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

BINS = 31  # of magnitudes


class Policy(NamedTuple):
    """How operations are drawn.

    Attributes:
        operations: number of operations, one after the other.
        magnitude: bin of all magnitudes; None: each is drawn.
        shear: largest shear, as a share of the other side.
        translation: largest translation in pixels of an image of so many pixels.
        rotation: largest rotation in degrees.
        colour: largest deviation from 1 of the factors of brightness, colour, contrast, sharpness.
        bits: largest number of bits that posterise removes.
    """

    operations: int
    magnitude: int | None
    shear: float
    translation: Callable[[int], float]
    rotation: float
    colour: float
    bits: int

    def draw(self, n: int, size: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Draws the operations of n images of so many pixels.

        Returns "operation" (n, operations), numbers in OPERATIONS, and "magnitude", float32 of the
        same shape, signed.
        """
        shape = n, self.operations
        operation = rng.integers(0, len(OPERATIONS), shape)
        bins = rng.integers(0, BINS, shape) if self.magnitude is None else self.magnitude
        is_negative = rng.random(shape) < 0.5
        table = self.magnitudes(size)
        magnitude = table[operation, bins]
        is_signed = np.array([name in SIGNED for name in OPERATIONS])[operation]
        return {
            "operation": operation,
            "magnitude": np.where(is_negative & is_signed, -magnitude, magnitude),
        }

    def magnitudes(self, size: int) -> np.ndarray:
        """Returns the magnitude of each operation in each bin, float32 (operations, BINS)."""
        largest = dict.fromkeys(("brightness", "colour", "contrast", "sharpness"), self.colour)
        largest |= dict.fromkeys(("shear_x", "shear_y"), self.shear)
        largest |= dict.fromkeys(("translate_x", "translate_y"), self.translation(size))
        largest["rotate"] = self.rotation
        bits = 8 - torch.arange(BINS) / ((BINS - 1) / self.bits)
        table = np.zeros((len(OPERATIONS), BINS), np.float32)
        for row, name in zip(table, OPERATIONS, strict=True):
            row[:] = torch.linspace(0, largest.get(name, 0.0), BINS)
            if name.startswith("translate"):
                row[:] = np.floor(row)
            elif name == "posterise":
                row[:] = bits.round()
            elif name == "solarise":
                row[:] = 255 * torch.linspace(1, 0, BINS).double()  # rounded once, as there
        return table


def augment(pixels: Tensor, operation: Tensor, magnitude: Tensor) -> Tensor:
    """Returns augmented pixels, uint8 (batch, 3, height, width).

    Args:
        pixels: uint8 or float 0..255, of the same shape.
        operation: int64 (batch, operations), on the CPU: it decides which kernels are launched.
        magnitude: float32 (batch, operations), on the CPU.
    """
    if pixels.is_floating_point():
        pixels = pixels.round().clamp(0, 255)
    pixels = pixels.to(torch.uint8, copy=True)
    functions = list(OPERATIONS.values())
    for numbers, values in zip(operation.unbind(1), magnitude.unbind(1), strict=True):
        for number in numbers.unique().tolist():
            if functions[number] is None:
                continue
            rows = (numbers == number).nonzero().flatten()
            value = values[rows].to(pixels.device, non_blocking=True).view(-1, 1, 1, 1)
            rows = rows.to(pixels.device, non_blocking=True)
            pixels[rows] = functions[number](pixels[rows], value)
    return pixels


def affine(
    images: Tensor, rows: Sequence[Sequence], centre: tuple[float, float] = (0.0, 0.0)
) -> Tensor:
    """Moves pixels by the nearest neighbour; what comes from outside is black.

    Args:
        images: uint8 (batch, 3, height, width).
        rows: ((a, b, c), (d, e, f)): the pixel (x, y) of the result is that at (a x + b y + c,
            d x + e y + f) of the image. Each is a number or (batch, 1, 1).
        centre: where (0, 0) is, in pixels from the middle of the image.
    """
    height, width = images.shape[2:]
    x = torch.arange(width, device=images.device) + (0.5 - width / 2 - centre[0])  # w
    y = torch.arange(height, device=images.device)[:, None] + (0.5 - height / 2 - centre[1])  # h 1
    # No tensors of numbers, whose copy to a GPU would wait for the steps before.
    grid = torch.stack(
        [
            (a * x + b * y + c + offset).expand(len(images), height, width) / (length / 2)
            for (a, b, c), offset, length in zip(rows, centre, (width, height), strict=True)
        ],
        -1,
    )
    moved = F.grid_sample(images.float(), grid, mode="nearest", align_corners=False)
    return moved.to(torch.uint8)


def corner(images: Tensor) -> tuple[float, float]:
    """The upper left corner, in pixels from the middle."""
    return -images.shape[3] / 2, -images.shape[2] / 2


def shear_x(images: Tensor, value: Tensor) -> Tensor:
    return affine(images, ((1, value[:, 0], 0), (0, 1, 0)), corner(images))


def shear_y(images: Tensor, value: Tensor) -> Tensor:
    return affine(images, ((1, 0, 0), (value[:, 0], 1, 0)), corner(images))


def translate_x(images: Tensor, value: Tensor) -> Tensor:
    return affine(images, ((1, 0, -value[:, 0]), (0, 1, 0)))


def translate_y(images: Tensor, value: Tensor) -> Tensor:
    return affine(images, ((1, 0, 0), (0, 1, -value[:, 0])))


def rotate(images: Tensor, value: Tensor) -> Tensor:
    angle = value[:, 0] * (math.pi / 180)
    return affine(images, ((angle.cos(), -angle.sin(), 0), (angle.sin(), angle.cos(), 0)))


def blend(images: Tensor, others: Tensor, value: Tensor) -> Tensor:
    """The images times 1 + value, and the others times -value."""
    factor = 1 + value
    return (images * factor + others * (1 - factor)).clamp(0, 255).to(torch.uint8)


def grey(images: Tensor) -> Tensor:
    red, green, blue = images.float().split(1, 1)
    return 0.2989 * red + 0.587 * green + 0.114 * blue


def brightness(images: Tensor, value: Tensor) -> Tensor:
    return blend(images, torch.zeros_like(images), value)


def colour(images: Tensor, value: Tensor) -> Tensor:
    return blend(images, grey(images), value)


def contrast(images: Tensor, value: Tensor) -> Tensor:
    return blend(images, grey(images).floor().mean((1, 2, 3), keepdim=True), value)


def sharpness(images: Tensor, value: Tensor) -> Tensor:
    kernel = torch.ones(3, 1, 3, 3, device=images.device)
    kernel[:, :, 1, 1] = 5
    blurred = images.float()
    blurred[:, :, 1:-1, 1:-1] = F.conv2d(images.float(), kernel / 13, groups=3).round()
    return blend(images, blurred, value)  # borders are not blurred


def posterise(images: Tensor, value: Tensor) -> Tensor:
    step = 2 ** (8 - value).int()
    return (images // step * step).to(torch.uint8)


def solarise(images: Tensor, value: Tensor) -> Tensor:
    return torch.where(images >= value, 255 - images, images)


def autocontrast(images: Tensor, value: Tensor) -> Tensor:
    from torchvision.transforms.v2 import functional  # here: it takes a second to import

    return functional.autocontrast(images)


def equalise(images: Tensor, value: Tensor) -> Tensor:
    from torchvision.transforms.v2 import functional

    return functional.equalize(images)


OPERATIONS = {
    "identity": None,
    "shear_x": shear_x,
    "shear_y": shear_y,
    "translate_x": translate_x,
    "translate_y": translate_y,
    "rotate": rotate,
    "brightness": brightness,
    "colour": colour,
    "contrast": contrast,
    "sharpness": sharpness,
    "posterise": posterise,
    "solarise": solarise,
    "autocontrast": autocontrast,
    "equalise": equalise,
}
SIGNED = [*OPERATIONS][1:10]  # operations whose magnitude is negated with probability 1/2

# Mueller and Hutter, ICCV 2021, the wide space; Cubuk et al., NeurIPS 2020.
POLICIES = {
    "trivialaugment": Policy(1, None, 0.99, lambda size: 32.0, 135.0, 0.99, 6),
    "randaugment": Policy(2, 9, 0.3, lambda size: 150 / 331 * size, 30.0, 0.9, 4),
}
