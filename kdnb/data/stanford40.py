"""Stanford 40 Actions (Yao et al., ICCV 2011): a torchvision data set, its download, and its Preset."""

import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

import torch
from torchvision.datasets import VisionDataset
from torchvision.datasets.folder import pil_loader
from torchvision.datasets.utils import download_and_extract_archive

from kdnb.data.base import Images, Preset, register
from kdnb.data.cache import Files, decode, digest, downloading, shorten_list
from kdnb.errors import InputError, choose

NETWORKS = {"student": "resnet18", "teacher": "resnet34", "teacher_weights": "imagenet"}
SCHEDULE = {"epochs": 160, "batch_size": 100, "lr": 0.05, "milestones": (0.5, 0.75)}
PRESET = Preset(**NETWORKS, image_size=224, stored_size=256, flip=True, **SCHEDULE)


class Stanford40(VisionDataset):
    """Stanford 40 Actions: photographs of people, 40 actions, 4,000 training and 5,532 test images.

    `dataset[i]` is `(image, label)`: a PIL image in RGB as it lies on disk (any size, EXIF orientation left alone, as
    torchvision's data sets do) and an int. With `boxes=True` it is `(image, (label, box))`, box a float32 tensor (4,)
    of xmin, ymin, xmax, ymax around the person, in pixels of the image on disk.

    Args:
        root: the folder with `JPEGImages`, `ImageSplits` and `XMLAnnotations` (the last is read for boxes only), or its
            parent, where it is named `stanford40` or `Stanford40`. Smaller trees of one's own in the same layout will
            do: a class is any `ImageSplits/CLASS_train.txt` with a `CLASS_test.txt`.
        split: `train` or `test`.
        transform, target_transform, transforms: called with the image; with what comes beside it; or, instead of these
            two, with both. Crops and flips that should move the box too belong in `transforms`, with the box wrapped as
            a `torchvision.tv_tensors.BoundingBoxes`.
        download: fetch the official archives where nothing is there yet.

    Attributes: `classes` (sorted names), `class_to_idx`, `targets` (labels), `names` (file names in
    `folder / "JPEGImages"`), `folder` (the folder that was found).

    Raises InputError: nothing there (and no download asked for or possible), a split without its partner, an image or
    annotation that is listed but missing.
    """

    url = "http://vision.stanford.edu/Datasets/"
    parts = (
        "JPEGImages",
        "ImageSplits",
        "XMLAnnotations",
    )  # folders; their archives are Stanford40_PART.zip
    official = (4000, 5532)  # images of the two splits that a download has to hold

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
        self._target = (
            self.root if self.root.name.lower() == "stanford40" else self.root / "stanford40"
        )
        self._urls = [f"{self.url}Stanford40_{part}.zip" for part in self.parts]
        if download and not self._find():
            self._download()
        self.folder = self._find()
        if self.folder is None:
            by_hand = f"unpack {shorten_list(self._urls)} into {self._target}"
            raise InputError(f"no Stanford40 in {self.root}: {by_hand}, or ask for download=True")
        self.classes = self._classes("train")
        unpaired = set(self.classes) ^ set(self._classes("test"))
        if unpaired or not self.classes:
            raise InputError(
                f"{self.folder / 'ImageSplits'} needs CLASS_train.txt and CLASS_test.txt for every class; "
                f"one of the two is missing for {shorten_list(sorted(unpaired)) or 'all'}"
            )
        self.class_to_idx = {name: label for label, name in enumerate(self.classes)}
        listed = []
        for name, label in self.class_to_idx.items():
            # the official lists have had CRLF ends and blank last lines; strip() takes both
            text = (self.folder / "ImageSplits" / f"{name}_{split}.txt").read_text(
                "utf-8-sig", errors="replace"
            )
            listed += [(line.strip(), label) for line in text.splitlines() if line.strip()]
        self.names, self.targets = [name for name, _ in listed], [label for _, label in listed]
        self._require("JPEGImages", self.names)
        if boxes:
            self._require("XMLAnnotations", [f"{Path(name).stem}.xml" for name in self.names])

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple:
        image = pil_loader(self.folder / "JPEGImages" / self.names[index])
        label = self.targets[index]
        target = (label, self._box(index)) if self.boxes else label
        return self.transforms(image, target) if self.transforms else (image, target)

    def extra_repr(self) -> str:
        return f"Split: {self.split}"

    def _box(self, index: int) -> torch.Tensor:
        path = self.folder / "XMLAnnotations" / f"{Path(self.names[index]).stem}.xml"
        try:
            box = ElementTree.parse(path).find("object/bndbox")
            edges = [float(box.findtext(edge)) for edge in ("xmin", "ymin", "xmax", "ymax")]
        except (ElementTree.ParseError, AttributeError, TypeError, ValueError) as error:
            raise InputError(
                f"{path} holds no object/bndbox with xmin, ymin, xmax and ymax"
            ) from error
        return torch.tensor(edges, dtype=torch.float32)

    def _classes(self, split: str) -> list[str]:
        # "*_" leaves out the overall train.txt and test.txt; dot files are what macOS adds to archives
        return sorted(
            path.name.rsplit("_", 1)[0]
            for path in (self.folder / "ImageSplits").glob(f"[!.]*_{split}.txt")
        )

    def _require(self, part: str, names: list[str]) -> None:
        # by listing, not by path, so that a name with ../ in it is missing too
        there = set(os.listdir(self.folder / part)) if (self.folder / part).is_dir() else set()
        if missing := [name for name in names if name not in there]:
            lacks = f"{len(missing):,} of the {len(names):,} listed files: {shorten_list(missing)}"
            raise InputError(f"{self.folder / part} lacks {lacks}")

    def _find(self) -> Path | None:
        folders = self.root, self.root / "stanford40", self.root / "Stanford40"
        return next(
            (f for f in folders if all((f / part).is_dir() for part in self.parts[:2])), None
        )

    def _download(self) -> None:
        target = self._target
        with downloading("Stanford40", self._urls, target):
            if self._find():  # another process fetched it while this one waited
                return
            if target.is_dir() and any(target.iterdir()):
                raise FileExistsError("there are other files: move them away to download anew")
            part = target.parent / ".stanford40.part"  # beside the target: a rename there is atomic
            shutil.rmtree(part, ignore_errors=True)  # of a process that was killed
            try:
                for url in self._urls:
                    # no checksums were published; zipfile itself keeps members with ../ or / inside the folder
                    download_and_extract_archive(url, part, part / "unpacked", remove_finished=True)
                (part / "whole").mkdir()
                for name in self.parts:  # these alone: archives made on a Mac also hold __MACOSX
                    (part / "unpacked" / name).rename(part / "whole" / name)
                found = tuple(
                    len(type(self)(part / "whole", split, boxes=True))
                    for split in ("train", "test")
                )
                if found != self.official:
                    raise InputError(
                        f"it holds {found} images to train and to test, not {self.official}"
                    )
                if target.is_dir():
                    target.rmdir()  # empty; Windows would not rename over it
                (part / "whole").rename(target)
            finally:
                shutil.rmtree(part, ignore_errors=True)


def files(root: Path, download: bool = False) -> Files:
    """The photographs of both splits, downloaded where they are missing if that is asked for. Raises InputError."""
    splits = [Stanford40(root, split, download=download) for split in ("train", "test")]
    names = [[f"JPEGImages/{name}" for name in split.names] for split in splits]
    return Files(splits[0].folder, splits[0].classes, names, [split.targets for split in splits])


@register("stanford40", PRESET, digest=partial(digest, files), test_images=Stanford40.official[1])
def load(root: Path, size: int, *, skip_damaged: bool) -> tuple[Images, Images]:
    """Stanford 40 Actions, squashed to a square: 4,000 training and 5,532 test images."""
    return decode("stanford40", files(root, download=True), size, skip_damaged)
