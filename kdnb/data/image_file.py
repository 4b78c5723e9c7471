"""Reads photographs: from image files of all kinds to upright RGB pixels."""

import math
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps

from kdnb.data.crops import MAX_ASPECT, centre_boxes
from kdnb.image_files import open_image

VERSION = 2  # to be raised when the same file gives other pixels. 1: squashed to squares

MOST_PIXELS = 10**8  # that are decoded at a time, by all threads: about 700 MB

Photograph = Path | BinaryIO | Image.Image


class PixelBudget:
    """The pixels that may be decoded at a time: a small file may hold a very large image."""

    def __init__(self, most: int):
        self.free = self.most = most
        self.changed = threading.Condition()

    @contextmanager
    def reserve(self, pixels: int) -> Iterator[None]:
        """Context of decoding so many pixels; it waits until they are free."""
        pixels = min(pixels, self.most)
        with self.changed:
            self.changed.wait_for(lambda: self.free >= pixels)
            self.free -= pixels
        try:
            yield
        finally:
            with self.changed:
                self.free += pixels
                self.changed.notify_all()


BUDGET = PixelBudget(MOST_PIXELS)
# Pillow's blocks of memory. The C library keeps smaller ones (of 32 MiB at most) for each thread
# when they are freed, so that all threads together would keep gigabytes.
Image.core.set_block_size(2**26)


def read_image(photograph: Photograph, size: int, enlarge: bool = True) -> np.ndarray | None:
    """Reads a photograph, turns it upright and resizes its shorter side, as torchvision's Resize.

    It is resized by PIL's antialiased bilinear filter, the default of Resize and RandomResizedCrop.
    Unlike there, the EXIF orientation is applied: cameras store portraits sideways.

    A photograph that is more than MAX_ASPECT times as long as wide is cut to its centre of that
    aspect ratio: no crop reaches beyond it, and the result has a bounded size.

    Args:
        photograph: a path, an open file or a PIL image.
        size: shorter side of the result in pixels.
        enlarge: whether smaller photographs are enlarged to that size.

    Returns:
        RGB pixels, uint8 (height, width, 3). None for a damaged file: empty, truncated, not an
        image, of more than 8 bits a channel (which PIL would clip to white) or of more than
        `PIL.Image.MAX_IMAGE_PIXELS` pixels (a decompression bomb).
    """
    try:
        with ExitStack() as files:
            is_open = isinstance(photograph, Image.Image)
            image = photograph if is_open else files.enter_context(open_image(photograph))
            width, height = image.size
            # Up to twice the limit PIL itself only warns.
            if width * height > (Image.MAX_IMAGE_PIXELS or math.inf):
                return None
            if image.mode.startswith(("I", "F")):
                return None
            shorter = min(width, height)
            if not enlarge:
                size = min(size, shorter)
            # A large JPEG decodes several times faster at 1/2, 1/4 or 1/8 of its size. Four times
            # the final size leaves the rest to the antialiased resize. The box cuts off the pixels
            # that rounding up adds at the right and the bottom. An image of somebody else's stays
            # as is.
            reduced = None if is_open else image.draft(None, (4 * size, 4 * size))
            box = centre_part(*(reduced[1][2:] if reduced else image.size))
            shape = [min(size * side // shorter, MAX_ASPECT * size) for side in (width, height)]
            with BUDGET.reserve(image.width * image.height):
                rgb = image.convert("RGB").resize(shape, Image.Resampling.BILINEAR, box)
            with suppress(Exception):  # the pixels are fine even if the EXIF data are damaged
                rgb = ImageOps.exif_transpose(rgb)
            return np.array(rgb)
    except MemoryError:
        raise
    except Exception:  # PIL raises nearly any exception for files that are not images
        return None


def centre_part(width: float, height: float) -> tuple[float, float, float, float]:
    """Returns left, top, right and bottom of the part of an image that is not too elongated."""
    longest = MAX_ASPECT * min(width, height)
    x = max(0, (width - longest) / 2)
    y = max(0, (height - longest) / 2)
    return x, y, width - x, height - y


def centre_crop(path: Path | BinaryIO, most: int = 320) -> np.ndarray:
    """Returns the centre crop that networks are tested on, in the photograph's own resolution.

    Args:
        path: the image file, or an open one.
        most: largest side of the result in pixels.

    Returns:
        uint8 (side, side, 3).
    """
    with open_image(path) as image:
        upright = ImageOps.exif_transpose(image).convert("RGB")
    [[left, top, side, _]] = centre_boxes(np.array([[upright.height, upright.width]])).tolist()
    crop = upright.crop((left, top, left + side, top + side))
    crop.thumbnail((most, most), Image.Resampling.LANCZOS)
    return np.asarray(crop)
