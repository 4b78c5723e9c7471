"""Decodes photographs of all sizes into squares of one size, once, and caches them in a file.

Each photograph is squashed to a square; its aspect ratio is stored with it. The cache is in the
folder $KDNB_CACHE, or else in kdnb/ of $XDG_CACHE_HOME or ~/.cache. It has one file for each data
set, size and source folder. The file is opened as a memory map, and may be deleted at any time.

Its content: the SHA-256 of what it was made from (32 bytes), the aspect ratio of each photograph
(float32, 0 for a damaged one), and the pixels of the others (uint8, 3 x size x size each).
"""

import hashlib
import json
import math
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
from filelock import FileLock
from PIL import ExifTags, Image, ImageOps

from kdnb.data.crops import centre_boxes
from kdnb.errors import InputError
from kdnb.progress import bar, is_interactive

VERSION = 1  # to be raised when the same files give other pixels
CHUNK = 256  # photographs that are decoded ahead of the writing

Photograph = Path | BinaryIO | Image.Image


class CacheFile(NamedTuple):
    """A file of the cache and what has to be in it.

    Attributes:
        path: its path.
        fingerprint: SHA-256 of what the photographs are.
        photographs: a sequence of them.
        size: side of the squares in pixels.
    """

    path: Path
    fingerprint: bytes
    photographs: Sequence[Photograph]
    size: int


def load_or_build(
    kind: str, folder: Path, facts: object, photographs: Sequence[Photograph], size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the decoded photographs, and builds the cache file first if it is not there.

    Args:
        kind: name of the data set, which the name of the cache file starts with.
        folder: the folder of the data set. Another folder has another cache file.
        facts: JSON-able description of the photographs, such as the names, sizes and times of
            files. When it changes, the file is built anew.
        photographs: a sequence of files or images. Several threads index it when the file is
            built; later only damaged photographs are asked for again. OSError from indexing marks
            a damaged photograph, as an unreadable file does.
        size: side of the squares in pixels.

    Returns:
        The pixels of those that can be decoded, uint8 (m, 3, size, size), a memory map.
        The aspect ratios of all, float32 (n,), 0 for a damaged photograph.

    Raises InputError if the file cannot be written.
    """
    root = os.environ.get("KDNB_CACHE")
    if not root:
        root = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "kdnb"
    source = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:8]
    path = Path(root).expanduser() / f"{kind}-{size}-{source}.images"
    fingerprint = hashlib.sha256(json.dumps([VERSION, size, facts]).encode()).digest()
    file = CacheFile(path, fingerprint, photographs, size)
    decoded = open_cache(file)  # without the lock, which a read-only folder would refuse
    try:
        if not decoded:
            path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(path.with_suffix(".lock")):
                decoded = open_cache(file)  # another process may have built it meanwhile
                if not decoded:
                    build_cache(file)
                    decoded = open_cache(file)
    except OSError as error:
        raise InputError(
            f"the decoded images cannot be saved in {path.parent} ({error.strerror or error}): "
            "make room there, or set KDNB_CACHE to a folder that can be written to"
        ) from error
    if not decoded:
        raise InputError(f"the images in {folder} changed while they were being read: try again")
    return decoded


def size_and_time(folder: Path, name: str) -> tuple[int, int]:
    """Returns a file's size in bytes and its modification time in ns; (-1, 0) if it has none."""
    with suppress(OSError):  # such as a dangling link, which decoding reports as damaged
        status = os.stat(f"{folder}/{name}")  # joining Paths would take several times as long
        return status.st_size, status.st_mtime_ns
    return -1, 0


def open_cache(cache: CacheFile) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Returns what `load_or_build` does; None if the file is missing, truncated or outdated."""
    # ValueError: the file is shorter than the pixels in it.
    with suppress(OSError, ValueError), open(cache.path, "rb") as file:
        if file.read(32) != cache.fingerprint:
            return None
        aspect = np.fromfile(file, np.float32, len(cache.photographs))
        shape = np.count_nonzero(aspect), 3, cache.size, cache.size
        pixels = np.memmap(file, np.uint8, "c", file.tell(), shape)
        # A photograph that could not be read then, without permission or network, may be by now.
        if any(decode_one(cache, i) for i in np.flatnonzero(aspect == 0).tolist()):
            return None
        return torch.from_numpy(pixels), torch.from_numpy(aspect)
    return None


def build_cache(cache: CacheFile) -> None:
    """Decodes the photographs and writes the file. It appears under its name when complete."""
    start = time.perf_counter()
    total = len(cache.photographs)
    label = f"{cache.path.stem} in {cache.path.parent}"
    # Always the same name, under the lock: what a killed process left is overwritten.
    part = cache.path.with_suffix(".part")
    aspect = np.zeros(total, np.float32)
    try:
        # Threads, because PIL releases the GIL. They end with the context, on Ctrl-C too.
        with (
            open(part, "wb") as file,
            ThreadPoolExecutor() as pool,
            bar(total, label, "image") as progress,
        ):
            file.seek(32 + aspect.nbytes)
            # In chunks, so that results do not pile up in memory if the disk is slow.
            chunks = (range(total)[i : i + CHUNK] for i in range(0, total, CHUNK))
            decode = partial(decode_one, cache)
            squares = (square for chunk in chunks for square in pool.map(decode, chunk))
            for i, square in enumerate(squares):
                if square is not None:
                    # On a full disk a write raises; a memory map would kill the process (SIGBUS).
                    file.write(square[0])
                    aspect[i] = square[1]
                progress.update()
            file.seek(0)
            file.write(cache.fingerprint + aspect.tobytes())
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, cache.path)
    finally:
        part.unlink(missing_ok=True)
    if not is_interactive():
        seconds = time.perf_counter() - start
        print(f"{label}: {total:,} images in {seconds:.1f} s", flush=True)


def decode_one(cache: CacheFile, index: int) -> tuple[np.ndarray, float] | None:
    """Returns `read_image` of one of the photographs; None also if indexing raises OSError."""
    try:
        photograph = cache.photographs[index]
    except OSError:
        return None
    return read_image(photograph, cache.size)


def read_image(photograph: Photograph, size: int) -> tuple[np.ndarray, float] | None:
    """Reads a photograph, turns it upright and squashes it to a square.

    It is resized by PIL's antialiased bilinear filter, the default of torchvision's Resize and
    RandomResizedCrop. Unlike there, the EXIF orientation is applied: cameras store portraits
    sideways.

    Args:
        photograph: a path, an open file or a PIL image.
        size: side of the square in pixels.

    Returns:
        RGB pixels, uint8 (3, size, size), and the original width / height. None for a damaged
        file: empty, truncated, not an image, of more than 8 bits a channel (which PIL would clip to
        white) or of more than `PIL.Image.MAX_IMAGE_PIXELS` pixels (a decompression bomb).
    """
    try:
        with ExitStack() as files:
            is_open = isinstance(photograph, Image.Image)
            image = photograph if is_open else files.enter_context(Image.open(photograph))
            width, height = image.size
            # Up to twice the limit PIL itself only warns.
            if width * height > (Image.MAX_IMAGE_PIXELS or math.inf):
                return None
            if image.mode.startswith(("I", "F")):
                return None
            # A large JPEG decodes several times faster at 1/2, 1/4 or 1/8 of its size. Twice the
            # final size leaves the rest to the antialiased resize. The box cuts off the pixels that
            # rounding up adds at the right and the bottom. An image of somebody else's stays as is.
            reduced = None if is_open else image.draft(None, (2 * size, 2 * size))
            box = reduced and reduced[1]
            rgb = image.convert("RGB")
            square = rgb.resize((size, size), Image.Resampling.BILINEAR, box=box)
            with suppress(Exception):  # the pixels are fine even if the EXIF data are damaged
                orientation = square.getexif().get(ExifTags.Base.Orientation)
                square = ImageOps.exif_transpose(square)
                if orientation in (5, 6, 7, 8):  # turned by 90 degrees
                    width, height = height, width
            return np.ascontiguousarray(np.asarray(square).transpose(2, 0, 1)), width / height
    except MemoryError:
        raise
    except Exception:  # PIL raises nearly any exception for files that are not images
        return None


def centre_crop(path: Path | BinaryIO, most: int = 320) -> np.ndarray:
    """Returns the centre crop that networks are tested on, in the photograph's own resolution.

    Args:
        path: the image file, or an open one.
        most: largest side of the result in pixels.

    Returns:
        uint8 (side, side, 3).
    """
    with Image.open(path) as image:
        upright = ImageOps.exif_transpose(image).convert("RGB")
    left, top, width, height = centre_boxes(np.array([upright.width / upright.height]))[0]
    box = (
        left * upright.width,
        top * upright.height,
        (left + width) * upright.width,
        (top + height) * upright.height,
    )
    side = min(most, round(width * upright.width))
    return np.asarray(upright.resize((side, side), Image.Resampling.LANCZOS, box))
