"""Test crops of photographs that are cached in memory for the next pass over them."""

import torch
from torch import Tensor

from kdnb.data.crops import crop_each
from kdnb.data.ragged import Ragged
from kdnb.device import fits_in_memory


class CropCache:
    """Crops of photographs on the CPU. Each is cut when it is first asked for, and cached.

    They are not cached if all of them would take too much of the free memory.

    Args:
        images: the photographs, each of which has one crop.
        size: side of the crops in pixels.
    """

    def __init__(self, images: Ragged, size: int):
        self.images = images
        self.size = size
        shape = len(images), 3, size, size
        self.is_cut: Tensor | None = None
        if fits_in_memory(len(images) * 3 * size**2):
            self.pixels = torch.empty(shape, dtype=torch.uint8)
            self.is_cut = torch.zeros(len(images), dtype=torch.bool)

    def __call__(self, index: Tensor, boxes: Tensor) -> Tensor:
        """Returns crops, uint8 (batch, 3, size, size); see `crop_each` for the arguments."""
        if self.is_cut is None:
            return crop_each(self.images, index, boxes, self.size)
        is_new = ~self.is_cut[index]
        if is_new.any():
            new = index[is_new]
            self.pixels[new] = crop_each(self.images, new, boxes[is_new], self.size)
            self.is_cut[new] = True
        return self.pixels[index]
