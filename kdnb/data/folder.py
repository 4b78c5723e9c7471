"""The user's own photographs: `root/train/CLASS/*.jpg`, and valid/, val/ or test/ next to it."""

import os
from functools import partial
from pathlib import Path

from torchvision.datasets.folder import is_image_file, make_dataset

from kdnb.data.base import Images, register
from kdnb.data.download import shorten_list
from kdnb.data.photographs import Files, decode, digest
from kdnb.data.stanford40 import PRESET
from kdnb.errors import InputError


def files(root: Path) -> Files:
    """Lists the images of `root/train` and of the first of `root/valid`, `root/val`, `root/test`.

    Raises InputError if folders or images are missing, or if the classes of the splits differ.
    """
    folders = [root / name for name in ("train", "valid", "val", "test")]
    splits = [folder for folder in folders if folder.is_dir()][:2]
    if len(splits) < 2 or splits[0].name != "train":
        raise InputError(
            f"data_root {str(root)!r} has to contain the folder train and one of valid, val and "
            "test, with a folder per class in each"
        )
    classes = class_folders(splits[0])
    names, labels = [], []
    for split in splits:
        split_classes = class_folders(split)
        if unknown := [name for name in split_classes if name not in classes]:
            raise InputError(f"{split} has classes that {splits[0]} lacks: {shorten_list(unknown)}")
        if not split_classes:
            raise InputError(f"{split} has no class folders")
        class_to_idx = {name: classes.index(name) for name in split_classes}
        images = make_dataset(split, class_to_idx, None, is_visible_image, True)
        names.append([Path(path).relative_to(root).as_posix() for path, _ in images])
        labels.append([label for _, label in images])
        if empty := sorted(set(split_classes) - {classes[label] for label in labels[-1]}):
            raise InputError(
                f"there are no images in these class folders of {split}: {shorten_list(empty)}"
            )
    return Files(root, classes, names, labels)


def class_folders(split: Path) -> list[str]:
    """Returns the names of the visible folders; hidden ones are Jupyter's .ipynb_checkpoints."""
    return sorted(
        entry.name for entry in split.iterdir() if entry.is_dir() and entry.name[0] != "."
    )


def is_visible_image(path: str) -> bool:
    """Returns whether a file is an image by its suffix, and none of macOS's hidden ._x.jpg."""
    return is_image_file(path) and os.path.basename(path)[0] != "."


@register("folder", PRESET, digest=partial(digest, files))
def load(root: Path, size: int, *, skip_damaged: bool) -> tuple[Images, Images]:
    """Returns the images of both splits."""
    return decode("folder", files(root), size, skip_damaged)
