"""The user's own photographs: `root/train/CLASS/*.jpg`, and valid/, val/ or test/ next to it.

Photographs without a label may lie in `root/unlabelled`.
"""

import os
import unicodedata
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

    Those of `root/unlabelled`, in folders of any depth, follow the training images, with label -1.

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
    unlabelled = sorted(
        path.relative_to(root).as_posix()
        for path in (root / "unlabelled").rglob("*")
        if is_visible_image(str(path))
    )
    names[0] += unlabelled
    labels[0] += [-1] * len(unlabelled)
    return Files(root, classes, names, labels)


def class_folders(split: Path) -> list[str]:
    """Returns the names of the visible folders; hidden ones are Jupyter's .ipynb_checkpoints.

    Raises InputError for a name that cannot stand in a line of a table.
    """
    names = sorted(
        entry.name for entry in split.iterdir() if entry.is_dir() and entry.name[0] != "."
    )
    for name in names:
        # Control characters, bytes that are no UTF-8, and line and paragraph separators.
        if {unicodedata.category(character) for character in name} & {"Cc", "Cs", "Zl", "Zp"}:
            raise InputError(
                f"{split} has a class folder named {name!r}: rename it, without line breaks, "
                "control characters and bytes that are no UTF-8"
            )
    return names


def is_visible_image(path: str) -> bool:
    """Returns whether a file is an image by its suffix, and none of macOS's hidden ._x.jpg."""
    return is_image_file(path) and os.path.basename(path)[0] != "."


@register("folder", PRESET, digest=partial(digest, files))
def load(root: Path, size: int, *, skip_damaged: bool) -> tuple[Images, Images]:
    """Returns the images of both splits, squashed to squares."""
    return decode("folder", files(root), size, skip_damaged)
