"""Photographs of all sizes -> squares of one size, decoded once and kept; and the way to fetch what is missing.

Each photograph is squashed to a square that remembers its aspect ratio. The squares lie in the folder $KDNB_CACHE, else
in kdnb/ of $XDG_CACHE_HOME or ~/.cache: a file per data set, size and folder they came from, which opens in a moment as
a memory map and may be deleted at any time. It holds the SHA-256 of what it was made of, the aspects (float32, 0 where
a photograph is damaged), and the pixels of the others (uint8, 3 x size x size each).
"""

import hashlib
import json
import math
import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import compress, repeat
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
from filelock import FileLock
from PIL import ExifTags, Image, ImageOps

from kdnb.data.base import Images
from kdnb.data.loader import centre_boxes
from kdnb.errors import InputError
from kdnb.progress import bar, is_interactive

IMAGENET_STATS = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
VERSION = 1  # raise when the same files give other pixels


class Files(NamedTuple):
    """Photographs as they are listed: paths in `folder` and labels, of the training and of the test images."""

    folder: Path
    classes: Sequence[str]
    names: Sequence[Sequence[str]]
    labels: Sequence[Sequence[int]]


def digest(files: Callable[[Path], Files], root: Path) -> str:
    """Eight hex digits over names, sizes and labels of what `files(root)` lists; "" where it cannot. Opens no image."""
    try:
        folder, _, names, labels = files(root)
    except (InputError, OSError):
        return ""
    listed = [[(name, _stamp(folder, name)[0]) for name in split] for split in names]
    return hashlib.sha256(json.dumps([listed, labels]).encode()).hexdigest()[:8]


def decode(kind: str, files: Files, size: int, skip_damaged: bool) -> tuple[Images, Images]:
    """The training and test images at size x size, from the cache or into it; see `kdnb.data.load_data`."""
    names = [
        *files.names[0],
        *files.names[1],
    ]  # together, so that one pass finds everything that is wrong with either
    pixels, aspect = _cached(kind, files.folder, names, size)
    whole = aspect > 0
    if damaged := [name for name, fine in zip(names, whole, strict=True) if not fine]:
        text = (
            f"{len(damaged):,} of {len(names):,} images in {files.folder} cannot be decoded (empty, truncated, not an "
            f"image of 8 bits a channel, or of more than {Image.MAX_IMAGE_PIXELS} pixels)"
        )
        if not skip_damaged:
            raise InputError(f"{text}: {shorten_list(damaged)}; skip_damaged leaves them out")
        print(f"{text} and are left out: {shorten_list(damaged)}", flush=True)
    labels = torch.tensor([*files.labels[0], *files.labels[1]], dtype=torch.int64)[whole]
    first, aspect = int(whole[: len(files.names[0])].sum()), aspect[whole]
    paths, about = (
        [files.folder / name for name in compress(names, whole)],
        (tuple(files.classes), *IMAGENET_STATS),
    )
    train, test = (
        Images(torch.from_numpy(pixels[part]), labels[part], *about, aspect[part], paths[part])
        for part in (slice(first), slice(first, None))
    )
    lacking = [
        f"training images of {name}"
        for label, name in enumerate(files.classes)
        if label not in train.labels
    ]
    if lacking or not len(test):
        raise InputError(f"{files.folder} has no {shorten_list(lacking) or 'test images'}")
    return train, test


def _cached(kind, folder, names, size) -> tuple[np.ndarray, torch.Tensor]:
    """The pixels (m, 3, size, size) of the photographs that are whole, and the aspects (n,) of all."""
    cache = (
        os.environ.get("KDNB_CACHE")
        or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "kdnb"
    )
    source = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:8]
    path = Path(cache).expanduser() / f"{kind}-{size}-{source}.images"
    made_of = VERSION, size, [(name, *_stamp(folder, name)) for name in names]
    of = (
        path,
        hashlib.sha256(json.dumps(made_of).encode()).digest(),
        [folder / name for name in names],
        size,
    )
    opened = _open(*of)  # without the lock: also from a read-only folder
    try:
        if not opened:
            path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(path.with_suffix(".lock")):  # another process may just have built it
                opened = _open(*of) or _build(*of) or _open(*of)
    except OSError as error:
        raise InputError(
            f"the decoded images cannot be kept in {path.parent} ({error.strerror or error}): make room there, "
            "or set KDNB_CACHE to a folder that can be written to"
        ) from error
    if not opened:
        raise InputError(f"the images in {folder} changed while they were being read: try again")
    return opened


def _stamp(folder: Path, name: str) -> tuple[int, int]:
    with suppress(OSError):  # such as a dangling link: decoding will name it with the others
        status = os.stat(f"{folder}/{name}")  # a Path for each would take several times as long
        return status.st_size, status.st_mtime_ns
    return -1, 0


def _open(path, fingerprint, photographs, size) -> tuple[np.ndarray, torch.Tensor] | None:
    """What `_cached` returns if the file is there, whole and made of these very photographs; else None."""
    with (
        suppress(OSError, ValueError),
        open(path, "rb") as file,
    ):  # ValueError: it is shorter than it has to be
        if file.read(32) == fingerprint:
            aspect = np.fromfile(file, np.float32, len(photographs))
            pixels = np.memmap(
                file, np.uint8, "c", file.tell(), (np.count_nonzero(aspect), 3, size, size)
            )
            # what could not be read then, for want of permission or a network, may be whole by now
            healed = any(read_image(photographs[i], size) for i in np.flatnonzero(aspect == 0))
            return None if healed else (pixels, torch.from_numpy(aspect))
    return None


def _build(path, fingerprint, photographs, size) -> None:
    start, n, label = time.perf_counter(), len(photographs), f"{path.stem} in {path.parent}"
    part = path.with_suffix(
        ".part"
    )  # one name, under the lock: what a killed process left is overwritten
    aspect = np.zeros(n, np.float32)
    try:
        # PIL lets go of the GIL; the threads end with the `with`, on Ctrl-C too
        with (
            open(part, "wb") as file,
            ThreadPoolExecutor() as pool,
            bar(n, label, "image") as shown,
        ):
            file.seek(32 + aspect.nbytes)
            # in pieces: results must not pile up in memory where the disk is slower than the cores
            pieces = (photographs[first : first + 256] for first in range(0, n, 256))
            squares = (
                square for piece in pieces for square in pool.map(read_image, piece, repeat(size))
            )
            for i, square in enumerate(squares):
                if square is not None:
                    # written rather than mapped: on a full disk a write raises, a map kills the process (SIGBUS)
                    file.write(square[0])
                    aspect[i] = square[1]
                shown.update()
            file.seek(0)
            file.write(fingerprint + aspect.tobytes())
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    if not is_interactive():
        print(f"{label}: {n:,} images in {time.perf_counter() - start:.1f} s", flush=True)


def read_image(path: Path | BinaryIO, size: int) -> tuple[np.ndarray, float] | None:
    """An image file squashed to uint8 (3, size, size), upright, in RGB, and its width / height; None if it is damaged.

    path: or an open file. Damaged: empty, truncated or no image, of more than 8 bits a channel (which PIL would clip to
    white) or of more than `PIL.Image.MAX_IMAGE_PIXELS` pixels (a decompression bomb). Resized by PIL's antialiased
    BILINEAR, torchvision's default for Resize and RandomResizedCrop; turned as EXIF says, unlike there, since cameras
    store portraits sideways.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            if width * height > (Image.MAX_IMAGE_PIXELS or math.inf) or image.mode.startswith(
                ("I", "F")
            ):
                return None  # up to twice as many pixels PIL only warns
            # JPEGs of camera size decode several times faster at 1/2, 1/4 or 1/8; twice the size asked for leaves
            # the last word to the antialiasing. The box cuts off what rounding up adds at the right and bottom.
            reduced = image.draft(None, (2 * size, 2 * size))
            pixels = image.convert("RGB").resize(
                (size, size), Image.Resampling.BILINEAR, box=reduced and reduced[1]
            )
            with suppress(Exception):  # damaged EXIF beside a whole image is no reason to refuse it
                on_its_side = pixels.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
                pixels = ImageOps.exif_transpose(pixels)
                width, height = (height, width) if on_its_side else (width, height)
            return np.ascontiguousarray(np.asarray(pixels).transpose(2, 0, 1)), width / height
    except MemoryError:
        raise
    except Exception:  # PIL raises nearly anything for files that are no images
        return None


def centre_crop(path: Path | BinaryIO, most: int = 320) -> np.ndarray:
    """What testing cuts out of a photograph, from the file: uint8 (side, side, 3), its own pixels up to `most`."""
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


@contextmanager
def downloading(what: str, urls: Sequence[str], folder: Path) -> Iterator[None]:
    """Around a download into `folder`: one process at a time, no endless waiting, one sentence if it fails."""
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(
        60
    )  # torchvision sets none: a silent server would hold a headless run for ever
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.parent / f".{folder.name}.lock"):
            yield
    except Exception as error:  # networks and archives fail in many ways
        raise InputError(
            f"{what} is not whole in {folder} and the download failed ({error}): "
            f"unpack {shorten_list(urls)} there by hand, or run again with a network"
        ) from error
    finally:
        socket.setdefaulttimeout(timeout)


def shorten_list(names: Sequence[str], most: int = 10) -> str:
    """The first ten names, and how many more there are."""
    return ", ".join(names[:most]) + (
        f" and {len(names) - most:,} more" if len(names) > most else ""
    )
