"""How images are prepared for a network: their size, crop and normalisation."""

import math
from collections.abc import Mapping
from typing import NamedTuple

Channels = tuple[float, float, float]


class Preprocessing(NamedTuple):
    """What a network expects of its images.

    Attributes:
        mean: mean of each channel, of pixels scaled to 0..1.
        std: standard deviation of each channel, likewise.
        image_size: height and width of the network's input in pixels.
        crop: side of the centre square that a photograph is cropped to for testing, as a share of
            its shorter side; 1 for images that are not cropped.
    """

    mean: Channels
    std: Channels
    image_size: int
    crop: float = 1.0

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, object]) -> "Preprocessing | None":
        """Returns what the metadata of a weights file say; None if they say nothing valid.

        The keys are the names of the attributes.
        """
        try:
            mean, std = (tuple(map(float, metadata[name])) for name in ("mean", "std"))
            size, crop = int(metadata["image_size"]), float(metadata["crop"])
        except (KeyError, TypeError, ValueError, OverflowError):
            return None
        is_valid = len(mean) == len(std) == 3 and all(map(math.isfinite, (*mean, *std)))
        is_valid = is_valid and min(std) > 0 and size > 0 and 0 < crop <= 1
        return cls(mean, std, size, crop) if is_valid else None
