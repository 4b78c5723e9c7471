"""Stanford 40 Actions (Yao et al., ICCV 2011): a torchvision data set with download."""

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

from kdnb.data.base import Preset, register
from kdnb.data.download import downloading, shorten_list
from kdnb.data.images import Images
from kdnb.data.photographs import Files, decode, digest
from kdnb.errors import InputError, choose
from kdnb.paths import expand_home

NETWORKS = {"student": "resnet18", "teacher": "resnet34", "teacher_weights": "imagenet"}
SCHEDULE = {"epochs": 160, "batch_size": 100, "lr": 0.05, "milestones": (0.5, 0.75)}
PRESET = Preset(**NETWORKS, image_size=224, stored_size=256, flip=True, **SCHEDULE)


class Stanford40(VisionDataset):
    """Stanford 40 Actions: photographs of people, 40 actions, 4,000 training and 5,532 test images.

    `dataset[i]` is `(image, label)`: an RGB PIL image as stored on disk (of any size, its EXIF
    orientation not applied, as in torchvision's data sets) and an int. With `boxes=True` it is
    `(image, (label, box))`, with the box around the person in pixels: xmin, ymin, xmax, ymax, a
    float32 tensor (4,).

    Args:
        root: the folder with `JPEGImages`, `ImageSplits` and `XMLAnnotations`, or its parent if it
            is named `stanford40` or `Stanford40`. Other images in the same layout work, too: a
            class is a pair of files `ImageSplits/CLASS_train.txt` and `CLASS_test.txt`.
        split: `train` or `test`.
        transform: function of the image.
        target_transform: function of the target: the label, or (label, box).
        transforms: function of image and target, in place of the other two. Crops and flips that
            move the box belong here, with the box as a `torchvision.tv_tensors.BoundingBoxes`.
        download: whether the official archives are downloaded if the folder is missing.
        boxes: whether targets contain the boxes. `XMLAnnotations` is needed only then.

    Attributes:
        classes: the class names, sorted.
        class_to_idx: {class name: label}.
        targets: the labels.
        names: the file names in `folder / "JPEGImages"`.
        folder: the folder with the three others.

    Raises InputError if there is no such folder and it cannot be downloaded, if a class has only
    one of the two files, and if an image or annotation is listed but missing.
    """

    url = "http://vision.stanford.edu/Datasets/"
    # The folders; their archives are Stanford40_PART.zip.
    parts = ("JPEGImages", "ImageSplits", "XMLAnnotations")
    official = (4000, 5532)  # images of the training and the test split

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
        super().__init__(expand_home(root), transforms, transform, target_transform)
        self.split = choose("split", split, ("train", "test"))
        self.boxes = boxes
        self._target = self.root
        if self.root.name.lower() != "stanford40":
            self._target = self.root / "stanford40"
        self._urls = [f"{self.url}Stanford40_{part}.zip" for part in self.parts]
        if download and not self._find():
            self._download()
        self.folder = self._find()
        if self.folder is None:
            raise InputError(
                f"no Stanford40 in {self.root}: unpack {shorten_list(self._urls)} into "
                f"{self._target}, or pass download=True"
            )
        self.classes = self._classes("train")
        unpaired = set(self.classes) ^ set(self._classes("test"))
        if unpaired or not self.classes:
            raise InputError(
                f"{self.folder / 'ImageSplits'} needs CLASS_train.txt and CLASS_test.txt for every "
                f"class; one of the two is missing for {shorten_list(sorted(unpaired)) or 'all'}"
            )
        self.class_to_idx = {name: label for label, name in enumerate(self.classes)}
        self.names, self.targets = [], []
        for class_name, label in self.class_to_idx.items():
            path = self.folder / "ImageSplits" / f"{class_name}_{split}.txt"
            # The official lists have had CRLF line ends and blank last lines.
            lines = path.read_text("utf-8-sig", errors="replace").splitlines()
            file_names = [line.strip() for line in lines if line.strip()]
            self.names += file_names
            self.targets += [label] * len(file_names)
        self._require("JPEGImages", self.names)
        if boxes:
            self._require("XMLAnnotations", [f"{Path(name).stem}.xml" for name in self.names])

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple:
        image = pil_loader(self.folder / "JPEGImages" / self.names[index])
        label = self.targets[index]
        target = (label, self._box(index)) if self.boxes else label
        if self.transforms:
            return self.transforms(image, target)
        return image, target

    def extra_repr(self) -> str:
        return f"Split: {self.split}"

    def _box(self, index: int) -> torch.Tensor:
        """Reads the box of an image. Raises InputError if its annotation has none."""
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
        """Returns the sorted names of the classes that have a list of a split."""
        # "*_" leaves out train.txt and test.txt, "[!.]" the hidden files that macOS adds.
        return sorted(
            path.name.rsplit("_", 1)[0]
            for path in (self.folder / "ImageSplits").glob(f"[!.]*_{split}.txt")
        )

    def _require(self, part: str, names: list[str]) -> None:
        """Raises InputError if files are missing in one of the folders."""
        folder = self.folder / part
        # Compared with a listing of the folder, so that a name such as ../x is missing, too.
        existing = set(os.listdir(folder)) if folder.is_dir() else set()
        if missing := [name for name in names if name not in existing]:
            raise InputError(
                f"{folder} lacks {len(missing):,} of the {len(names):,} listed files: "
                f"{shorten_list(missing)}"
            )

    def _find(self) -> Path | None:
        """Returns the folder with the images and splits; None if there is none."""
        for folder in (self.root, self.root / "stanford40", self.root / "Stanford40"):
            if all((folder / part).is_dir() for part in ("JPEGImages", "ImageSplits")):
                return folder
        return None

    def _download(self) -> None:
        """Downloads the archives; the target folder appears when it is complete and checked."""
        target = self._target
        with downloading("Stanford40", self._urls, target):
            if self._find():  # another process downloaded it while this one waited for the lock
                return
            if target.is_dir() and any(target.iterdir()):
                raise FileExistsError("there are other files: move them away to download again")
            # In the same folder as the target, so that the final rename is atomic.
            temporary = target.parent / ".stanford40.part"
            shutil.rmtree(temporary, ignore_errors=True)  # left by a killed process
            unpacked = temporary / "unpacked"
            complete = temporary / "complete"
            try:
                for url in self._urls:
                    # No checksums are published. zipfile keeps members named ../ or / inside.
                    download_and_extract_archive(url, temporary, unpacked, remove_finished=True)
                complete.mkdir()
                for part in self.parts:  # and not __MACOSX, which archives made on a Mac contain
                    (unpacked / part).rename(complete / part)
                self._check_counts(complete)
                if target.is_dir():
                    target.rmdir()  # it is empty; Windows cannot rename over a folder
                complete.rename(target)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)

    def _check_counts(self, folder: Path) -> None:
        """Raises InputError if a folder does not have the official number of images."""
        splits = [type(self)(folder, split, boxes=True) for split in ("train", "test")]
        counts = tuple(map(len, splits))
        if counts != self.official:
            raise InputError(f"it has {counts} training and test images, not {self.official}")


def files(root: Path, download: bool = False) -> Files:
    """Lists the photographs of both splits. Raises InputError as Stanford40 does."""
    splits = [Stanford40(root, split, download=download) for split in ("train", "test")]
    names = [[f"JPEGImages/{name}" for name in split.names] for split in splits]
    return Files(splits[0].folder, splits[0].classes, names, [split.targets for split in splits])


@register(
    "stanford40",
    PRESET,
    digest=partial(digest, files),
    test_images=Stanford40.official[1],
    class_count=40,
)
def load(root: Path, size: int, *, skip_damaged: bool) -> tuple[Images, Images]:
    """Returns 4,000 training and 5,532 test images.

    They are downloaded into `root` if they are missing there.
    """
    return decode("stanford40", files(root, download=True), size, skip_damaged)
