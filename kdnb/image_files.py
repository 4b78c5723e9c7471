"""Image files: which files below a folder are images, and opening them."""

import os
import stat
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import BinaryIO, NamedTuple

from PIL import Image

from kdnb.errors import InputError

# Nothing else is opened, whatever a file is called: Pillow would hand PostScript to Ghostscript,
# which runs programs. HEIF needs a plug-in of Pillow's.
FORMATS = ["JPEG", "MPO", "PNG", "GIF", "BMP", "DIB", "TIFF", "WEBP", "AVIF", "JPEG2000"]
FORMATS += ["PPM", "HEIF"]


@cache
def formats() -> list[str]:
    """The formats of photographs that Pillow reads here."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


@cache
def endings() -> tuple[str, ...]:
    """The endings of files in these formats, such as ".jpg", in lower case."""
    known = formats()
    return tuple(
        sorted(end for end, name in Image.registered_extensions().items() if name in known)
    )


def open_image(source: Path | BinaryIO) -> Image.Image:
    """Open an image file as Pillow does, if it is a regular file in one of `FORMATS`.

    Raises OSError otherwise.
    """
    # Opening a pipe or a device might wait for ever.
    if isinstance(source, str | Path) and not stat.S_ISREG(os.stat(source).st_mode):
        raise OSError(f"{source} is no regular file")
    return Image.open(source, formats=formats())


# Folders that network disks and operating systems add; hidden ones begin with a dot.
SYSTEM_FOLDERS = {
    "@eadir",
    "@recently-snapshot",
    "@recycle",
    "@tmp",
    "~snapshot",
    "#recycle",
    "#snapshot",
    "$recycle.bin",
    "__macosx",
    "lost+found",
    "network trash folder",
    "system volume information",
    "temporary items",
}
SYSTEM_NAMES = SYSTEM_FOLDERS | {"desktop.ini", "thumbs.db"}


def is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden, or added by a system."""
    return name[0] == "." or name.lower() in SYSTEM_NAMES


class Entry(NamedTuple):
    """An entry of a folder: its name, and the path that it is or, through links, leads to."""

    name: str
    target: str
    is_folder: bool
    is_file: bool  # a regular one: reading a pipe or a device may wait for ever


class Tree:
    """Lists the images below some folders, each real file once.

    Links are followed, but not into these folders, nor to a folder that contains one of them.

    Args:
        roots: the folders.

    Attributes:
        left_out: the visible files that are no images by their endings or are no regular files,
            and links that are not followed.
    """

    def __init__(self, roots: Sequence[Path]):
        self.roots = [os.path.realpath(root) for root in roots]
        self.seen: set[str] = set()  # real paths of files and folders
        self.left_out: list[str] = []

    def folders(self, folder: Path) -> list[str]:
        """The names of the visible folders in a folder, sorted. Raises InputError as `images`."""
        names = []
        for entry in self.entries(str(folder)):
            if entry.is_folder:
                names.append(entry.name)
            else:
                self.left_out.append(os.path.join(folder, entry.name))
        return names

    def images(self, folder: Path) -> list[str]:
        """The paths of the images in a folder, at any depth, by folder and name.

        Raises InputError for a folder that cannot be read.
        """
        found = []
        waiting = [str(folder)]
        while waiting:
            path = waiting.pop()
            real = os.path.realpath(path)
            if real in self.seen:
                self.left_out.append(path)
                continue
            self.seen.add(real)
            names = []
            for entry in self.entries(path):
                inner = os.path.join(path, entry.name)
                if entry.is_folder:
                    waiting.append(inner)
                    continue
                is_image = entry.is_file and entry.name.lower().endswith(endings())
                if is_image and entry.target not in self.seen:
                    self.seen.add(entry.target)
                    names.append(inner)
                else:
                    self.left_out.append(inner)
            found.append((path, sorted(names)))
        return [name for _, names in sorted(found) for name in names]

    def entries(self, folder: str) -> Iterator[Entry]:
        """Yields the visible entries of a folder, but for links that are not followed."""
        try:
            with os.scandir(folder) as scanned:
                entries = sorted(scanned, key=lambda entry: entry.name)
        except OSError as error:
            raise InputError(f"cannot read {folder}: {error.strerror}") from None
        real = os.path.realpath(folder)
        for entry in entries:
            if is_hidden(entry.name):
                continue
            target = os.path.join(real, entry.name)
            is_dangling = entry.is_symlink() and not os.path.exists(target)
            if entry.is_symlink():
                target = os.path.realpath(target)
                is_there = self.is_inside(target) and not is_dangling
                if is_there or self.contains(target, real):
                    self.left_out.append(os.path.join(folder, entry.name))
                    continue
            # What a dangling link leads to is a file: decoding reports it as damaged.
            is_folder = not is_dangling and entry.is_dir()
            yield Entry(entry.name, target, is_folder, is_dangling or entry.is_file())

    def is_inside(self, target: str) -> bool:
        """Whether the target of a link is in one of the folders: there it is listed anyway."""
        return any(is_below(target, root) for root in self.roots)

    def contains(self, target: str, folder: str) -> bool:
        """Whether the target of a link in a folder contains that folder, or one of the roots."""
        return any(is_below(path, target) for path in (folder, *self.roots))


def is_below(path: str, folder: str) -> bool:
    """Whether a real path is a folder or in it."""
    return path == folder or path.startswith(os.path.join(folder, ""))
