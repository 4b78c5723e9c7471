"""From cropped pixels to the input of a network."""

from collections.abc import Sequence

import torch
from torch import Tensor

CACHE_VALUES = 2**20  # pixels that a CPU core's cache holds as bytes and floats


class Normalise:
    """Flips and normalises pixels 0..255: (pixel / 255 - mean) / std.

    Args:
        mean: mean of each channel, of pixels scaled to 0..1.
        std: standard deviation of each channel, likewise.
        device: where the pixels are.
        dtype: type of the results.
    """

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device,
        dtype: torch.dtype = torch.float32,
    ):
        means = torch.tensor(mean, device=device).view(1, 3, 1, 1)
        stds = torch.tensor(std, device=device).view(1, 3, 1, 1)
        self.scale = 1 / (255 * stds)
        self.shift = -means / stds
        self.dtype = dtype

    def __call__(self, pixels: Tensor, flip: Tensor | None = None) -> Tensor:
        """Returns normalised images in the memory format channels_last.

        Args:
            pixels: uint8 or float32 (batch, 3, height, width).
            flip: which images are flipped left to right, bool (batch,); None: none.
        """
        images = torch.empty(
            pixels.shape, dtype=self.dtype, device=pixels.device, memory_format=torch.channels_last
        )
        # A CPU normalises a few images at a time, so that they stay in its cache. The result is the
        # same.
        chunk = len(pixels)
        if pixels.device.type == "cpu":
            chunk = max(1, CACHE_VALUES // pixels[0].numel())
        for start in range(0, len(pixels), chunk):
            rows = slice(start, start + chunk)
            values = pixels[rows]
            if flip is not None:
                values = torch.where(flip[rows].view(-1, 1, 1, 1), values.flip(3), values)
            # A copy also of floats: a teacher's images are made of the same pixels.
            floats = values.to(torch.float32, copy=True)
            images[rows] = floats.mul_(self.scale).add_(self.shift)
        return images

    def invert(self, images: Tensor) -> Tensor:
        """Returns the pixels 0..255, as floats, of normalised images."""
        return (images.float() - self.shift) / self.scale
