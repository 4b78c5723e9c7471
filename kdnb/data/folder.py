"""The user's own photographs: `root/train/CLASS/*.jpg`, and valid/, val/ or test/ next to it.

Photographs without a label may lie in `root/unlabelled`.
"""

import unicodedata
from functools import partial
from pathlib import Path

from kdnb.data.base import Preset, register
from kdnb.data.download import shorten_list
from kdnb.data.images import Images
from kdnb.data.photographs import Files, decode, digest
from kdnb.data.stanford40 import NETWORKS
from kdnb.errors import InputError
from kdnb.image_files import Tree

# For few photographs: networks that know ImageNet, and a short training.
SCHEDULE = {"epochs": 20, "batch_size": 32, "lr": 0.01, "schedule": "cosine"}
IMAGES = {"image_size": 112, "stored_size": 128, "flip": True}
PRESET = Preset(**NETWORKS, student_weights="imagenet", **IMAGES, **SCHEDULE)


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
    unlabelled = root / "unlabelled"
    tree = Tree([*splits, unlabelled])
    folders_of = {split: class_folders(tree, split) for split in splits}
    classes = folders_of[splits[0]]
    names, labels = [], []
    for split, split_classes in folders_of.items():
        if unknown := [name for name in split_classes if name not in classes]:
            raise InputError(f"{split} has classes that {splits[0]} lacks: {shorten_list(unknown)}")
        if not split_classes:
            raise InputError(f"{split} has no class folders")
        images = {name: tree.images(split / name) for name in split_classes}
        names.append([relative(path, root) for paths in images.values() for path in paths])
        labels.append([classes.index(name) for name, paths in images.items() for _ in paths])
        if empty := [name for name, paths in images.items() if not paths]:
            raise InputError(
                f"there are no images in these class folders of {split}: {shorten_list(empty)}"
                + left_out_line(tree, root)
            )
    found = tree.images(unlabelled) if unlabelled.is_dir() else []
    names[0] += sorted(relative(path, root) for path in found)
    labels[0] += [-1] * len(found)
    left_out = [relative(path, root) for path in tree.left_out]
    return Files(root, classes, names, labels, left_out=left_out)


def relative(path: str, root: Path) -> str:
    """A path relative to the root folder, with slashes."""
    return Path(path).relative_to(root).as_posix()


def left_out_line(tree: Tree, root: Path) -> str:
    """What is added to an error if files were left out; "" if none was."""
    names = [relative(path, root) for path in tree.left_out]
    return f" (left out: {shorten_list(names)})" if names else ""


def class_folders(tree: Tree, split: Path) -> list[str]:
    """Returns the names of the visible folders; a hidden one is Jupyter's .ipynb_checkpoints.

    Raises InputError for a name that cannot stand in a line of a table.
    """
    names = tree.folders(split)
    for name in names:
        # Control characters, bytes that are no UTF-8, and line and paragraph separators.
        if {unicodedata.category(character) for character in name} & {"Cc", "Cs", "Zl", "Zp"}:
            raise InputError(
                f"{split} has a class folder named {name!r}: rename it, without line breaks, "
                "control characters and bytes that are no UTF-8"
            )
    return names


@register("folder", PRESET, digest=partial(digest, files))
def load(root: Path, size: int, *, skip_damaged: bool) -> tuple[Images, Images]:
    """Returns the images of both splits; prints which files are left out."""
    return decode("folder", files(root), size, skip_damaged)
