"""Images of different sizes in one flat array."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


# Without eq and repr: comparing tensors gives no single truth value, and they are long to print.
@dataclass(frozen=True, eq=False, repr=False)
class Ragged:
    """Images of different sizes, row after row and image after image in one array.

    `ragged[i]` is an image, uint8 (3, height, width). `ragged[index]` with a slice, a list, or a
    tensor of indices or bools is a Ragged of these images. Both share the memory of the pixels.

    Attributes:
        pixels: RGB, uint8 (pixels of all images, 3). It may be a memory map.
        offsets: position of each image's first pixel, int64 (n,).
        sizes: height and width of each image, int64 (n, 2).
    """

    pixels: Tensor
    offsets: Tensor
    sizes: Tensor

    @classmethod
    def packed(cls, pixels: Tensor, sizes: Tensor) -> "Ragged":
        """Returns images that follow each other in `pixels` without a gap."""
        counts = sizes.prod(1)
        return cls(pixels, counts.cumsum(0) - counts, sizes)

    @classmethod
    def from_arrays(cls, images: Sequence[np.ndarray]) -> "Ragged":
        """Returns a copy of images, uint8 (height, width, 3) each."""
        pixels = np.concatenate([image.reshape(-1, 3) for image in images])
        sizes = torch.tensor([image.shape[:2] for image in images])
        return cls.packed(torch.from_numpy(pixels), sizes)

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index):
        if isinstance(index, int | np.integer):
            height, width = self.sizes[index].tolist()
            start = int(self.offsets[index])
            image = self.pixels[start : start + height * width]
            return image.view(height, width, 3).permute(2, 0, 1)
        return Ragged(self.pixels, self.offsets[index], self.sizes[index])

    @property
    def aspect(self) -> Tensor:
        """Width / height of each image, float32 (n,)."""
        return self.sizes[:, 1] / self.sizes[:, 0]

    @property
    def nbytes(self) -> int:
        """Bytes of these images' pixels."""
        return 3 * int(self.sizes.prod(1).sum())

    def to(self, device: str | torch.device) -> "Ragged":
        """Returns a copy of these images alone, on a device."""
        pixels = torch.empty(self.nbytes // 3, 3, dtype=torch.uint8, device=device)
        copy = self.packed(pixels, self.sizes)
        counts = self.sizes.prod(1)
        starts = zip(self.offsets.tolist(), copy.offsets.tolist(), counts.tolist(), strict=True)
        for source, target, count in starts:
            pixels[target : target + count] = self.pixels[source : source + count]
        return Ragged(pixels, copy.offsets.to(device), copy.sizes.to(device))
