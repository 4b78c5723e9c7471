"""Eight hex digits that tell the images of a data set apart: part of what a run is."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import torch

from kdnb.errors import InputError

CHUNK = 1024  # images that are hashed at a time: they may be a memory map


def no_digest(root: Path) -> str:
    """Returns "": the digest of a data set whose images never differ."""
    return ""


def once(digest: Callable[[Path], str]) -> Callable[[Path], str]:
    """Returns the function with its results remembered by root folder, "" excepted.

    For digests that take long to compute. A change of the images is then seen by the next process.
    """
    known: dict[Path, str] = {}

    def remembered(root: Path) -> str:
        if not known.get(root):
            known[root] = digest(root)
        return known[root]

    return remembered


def digest_of_load(load: Callable, size: int) -> Callable[[Path], str]:
    """Returns the digest function of a data set that is known by its load function alone.

    Args:
        load: see `kdnb.data.register`. It has to return the same images every time.
        size: side of the stored images that it is called with.
    """

    def digest(root: Path) -> str:
        try:
            splits = load(root, size, skip_damaged=True)
        except (InputError, OSError):  # there are no data, yet
            return ""
        return digest_of_images(splits)

    return once(digest)


def digest_of_images(splits) -> str:
    """Returns the start of the SHA-256 of the pixels and labels of some Images."""
    sha256 = hashlib.sha256()
    for images in splits:
        sha256.update(repr((tuple(images.images.shape), images.classes)).encode())
        for tensor in (images.labels, images.images):
            for chunk in torch.split(tensor, CHUNK):
                sha256.update(chunk.contiguous().numpy())
    return sha256.hexdigest()[:8]
