"""Tiny ImageNet (Stanford CS231n, 2015): 200 classes of ImageNet at 64 x 64 pixels."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from torchvision.datasets.utils import download_and_extract_archive

from kdnb.data.base import Preset, register
from kdnb.data.convert import from_arrays
from kdnb.data.digests import once
from kdnb.data.download import downloading
from kdnb.data.images import Images
from kdnb.data.photographs import Files, digest
from kdnb.errors import InputError
from kdnb.image_files import open_image

URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
MD5 = "90528d7ca1a48142e341f4ef8d21d0de"
FOLDER = "tiny-imagenet-200"

# The schedule of mdistiller (configs/tiny_imagenet). It rotates images by up to 20 degrees; here
# they are cropped at random, as CIFAR's are.
SCHEDULE = {
    "epochs": 200,
    "batch_size": 256,
    "lr": 0.2,
    "milestones": (60 / 200, 120 / 200, 160 / 200),
}
IMAGES = {"image_size": 64, "fixed_size": True, "padding": 8, "flip": True}
PRESET = Preset(student="wrn_16_2", teacher="wrn_40_2", **IMAGES, **SCHEDULE)
STATS = (0.4802, 0.4481, 0.3975), (0.2302, 0.2265, 0.2262)  # mean and std, mdistiller's


def files(root: Path) -> Files:
    """Lists the training and the validation images; the labels of the test images are not public.

    Raises InputError if they are missing.
    """
    folder = root / FOLDER
    try:
        wnids = sorted((folder / "wnids.txt").read_text().split())
        lines = (folder / "val/val_annotations.txt").read_text().splitlines()
        words = dict(line.split("\t", 1) for line in (folder / "words.txt").open())
        label = {wnid: i for i, wnid in enumerate(wnids)}
        train = [
            (f"train/{wnid}/images/{path.name}", label[wnid])
            for wnid in wnids
            for path in sorted((folder / "train" / wnid / "images").iterdir())
        ]
        rows = [line.split("\t")[:2] for line in lines]
        val = [(f"val/images/{name}", label[wnid]) for name, wnid in rows]
        classes = [words[wnid].split(",")[0].strip() for wnid in wnids]
    except (OSError, KeyError, ValueError) as error:
        raise InputError(
            f"no Tiny ImageNet in {folder} ({error}): unpack {URL} into {root}"
        ) from error
    names, labels = zip(*(zip(*part, strict=True) for part in (train, val)), strict=True)
    return Files(folder, classes, names, labels)


def download(root: Path) -> None:
    """Downloads and unpacks the archive; the folder appears when it is complete."""
    folder, part = root / FOLDER, root / f".{FOLDER}.part"
    with downloading("Tiny ImageNet", [URL], folder, unpack_into=root):
        if folder.is_dir():  # another process downloaded it while this one waited for the lock
            return
        try:
            download_and_extract_archive(URL, part, md5=MD5, remove_finished=True)
            (part / FOLDER).rename(folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)


def read(path: Path) -> np.ndarray:
    """Returns the pixels of an image, uint8 (64, 64, 3). Raises InputError if it is damaged."""
    try:
        with open_image(path) as image:
            return np.asarray(image.convert("RGB"))  # a few are grey
    except OSError as error:
        raise InputError(
            f"{path} cannot be decoded: delete the folder {FOLDER} and unpack {URL} again"
        ) from error


@register(
    "tiny_imagenet",
    PRESET,
    digest=once(partial(digest, files)),
    test_images=10_000,
    class_count=200,
)
def load(root: Path, size: int, **_) -> tuple[Images, Images]:
    """Returns 100,000 training and 10,000 validation images of 64 x 64 pixels in 200 classes.

    They are downloaded into `root` if they are missing there.
    """
    if not (root / FOLDER).is_dir():
        download(root)
    found = files(root)
    with ThreadPoolExecutor() as pool:  # threads, because PIL releases the GIL
        train, test = (
            (np.stack([*pool.map(read, [found.folder / name for name in names])]), labels)
            for names, labels in zip(found.names, found.labels, strict=True)
        )
    return from_arrays(train, test, found.classes, *STATS)
