"""Crops of photographs: where they are, and cutting them out.

A box is left, top, width and height in whole pixels. A crop is its box, resized to a square by a
bilinear filter with antialiasing, as torchvision's Resize, CenterCrop and RandomResizedCrop make
it. A box of the size of the result is copied.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kdnb.data.ragged import Ragged

TEST_CROP = 224 / 256  # side of the test crop / shorter side: "resize to 256, crop 224"
RATIOS = 3 / 4, 4 / 3  # aspect ratios of random-resized crops
AREAS = 0.08, 1.0  # their areas, as shares of the image
# A wider or taller image has no random-resized crop other than its centre.
MAX_ASPECT = math.ceil(RATIOS[1] / AREAS[0])


def crop_each(images: Ragged, index: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Returns crops, image by image: the fastest way on a CPU.

    Args:
        images: on the CPU.
        index: which of them, (batch,).
        boxes: int64 (batch, 4).
        size: side of the results in pixels.

    Returns:
        uint8 (batch, 3, size, size).
    """
    crops = []
    for box in boxes_as_arrays(images, index, boxes):
        pixels = torch.from_numpy(box).permute(2, 0, 1)[None]
        crops.append(F.interpolate(pixels, size=(size, size), mode="bilinear", antialias=True))
    return torch.cat(crops)


def copy_windows(images: Ragged, index: Tensor, boxes: Tensor, width: int, height: int) -> Tensor:
    """Copies each box into the upper left corner of an array.

    Args:
        images: on the CPU.
        index: which of them, (batch,).
        boxes: int64 (batch, 4).
        width: of the arrays: that of the widest box.
        height: of the arrays: that of the highest box.

    Returns:
        uint8 (batch, height, width, 3). Pixels outside of the boxes have any value.
    """
    windows = np.empty((len(index), height, width, 3), np.uint8)
    for window, box in zip(windows, boxes_as_arrays(images, index, boxes), strict=True):
        window[: box.shape[0], : box.shape[1]] = box
    return torch.from_numpy(windows)


def boxes_as_arrays(images: Ragged, index: Tensor, boxes: Tensor) -> list[np.ndarray]:
    """Returns the pixels in the boxes: views, uint8 (height, width, 3)."""
    pixels = images.pixels.numpy()  # slices of arrays take a fraction of the time of tensors'
    starts = images.offsets[index].tolist()
    sizes = images.sizes[index].tolist()
    views = []
    for start, (rows, columns), box in zip(starts, sizes, boxes.tolist(), strict=True):
        left, top, width, height = box
        image = pixels[start : start + rows * columns].reshape(rows, columns, 3)
        views.append(image[top : top + height, left : left + width])
    return views


def gather_windows(images: Ragged, index: Tensor, boxes: Tensor, width: int, height: int) -> Tensor:
    """Does what `copy_windows` does, on any device, with a few kernels for the whole batch.

    All tensors are on the device of the images. Outside of a box, its last row or column is
    repeated.
    """
    columns, rows = (torch.arange(n, device=boxes.device) for n in (width, height))
    left, top, box_width, box_height = boxes[:, :, None].unbind(1)  # each b 1
    columns = left + torch.minimum(columns, box_width - 1)  # b w
    rows = top + torch.minimum(rows, box_height - 1)  # b h
    starts = images.offsets[index, None] + rows * images.sizes[index, 1:]  # b h
    return images.pixels[starts[:, :, None] + columns[:, None]]


def resize_windows(windows: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Resizes the boxes in the corners of `windows`.

    A resize is linear along each axis, so it is two matrix products per image. They are fast on an
    accelerator.

    Args:
        windows: uint8 (batch, height, width, 3), of `copy_windows` or `gather_windows`.
        boxes: int64 (batch, 4), on the same device.
        size: side of the results in pixels.

    Returns:
        float32 (batch, 3, size, size), 0..255.
    """
    _, height, width, _ = windows.shape
    rows = filter_weights(boxes[:, 3], size, height)[:, None]  # b 1 size height
    columns = filter_weights(boxes[:, 2], size, width)[:, None]  # b 1 size width
    pixels = windows.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
    return rows @ pixels @ columns.mT


def filter_weights(length: Tensor, out: int, size: int) -> Tensor:
    """Returns the weights with which pixels are averaged to resize the start of an axis.

    Args:
        length: number of pixels that are resized, (batch,). The others have weight 0.
        out: number of samples that they are resized to.
        size: number of pixels of the axis.

    Returns:
        (batch, out, size). The weights of each sample sum to 1.
    """
    length = length[:, None, None]
    scale = length.float() / out  # pixels per sample
    centre = scale * (torch.arange(out, device=length.device)[:, None] + 0.5)
    pixel = torch.arange(size, device=length.device)
    # The triangle filter that Pillow uses.
    weight = (1 - (pixel + 0.5 - centre).abs() / scale.clamp(min=1)).clamp(min=0)
    weight = weight * (pixel < length)
    return weight / weight.sum(-1, keepdim=True)


def random_boxes(sizes: np.ndarray, rng: np.random.Generator, tries: int = 10) -> np.ndarray:
    """Draws random-resized crops (Szegedy et al., CVPR 2015) as torchvision does.

    The area is 8 to 100 % of the image, the aspect ratio 3/4 to 4/3.

    Args:
        sizes: height and width of the images, (n, 2).
        rng: generator of the random numbers.
        tries: number of crops that are drawn for each image; the first that fits is taken. If none
            fits, it is the largest centre crop of an allowed aspect ratio.

    Returns:
        int64 (n, 4).
    """
    # The largest centre crops, which are replaced where a drawn crop fits.
    height, width = sizes.T
    box_width = np.minimum(width, np.rint(height * RATIOS[1]))
    box_height = np.minimum(height, np.rint(width / RATIOS[0]))
    left = (width - box_width) // 2
    top = (height - box_height) // 2
    boxes = np.stack([left, top, box_width, box_height], 1).astype(np.int64)
    remaining = np.arange(len(sizes))
    for _ in range(tries):
        rows, columns = sizes[remaining].T
        area = rows * columns * rng.uniform(*AREAS, len(remaining))
        ratio = np.exp(rng.uniform(*np.log(RATIOS), len(remaining)))
        w = np.rint(np.sqrt(area * ratio)).astype(np.int64)
        h = np.rint(np.sqrt(area / ratio)).astype(np.int64)
        fits = (w > 0) & (w <= columns) & (h > 0) & (h <= rows)
        x = rng.integers(0, np.where(fits, columns - w, 0), endpoint=True)
        y = rng.integers(0, np.where(fits, rows - h, 0), endpoint=True)
        boxes[remaining[fits]] = np.stack([x, y, w, h], 1)[fits]
        remaining = remaining[~fits]
    return boxes


def centre_boxes(sizes: np.ndarray, share: float = TEST_CROP) -> np.ndarray:
    """Returns the centre squares that networks are tested on.

    Args:
        sizes: height and width of the images, (n, 2).
        share: side of the square as a fraction of the shorter side of the image.

    Returns:
        int64 (n, 4).
    """
    side = np.rint(share * sizes.min(1)).clip(1)
    top, left = np.rint((sizes.T - side) / 2)
    return np.stack([left, top, side, side], 1).astype(np.int64)
