"""Crops of photographs: where they are, and cutting them out."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

CENTRE_SHARE = 224 / 256  # of the shorter side: "resize to 256, crop 224"


def resample(images: Tensor, index: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Cuts a box out of each image and resizes it, bilinear with antialiasing.

    A resize is linear along each axis, so it is two matrix products per image. They are fast on an
    accelerator.

    Args:
        images: uint8 (n, 3, height, width).
        index: which of them, (batch,).
        boxes: left, top, width and height as fractions of the image, (batch, 4).
        size: side of the results in pixels.

    Returns:
        float32 (batch, 3, size, size), 0..255.
    """
    rows = filter_weights(boxes[:, 1], boxes[:, 3], size, images.shape[2])[:, None]  # b 1 size h
    columns = filter_weights(boxes[:, 0], boxes[:, 2], size, images.shape[3])[:, None]
    return rows @ images[index].float() @ columns.mT


def resample_each(images: Tensor, index: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Does what `resample` does, image by image, with boxes rounded to whole pixels.

    On a CPU, torch's resize of bytes is 1.8 to 3.3 times as fast as matrix products
    (docs/lab-notes.md).

    Returns:
        uint8 (batch, 3, size, size).
    """
    ends = torch.stack([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1)  # b start-end x-y
    ends = (ends * torch.tensor([images.shape[3], images.shape[2]])).round().int().tolist()
    out = torch.empty(len(index), images.shape[1], size, size, dtype=torch.uint8)
    for target, i, ((left, top), (right, bottom)) in zip(out, index.tolist(), ends, strict=True):
        box = images[i : i + 1, :, top : max(bottom, top + 1), left : max(right, left + 1)]
        target.copy_(F.interpolate(box, size=(size, size), mode="bilinear", antialias=True)[0])
    return out


def filter_weights(start: Tensor, length: Tensor, out: int, size: int) -> Tensor:
    """Returns the weights with which pixels are averaged to resize one axis of an image.

    Args:
        start: where the box starts, as a fraction of the axis, (batch,).
        length: its length, likewise, (batch,).
        out: number of samples that the box is resized to.
        size: number of pixels of the axis.

    Returns:
        (batch, out, size). The weights of each sample sum to 1.
    """
    scale = (length * size / out)[:, None, None].float()  # pixels per sample
    samples = torch.arange(out, device=start.device) + 0.5
    centre = (start * size)[:, None, None].float() + scale * samples[:, None]
    pixel = torch.arange(size, device=start.device) + 0.5
    # The triangle filter that Pillow uses.
    weight = (1 - (pixel - centre).abs() / scale.clamp(min=1)).clamp(min=0)
    return weight / weight.sum(-1, keepdim=True)


def random_boxes(aspect: np.ndarray, rng: np.random.Generator, tries: int = 10) -> np.ndarray:
    """Draws random-resized crops (Szegedy et al., CVPR 2015) as torchvision does.

    The area is 8 to 100 % of the image, the aspect ratio 3/4 to 4/3.

    Args:
        aspect: width / height of the images, (n,).
        rng: generator of the random numbers.
        tries: number of crops that are drawn for each image; the first that fits is taken. If none
            fits, it is the largest centre crop of an allowed aspect ratio.

    Returns:
        left, top, width and height as fractions of the image, (n, 4).
    """
    n = len(aspect)
    area = rng.uniform(0.08, 1.0, (tries, n))
    ratio = np.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3), (tries, n)))
    width = np.sqrt(area * ratio / aspect)
    height = np.sqrt(area / ratio * aspect)
    fits = (width <= 1) & (height <= 1)
    any_fits = fits.any(0)
    first = fits.argmax(0), np.arange(n)
    fallback_ratio = np.clip(aspect, 3 / 4, 4 / 3)
    width = np.where(any_fits, width[first], np.minimum(1, fallback_ratio / aspect))
    height = np.where(any_fits, height[first], np.minimum(1, aspect / fallback_ratio))
    position = np.where(any_fits, rng.random((2, n)), 0.5)
    return np.stack([position[0] * (1 - width), position[1] * (1 - height), width, height], 1)


def centre_boxes(aspect: np.ndarray, share: float = CENTRE_SHARE) -> np.ndarray:
    """Returns the centre squares that networks are tested on: "resize to 256, crop 224".

    Args:
        aspect: width / height of the images, (n,).
        share: side of the square as a fraction of the shorter side of the image.

    Returns:
        left, top, width and height as fractions of the image, (n, 4).
    """
    width = share * np.minimum(1, 1 / aspect)
    height = share * np.minimum(1, aspect)
    return np.stack([(1 - width) / 2, (1 - height) / 2, width, height], 1)
