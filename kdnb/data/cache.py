"""Decodes photographs of all sizes once, and caches their pixels in a file.

The cache is in the folder $KDNB_CACHE, or else in kdnb/ of $XDG_CACHE_HOME or ~/.cache. It has one
file for each data set, size and source folder. The file is opened as a memory map, and may be
deleted at any time.

Its content: the SHA-256 of what it was made from (32 bytes), the digest of all that follows (32
bytes), height and width of each photograph (int32, 0 for a damaged one), and the pixels of the
others (uint8, height x width x 3 each). The digest is checked when a process opens the file first.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from kdnb.data.download import one_process
from kdnb.data.image_file import VERSION, Photograph, read_image
from kdnb.data.ragged import Ragged
from kdnb.errors import InputError
from kdnb.paths import cache_folder
from kdnb.progress import bar, is_interactive

CHUNK = 256  # photographs that are decoded ahead of the writing
LAYOUT = 2  # of the file. 1: without a digest of its content
BLOCK = 2**26  # bytes that a thread hashes at a time
CHECKED: set[tuple] = set()  # the files whose content this process has checked


class Decoded(NamedTuple):
    """Decoded photographs.

    Attributes:
        images: those that can be decoded, in a memory map.
        is_readable: whether each can be decoded, bool (n,).
        digest: digest of sizes and pixels, in hex digits.
    """

    images: Ragged
    is_readable: torch.Tensor
    digest: str


class CacheFile(NamedTuple):
    """A file of the cache and what has to be in it.

    Attributes:
        path: its path.
        fingerprint: SHA-256 of what the photographs are.
        photographs: a sequence of them.
        read: function that decodes one, or returns None for a damaged one.
    """

    path: Path
    fingerprint: bytes
    photographs: Sequence[Photograph]
    read: Callable[[Photograph], np.ndarray | None]


def load_or_build(
    kind: str,
    folder: Path,
    facts: object,
    photographs: Sequence[Photograph],
    size: int,
    enlarge: bool = True,
) -> Decoded:
    """Returns the decoded photographs, and builds the cache file first if it is not there.

    Args:
        kind: name of the data set, which the name of the cache file starts with.
        folder: the folder of the data set. Another folder has another cache file.
        facts: JSON-able description of the photographs, such as the names, sizes and times of
            files. When it changes, the file is built anew.
        photographs: a sequence of files or images. Several threads index it when the file is
            built; later only damaged photographs are read again. OSError from indexing marks
            a damaged photograph, as an unreadable file does.
        size: shorter side of the decoded photographs in pixels.
        enlarge: whether smaller photographs are enlarged to that size.

    Raises InputError if the file cannot be written.
    """
    source = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:8]
    path = cache_folder() / f"{kind}-{size}-{source}.images"
    description = json.dumps([LAYOUT, VERSION, size, enlarge, facts])
    fingerprint = hashlib.sha256(description.encode()).digest()
    read = partial(read_image, size=size, enlarge=enlarge)
    file = CacheFile(path, fingerprint, photographs, read)
    decoded = open_cache(file)  # without the lock, which a read-only folder would refuse
    try:
        if not decoded:
            path.parent.mkdir(parents=True, exist_ok=True)
            with one_process(path.with_suffix(".lock"), path.with_suffix(".part")):
                # Another process may have built it meanwhile.
                decoded = open_cache(file, report=True)
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


def open_cache(cache: CacheFile, report: bool = False) -> Decoded | None:
    """Returns what `load_or_build` does; None if the file is missing, damaged or outdated.

    report: whether to print that it is damaged.
    """
    if not cache.path.is_file():  # nor a pipe, which would be waited for
        return None
    # ValueError: the file is shorter than the pixels in it.
    with suppress(OSError, ValueError), open(cache.path, "rb") as file:
        if file.read(32) != cache.fingerprint:
            return None
        expected = file.read(32)
        if not is_intact(cache.path, expected):
            if report:
                print(f"{cache.path} is damaged: the images are decoded anew", flush=True)
            return None
        shape = len(cache.photographs), 2
        sizes = np.fromfile(file, np.int32, 2 * len(cache.photographs)).reshape(shape)
        sizes = torch.from_numpy(sizes).long()
        is_readable = sizes[:, 0] > 0
        # A photograph that could not be read then, without permission or network, may be by now.
        if any(
            decode_one(cache, i) is not None for i in (~is_readable).nonzero().flatten().tolist()
        ):
            return None
        count = int(sizes.prod(1).sum())
        pixels = np.memmap(file, np.uint8, "c", file.tell(), (count, 3))
        images = Ragged.packed(torch.from_numpy(pixels), sizes[is_readable])
        return Decoded(images, is_readable, expected.hex())
    return None


def is_intact(path: Path, expected: bytes) -> bool:
    """Whether the content of a cache file has its digest; looked at once in a process."""
    status = path.stat()
    key = path, expected, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
    if key not in CHECKED and content_digest(path) == expected:
        CHECKED.add(key)
    return key in CHECKED


def content_digest(path: Path) -> bytes:
    """The SHA-256 of the SHA-256s of the blocks of a cache file after its two digests."""

    def block_digest(start: int) -> bytes:
        with open(path, "rb") as file:
            file.seek(start)
            return hashlib.sha256(file.read(BLOCK)).digest()

    with ThreadPoolExecutor() as pool:  # hashing releases the GIL
        blocks = pool.map(block_digest, range(64, path.stat().st_size, BLOCK))
        return hashlib.sha256(b"".join(blocks)).digest()


def build_cache(cache: CacheFile) -> None:
    """Decodes the photographs and writes the file. It appears under its name when complete."""
    start = time.perf_counter()
    total = len(cache.photographs)
    label = f"{cache.path.stem} in {cache.path.parent}"
    # Always the same name, under the lock: what a killed process left is overwritten.
    part = cache.path.with_suffix(".part")
    sizes = np.zeros((total, 2), np.int32)
    try:
        # Threads, because PIL releases the GIL. They end with the context, on Ctrl-C too.
        with (
            open(part, "wb") as file,
            ThreadPoolExecutor() as pool,
            bar(total, label, "image") as progress,
        ):
            file.seek(64 + sizes.nbytes)
            # In chunks, so that results do not pile up in memory if the disk is slow.
            chunks = (range(total)[i : i + CHUNK] for i in range(0, total, CHUNK))
            decode = partial(decode_one, cache)
            images = (image for chunk in chunks for image in pool.map(decode, chunk))
            for i, image in enumerate(images):
                if image is not None:
                    # On a full disk a write raises; a memory map would kill the process (SIGBUS).
                    file.write(image)
                    sizes[i] = image.shape[:2]
                progress.update()
            file.seek(64)
            file.write(sizes.tobytes())
            file.flush()
            digest = content_digest(part)
            file.seek(0)
            file.write(cache.fingerprint + digest)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, cache.path)
    finally:
        part.unlink(missing_ok=True)
    if not is_interactive():
        seconds = time.perf_counter() - start
        print(f"{label}: {total:,} images in {seconds:.1f} s", flush=True)


def decode_one(cache: CacheFile, index: int) -> np.ndarray | None:
    """Returns one of the photographs; None for a damaged one, or if indexing raises OSError."""
    try:
        photograph = cache.photographs[index]
    except OSError:
        return None
    return cache.read(photograph)
