"""Stanford 40 Actions (Yao et al., ICCV 2011) as a torchvision data set, its download, and safe image reading."""

from __future__ import annotations

import os
import shutil
import socket
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Any, ClassVar
from xml.etree import ElementTree

import torch
from filelock import FileLock
from PIL import Image
from torchvision.datasets import VisionDataset
from torchvision.datasets.folder import pil_loader
from torchvision.datasets.utils import download_and_extract_archive

from kdnb.errors import InputError, choose
from kdnb.progress import bar, watched

__all__ = ["Stanford40", "each_in_threads", "fetching", "listing", "read_image"]


class Stanford40(VisionDataset):
    """Stanford 40 Actions: photographs of people, 40 actions, 4,000 training and 5,532 test images.

    ``dataset[i]`` is ``(image, label)``: a PIL image in RGB as it lies on disk (any size, EXIF orientation left
    alone, as torchvision's data sets do) and an int. With ``boxes=True`` it is ``(image, (label, box))``, box a
    float32 tensor (4,) of xmin, ymin, xmax, ymax around the person, in pixels of the image on disk.

    Args:
        root: the folder with ``JPEGImages``, ``ImageSplits`` and ``XMLAnnotations`` (the last is read for boxes
            only), or its parent, where it is named ``stanford40`` or ``Stanford40``. Smaller trees of one's own in
            the same layout will do: a class is any ``ImageSplits/CLASS_train.txt`` with a ``CLASS_test.txt``.
        split: ``train`` or ``test``.
        transform: called with the image. It does not move the box: crops and flips that should belong in
            ``transforms`` with the box wrapped as a ``torchvision.tv_tensors.BoundingBoxes``.
        target_transform: called with the label, or with ``(label, box)``.
        transforms: called with image and target; instead of the two above.
        download: fetch the official archives where nothing is there yet.
        boxes: return the person's box too.

    Attributes: ``classes`` (sorted names), ``class_to_idx``, ``targets`` (labels), ``names`` (file names in
    ``folder / "JPEGImages"``), ``folder`` (the folder that was found).

    Raises:
        InputError: nothing there (and no download asked for or possible), a split without its partner, an image or
            annotation that is listed but missing.
    """

    url = "http://vision.stanford.edu/Datasets/"
    parts = ("JPEGImages", "ImageSplits", "XMLAnnotations")  # folders; their archives are Stanford40_PART.zip
    official: ClassVar[dict[str, int]] = {"classes": 40, "train": 4000, "test": 5532}  # what a download has to hold

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        transform: Callable | None = None,
        target_transform: Callable | None = None,
        transforms: Callable | None = None,
        download: bool = False,
        boxes: bool = False,
    ) -> None:
        super().__init__(Path(root).expanduser(), transforms, transform, target_transform)
        self.split, self.boxes = choose("split", split, ("train", "test")), boxes
        if download:
            self._download()
        folder = self._find()
        if folder is None:
            raise InputError(
                f"no Stanford40 in {self.root}: unpack {listing(self._urls())} into {self._target()}, "
                "or ask for download=True"
            )
        self.folder = folder
        self.classes = self._split_classes("train")
        unpaired = set(self.classes) ^ set(self._split_classes("test"))
        if unpaired or not self.classes:
            raise InputError(
                f"{folder / 'ImageSplits'} needs CLASS_train.txt and CLASS_test.txt for every class; "
                f"one of the two is missing for {listing(sorted(unpaired)) or 'all'}"
            )
        self.class_to_idx = {name: label for label, name in enumerate(self.classes)}
        self.names: list[str] = []
        self.targets: list[int] = []
        for name, label in self.class_to_idx.items():
            # the official lists have had CRLF ends and blank last lines; strip() takes both
            text = (folder / "ImageSplits" / f"{name}_{split}.txt").read_text("utf-8-sig", errors="replace")
            found = [line.strip() for line in text.splitlines() if line.strip()]
            self.names += found
            self.targets += [label] * len(found)
        self._require(self.names, "JPEGImages")
        if boxes:
            self._require([f"{Path(name).stem}.xml" for name in self.names], "XMLAnnotations")

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        image = pil_loader(self.folder / "JPEGImages" / self.names[index])
        target: Any = self.targets[index]
        if self.boxes:
            target = (target, self._box(index))
        if self.transforms is not None:
            image, target = self.transforms(image, target)
        return image, target

    def extra_repr(self) -> str:
        return f"Split: {self.split}"

    def _box(self, index: int) -> torch.Tensor:
        path = self.folder / "XMLAnnotations" / f"{Path(self.names[index]).stem}.xml"
        try:
            box = ElementTree.parse(path).find("object/bndbox")
            edges = [float(box.findtext(edge)) for edge in ("xmin", "ymin", "xmax", "ymax")]
        except (ElementTree.ParseError, AttributeError, TypeError, ValueError) as error:
            raise InputError(f"{path} holds no object/bndbox with xmin, ymin, xmax and ymax") from error
        return torch.tensor(edges, dtype=torch.float32)

    def _split_classes(self, split: str) -> list[str]:
        # "*_" leaves out the overall train.txt and test.txt; dot files are what macOS adds to archives
        files = (self.folder / "ImageSplits").glob(f"*_{split}.txt")
        return sorted(file.name.rsplit("_", 1)[0] for file in files if not file.name.startswith("."))

    def _require(self, names: list[str], part: str) -> None:
        # by listing, not by path, so that a name with ../ in it is missing too
        there = set(os.listdir(self.folder / part)) if (self.folder / part).is_dir() else set()
        missing = [name for name in names if name not in there]
        if missing:
            raise InputError(
                f"{self.folder / part} lacks {len(missing):,} of the {len(names):,} listed files: {listing(missing)}"
            )

    def _find(self) -> Path | None:
        for folder in (self.root, self.root / "stanford40", self.root / "Stanford40"):
            if (folder / "JPEGImages").is_dir() and (folder / "ImageSplits").is_dir():
                return folder
        return None

    def _target(self) -> Path:
        return self.root if self.root.name.lower() == "stanford40" else self.root / "stanford40"

    def _urls(self) -> list[str]:
        return [f"{self.url}Stanford40_{part}.zip" for part in self.parts]

    def _download(self) -> None:
        target = self._target()
        if self._find():
            return
        if target.is_dir() and any(target.iterdir()):
            raise InputError(
                f"{target} is not empty but has no JPEGImages and ImageSplits: complete it by hand "
                f"from {listing(self._urls())}, or move it away to download anew"
            )
        with fetching("Stanford40", self._urls(), target):
            if self._find():  # another process fetched it while this one waited
                return
            part = target.parent / ".stanford40.part"  # beside the target: a rename there is atomic
            shutil.rmtree(part, ignore_errors=True)  # of a process that was killed
            try:
                for url in self._urls():
                    # no checksums were published; zipfile itself keeps members with ../ or / inside the folder
                    download_and_extract_archive(url, part, part / "unpacked", remove_finished=True)
                (part / "whole").mkdir()
                for name in self.parts:  # these alone: archives made on a Mac also hold __MACOSX
                    (part / "unpacked" / name).rename(part / "whole" / name)
                try:
                    self._verify(part / "whole")
                except InputError as error:
                    raise InputError(f"what {self.url} sent is not Stanford40: {error}") from error
                if target.is_dir():
                    target.rmdir()  # empty; Windows would not rename over it
                (part / "whole").rename(target)
            finally:
                shutil.rmtree(part, ignore_errors=True)

    def _verify(self, folder: Path) -> None:
        """Refuse what was downloaded unless counts, names and boxes are the official ones and every image decodes."""
        splits = {split: type(self)(folder, split, boxes=True) for split in ("train", "test")}
        found = {"classes": len(splits["train"].classes)} | {split: len(data) for split, data in splits.items()}
        strangers = [
            name
            for data in splits.values()
            for name, label in zip(data.names, data.targets, strict=True)
            if name.rsplit("_", 1)[0] != data.classes[label]
        ]
        if found != self.official:
            raise InputError(f"it holds {found}, not {self.official}")
        names = [name for data in splits.values() for name in data.names]
        if strangers:
            raise InputError(
                f"{len(strangers):,} of {len(names):,} images are listed under another class: {listing(strangers)}"
            )
        paths = [folder / "JPEGImages" / name for name in names]
        with each_in_threads(read_image, paths, "checking Stanford40") as read:
            bad = [name for name, image in zip(names, read, strict=True) if image is None]
        if bad:
            raise InputError(f"{len(bad):,} of {len(names):,} images cannot be decoded: {listing(bad)}")


UPRIGHT = {  # EXIF orientation -> what undoes it
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_image(path: str | Path, size: int | None = None) -> tuple[Image.Image, float] | None:
    """An image file, wholly decoded, upright, in RGB, and its width / height; None where it cannot be decoded.

    That is where it is empty, truncated or no image, where it has more than 8 bits a channel (which PIL would clip to
    white) or more than ``PIL.Image.MAX_IMAGE_PIXELS`` pixels (a decompression bomb). With ``size`` it comes squashed
    to size x size pixels, by PIL's antialiased BILINEAR, torchvision's default for Resize and RandomResizedCrop.
    EXIF orientation is applied, unlike in torchvision, since cameras store portraits sideways. (No image of the reduced
    Stanford40 has one.)
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            if Image.MAX_IMAGE_PIXELS and width * height > Image.MAX_IMAGE_PIXELS:
                return None  # PIL itself only warns, up to twice as many
            if image.mode.startswith(("I", "F")):
                return None
            # JPEGs of camera size decode several times faster at 1/2, 1/4 or 1/8; twice the size asked for leaves
            # the last word to the antialiasing. The box cuts off what rounding up adds at the right and bottom.
            reduced = image.draft(None, (2 * size, 2 * size)) if size else None
            pixels = image.convert("RGB")
            if size:
                pixels = pixels.resize((size, size), Image.Resampling.BILINEAR, box=reduced and reduced[1])
            orientation = _orientation(image)
            if orientation in UPRIGHT:
                pixels = pixels.transpose(UPRIGHT[orientation])
            return pixels, height / width if orientation in (5, 6, 7, 8) else width / height
    except MemoryError:
        raise
    except Exception:  # PIL raises nearly anything for files that are no images
        return None


def _orientation(image: Image.Image) -> int | None:
    try:
        return image.getexif().get(0x0112)
    except Exception:  # damaged EXIF beside a whole image is no reason to refuse it
        return None


@contextmanager
def each_in_threads(function: Callable, items: Sequence, label: str, progress: bool = True) -> Iterator[Iterator]:
    """Within it, an iterator over ``function(item)`` in order, computed by a thread per core (PIL lets go of the GIL).

    Where a person watches (and ``progress`` is true) a bar shows it; else one line at the end. The threads end with the
    context, also on an error or Ctrl-C: were it left to the garbage collector, a thread that is just starting could
    find itself waiting for them, for ever.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    start = time.perf_counter()
    pool = ThreadPoolExecutor(cores)

    def results(shown) -> Iterator:
        # in pieces: results must not pile up in memory where the disk is slower than the cores
        for piece in range(0, len(items), 32 * cores):
            for result in pool.map(function, items[piece : piece + 32 * cores]):
                yield result
                shown.update()

    try:
        with bar(len(items), label, "image", progress) as shown, closing(results(shown)) as each:
            yield each
    finally:
        pool.shutdown(cancel_futures=True)
    if not (progress and watched()):
        print(f"{label}: {len(items):,} images in {time.perf_counter() - start:.1f} s", flush=True)


@contextmanager
def fetching(what: str, urls: Sequence[str], folder: Path) -> Iterator[None]:
    """Around a download into ``folder``: one process at a time, no endless waiting, one sentence if it fails."""
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(60)  # torchvision sets none: a silent server would hold a headless run for ever
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.parent / f".{folder.name}.lock"):
            yield
    except (OSError, RuntimeError, EOFError, HTTPException, tarfile.TarError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(
            f"{what} is not whole in {folder} and the download failed ({error}): "
            f"unpack {listing(urls)} there by hand, or run again with a network"
        ) from error
    finally:
        socket.setdefaulttimeout(timeout)


def listing(names: Sequence[str], most: int = 10) -> str:
    """The first ten names, and how many more there are."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
