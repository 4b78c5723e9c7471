"""Data sets as arrays: files -> ImageSet of uint8 images, which batches.py augments on the device.

Photographs of all sizes are decoded once, squashed to a square canvas, and kept as a memory map in a cache folder
(``root/.kdnb``, or the environment's ``KDNB_CACHE``) that opens in a moment from then on.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from PIL import Image
from torchvision.datasets import CIFAR100
from torchvision.datasets.folder import is_image_file, make_dataset

from kdnb.errors import InputError, choose
from kdnb.stanford40 import Stanford40, each_in_threads, fetching, listing, read_image

__all__ = ["DATASETS", "ImageSet", "Stanford40", "load"]

CIFAR100_STATS = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
IMAGENET_STATS = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True, eq=False, repr=False)  # tensors have no single truth to compare by, and long reprs
class ImageSet:
    """One split of a data set, whole, as arrays.

    Attributes:
        images: uint8 (n, 3, size, size), 0..255; perhaps a memory map, whose pages load as they are touched and
            copy when written to, so that the file never changes.
        labels: int64 (n,), indices into ``classes``.
        classes: names.
        mean, std: per channel, of pixels scaled to 0..1; what batches are normalised with.
        aspect: float32 (n,), original width / height of images that were squashed to the square; None where they
            are square by nature.
    """

    images: torch.Tensor
    labels: torch.Tensor
    classes: tuple[str, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    aspect: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        return f"ImageSet({len(self):,} images of {self.size} x {self.size} pixels, {len(self.classes)} classes)"

    @property
    def size(self) -> int:
        """The side of the stored images in pixels."""
        return self.images.shape[-1]

    def limit(self, n: int) -> ImageSet:
        """The first image of each class, then the second of each, ... until there are n; all of them for n = 0.

        Raises:
            InputError: n is negative.
        """
        if n < 0:
            raise InputError(f"a limit of {n} images: give 0 (all of them) or more")
        if n == 0 or n >= len(self):
            return self
        labels = self.labels.numpy()
        by_class = np.argsort(labels, kind="stable")
        starts = np.searchsorted(labels[by_class], labels[by_class])  # where each one's class begins
        rank = np.empty_like(labels)
        rank[by_class] = np.arange(len(labels)) - starts  # how many of its class come before it
        chosen = torch.from_numpy(np.lexsort((labels, rank))[:n])
        aspect = None if self.aspect is None else self.aspect[chosen]
        return replace(self, images=self.images[chosen], labels=self.labels[chosen], aspect=aspect)


def load(name: str, root: str | Path, size: int, progress: bool = True) -> tuple[ImageSet, ImageSet]:
    """A data set's training and test images.

    Args:
        name: ``digits`` (scikit-learn's, always there), ``cifar100`` and ``stanford40`` (downloaded where missing),
            or ``folder``: one's own ``root/train/CLASS/*.jpg`` and ``root/{valid,val,test}/CLASS/*.jpg``.
        root: folder that holds the data.
        size: side of the stored images in pixels: 8 for digits, 32 for cifar100, the canvas's for the others.
        progress: show a bar where a person watches and decoding takes a while.

    Raises:
        InputError: an unknown name, a size the data set does not come in, data that are missing and cannot be
            downloaded, images that cannot be decoded, a cache folder that cannot be written.
    """
    return DATASETS[choose("data set", name, DATASETS)](Path(root).expanduser(), size, progress)


def digits(root: Path, size: int, progress: bool) -> tuple[ImageSet, ImageSet]:
    """1,797 handwritten digits of 8 x 8 pixels, grey in all three channels; 1,437 to train with, 360 to test."""
    from sklearn.datasets import load_digits  # scikit-learn takes a second to import: only for those who ask
    from sklearn.model_selection import train_test_split

    _fixed_size("digits", size, 8)
    pixels, labels = load_digits(return_X_y=True)  # 0..16
    grey = torch.from_numpy(np.rint(pixels * (255 / 16)).astype(np.uint8)).reshape(-1, 1, 8, 8)
    labels = torch.from_numpy(labels).long()
    train, test = train_test_split(np.arange(len(labels)), test_size=360, stratify=labels, random_state=0)
    values = grey[train].double() / 255
    mean, std = (float(values.mean()),) * 3, (float(values.std()),) * 3
    images = grey.repeat(1, 3, 1, 1)
    classes = tuple("0123456789")
    return tuple(ImageSet(images[part], labels[part], classes, mean, std) for part in (train, test))


def cifar100(root: Path, size: int, progress: bool) -> tuple[ImageSet, ImageSet]:
    """CIFAR-100 (Krizhevsky 2009): 50,000 training and 10,000 test images of 32 x 32 pixels in 100 classes."""
    _fixed_size("cifar100", size, 32)
    # The official files are pickles. torchvision checks their MD5 sums before it unpickles them, so that nothing
    # but those very files is ever unpickled: go through it, and never open them here.
    try:
        splits = CIFAR100(root, train=True), CIFAR100(root, train=False)
    except RuntimeError:  # missing or damaged; not asked for at once because looking twice costs half a second
        with fetching("CIFAR-100", [CIFAR100.url], root / CIFAR100.base_folder):
            splits = CIFAR100(root, train=True, download=True), CIFAR100(root, train=False)
    return tuple(
        # torchvision turns the stored channels x height x width round; turning them back copies nothing
        ImageSet(
            torch.from_numpy(np.ascontiguousarray(split.data.transpose(0, 3, 1, 2))),
            torch.tensor(split.targets),
            tuple(split.classes),
            *CIFAR100_STATS,
        )
        for split in splits
    )


def stanford40(root: Path, size: int, progress: bool) -> tuple[ImageSet, ImageSet]:
    """Stanford 40 Actions on a square canvas: 4,000 training and 5,532 test images."""
    splits = [Stanford40(root, split, download=True) for split in ("train", "test")]
    names = [[f"JPEGImages/{name}" for name in split.names] for split in splits]
    labels = [split.targets for split in splits]
    return _on_canvas("stanford40", splits[0].folder, names, labels, splits[0].classes, size, progress)


def image_folder(root: Path, size: int, progress: bool) -> tuple[ImageSet, ImageSet]:
    """One's own images on a square canvas, from a folder per class; the second set is valid/, val/ or test/."""
    held_out = [root / name for name in ("valid", "val", "test") if (root / name).is_dir()]
    if not (root / "train").is_dir() or not held_out:
        raise InputError(f"{root} needs a folder train and one of valid, val and test, with a folder per class in each")
    splits = root / "train", held_out[0]
    # hidden folders are no classes: Jupyter leaves .ipynb_checkpoints behind
    train, other = (
        sorted(entry.name for entry in split.iterdir() if entry.is_dir() and entry.name[0] != ".") for split in splits
    )
    if strangers := sorted(set(other) - set(train)):
        raise InputError(f"{splits[1]} has classes that {splits[0]} lacks: {listing(strangers)}")
    names, labels = [], []
    for split, present in zip(splits, (train, other), strict=True):
        if not present:
            raise InputError(f"{split} has no class folders")
        index = {name: train.index(name) for name in present}
        found = make_dataset(split, index, is_valid_file=_is_visible_image, allow_empty=True)
        if empty := sorted(set(present) - {train[label] for _, label in found}):
            raise InputError(f"there are no images in these class folders of {split}: {listing(empty)}")
        names.append([Path(os.path.relpath(path, root)).as_posix() for path, _ in found])
        labels.append([label for _, label in found])
    return _on_canvas("folder", root, names, labels, train, size, progress)


DATASETS = {"digits": digits, "cifar100": cifar100, "stanford40": stanford40, "folder": image_folder}


def _fixed_size(name: str, size: int, only: int) -> None:
    if size != only:
        raise InputError(f"{name} comes in images of {only} x {only} pixels: size has to be {only}, not {size}")


def _is_visible_image(path: str) -> bool:
    return is_image_file(path) and not os.path.basename(path).startswith(".")  # ._x.jpg: macOS's, and no images


def _on_canvas(kind, folder, names, labels, classes, size, progress) -> tuple[ImageSet, ImageSet]:
    if size < 1:
        raise InputError(f"a canvas of {size} x {size} pixels: size has to be at least 1")
    # one canvas for both splits, so that one build finds everything that is wrong with either
    images, aspect = _canvas(kind, folder, [*names[0], *names[1]], size, progress)
    n = len(names[0])
    return tuple(
        ImageSet(torch.from_numpy(images[part]), torch.tensor(label), tuple(classes), *IMAGENET_STATS, aspect[part])
        for part, label in zip((slice(n), slice(n, None)), labels, strict=True)
    )


# The canvas cache: KIND-SIZE.npy, uint8 (n, 3, size, size), beside KIND-SIZE.json, which names what it was made of and
# is written last: without a matching one the images count for nothing.
CANVAS_VERSION = 1  # raise when the same files give other pixels


def _canvas(kind: str, folder: Path, names: list[str], size: int, progress: bool) -> tuple[np.ndarray, torch.Tensor]:
    """Images (n, 3, size, size) and aspects (n,) of the files ``folder / name``, from the cache or into it."""
    cache, stem = folder / ".kdnb", f"{kind}-{size}"
    if os.environ.get("KDNB_CACHE"):  # shared between folders: the name tells them apart
        cache = Path(os.environ["KDNB_CACHE"]).expanduser()
        stem += f"-{hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:8]}"
    made_of = [CANVAS_VERSION, size, [_stamp(folder, name) for name in names]]
    fingerprint = hashlib.sha256(json.dumps(made_of).encode()).hexdigest()
    pixels, notes = cache / f"{stem}.npy", cache / f"{stem}.json"
    shape = (len(names), 3, size, size)
    opened = _open_canvas(pixels, notes, fingerprint, shape)  # without the lock: also from a read-only folder
    if opened is None:
        try:
            cache.mkdir(parents=True, exist_ok=True)
            with FileLock(cache / f"{stem}.lock"):
                opened = _open_canvas(pixels, notes, fingerprint, shape)  # another process may just have built it
                if opened is None:
                    _build_canvas(pixels, notes, fingerprint, folder, names, size, progress)
                    opened = _open_canvas(pixels, notes, fingerprint, shape)
        except OSError as error:
            raise InputError(
                f"the decoded images cannot be kept in {cache} ({error.strerror or error}): make room there, "
                "or set KDNB_CACHE to a folder that can be written to"
            ) from error
    if opened is None:
        raise InputError(f"{pixels} was changed while it was being opened: try again")
    return opened


def _stamp(folder: Path, name: str) -> tuple[str, int, int]:
    try:
        status = os.stat(folder / name)
    except OSError:  # such as a dangling link: decoding will name it with the others
        return name, -1, 0
    return name, status.st_size, status.st_mtime_ns


def _open_canvas(pixels, notes, fingerprint, shape) -> tuple[np.ndarray, torch.Tensor] | None:
    """The canvas if it is there, whole and made of these very files; else None."""
    try:
        kept = json.loads(notes.read_text())
        if kept["fingerprint"] != fingerprint:
            return None
        images = np.lib.format.open_memmap(pixels, mode="c")  # unlike np.load it never unpickles
        aspect = torch.tensor(kept["aspect"], dtype=torch.float32)
        whole = pixels.stat().st_size == images.offset + images.nbytes
    except (OSError, ValueError, KeyError, TypeError):
        return None
    right = images.shape == shape and images.dtype == np.uint8 and images.flags.c_contiguous
    return (images, aspect) if right and whole and aspect.shape == shape[:1] else None


def _build_canvas(pixels, notes, fingerprint, folder, names, size, progress) -> None:
    # Fixed names, under the lock: what a killed process left is overwritten.
    half_pixels, half_notes = (path.with_name(f"{path.name}.part") for path in (pixels, notes))
    for stale in (notes, pixels):  # out of date, and its space may be needed
        stale.unlink(missing_ok=True)
    aspects, bad = [], []
    try:
        with open(half_pixels, "wb") as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": (len(names), 3, size, size)}
            np.lib.format.write_array_header_1_0(file, header)
            label = f"{pixels.stem} canvas in {pixels.parent}"
            with each_in_threads(lambda name: _squash(folder / name, size), names, label, progress) as squashed:
                for name, result in zip(names, squashed, strict=True):
                    if result is None:
                        bad.append(name)
                    elif not bad:
                        # written rather than mapped: on a full disk a write raises, a map kills the process (SIGBUS)
                        file.write(result[0])
                        aspects.append(result[1])
            if bad:
                raise InputError(
                    f"{len(bad):,} of {len(names):,} images in {folder} cannot be decoded (empty, truncated, not an "
                    f"image of 8 bits a channel, or of more than {Image.MAX_IMAGE_PIXELS} pixels): {listing(bad)}"
                )
            _sync(file)
        with open(half_notes, "w") as file:
            json.dump({"fingerprint": fingerprint, "aspect": aspects, "built": time.strftime("%F %T")}, file)
            _sync(file)
        os.replace(half_pixels, pixels)
        os.replace(half_notes, notes)
    finally:  # Ctrl-C too
        half_pixels.unlink(missing_ok=True)
        half_notes.unlink(missing_ok=True)


def _sync(file) -> None:
    file.flush()
    os.fsync(file.fileno())


def _squash(path: Path, size: int) -> tuple[np.ndarray, float] | None:
    """The image as uint8 (3, size, size), and its width / height; None where it cannot be decoded."""
    read = read_image(path, size)
    if read is None:
        return None
    image, aspect = read
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1)), aspect
