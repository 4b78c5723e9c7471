"""One's own photographs: `root/train/CLASS/*.jpg`, and others of the same classes in valid/, val/ or test/."""

import os
from functools import partial
from pathlib import Path

from torchvision.datasets.folder import is_image_file, make_dataset

from kdnb.data.base import Images, register
from kdnb.data.cache import Files, decode, digest, shorten_list
from kdnb.data.stanford40 import PRESET
from kdnb.errors import InputError


def files(root: Path) -> Files:
    """The images of `root/train` and of the first of `root/{valid,val,test}`. Raises InputError."""
    splits = [root / name for name in ("train", "valid", "val", "test") if (root / name).is_dir()][
        :2
    ]
    if len(splits) < 2 or splits[0].name != "train":
        raise InputError(
            f"data_root is needed: {root} is no folder with train and one of valid, val and test in it, and a folder "
            "per class in each"
        )
    classes, names, labels = [], [], []
    for split in splits:
        # what is hidden is no class and no image: Jupyter leaves .ipynb_checkpoints behind, macOS ._x.jpg
        found = sorted(
            entry.name for entry in split.iterdir() if entry.is_dir() and entry.name[0] != "."
        )
        classes = classes or found
        if strangers := [name for name in found if name not in classes]:
            raise InputError(
                f"{split} has classes that {splits[0]} lacks: {shorten_list(strangers)}"
            )
        if not found:
            raise InputError(f"{split} has no class folders")
        images = make_dataset(
            split, {name: classes.index(name) for name in found}, None, _is_visible_image, True
        )
        names.append([Path(path).relative_to(root).as_posix() for path, _ in images])
        labels.append([label for _, label in images])
        if empty := sorted(set(found) - {classes[label] for label in labels[-1]}):
            raise InputError(
                f"there are no images in these class folders of {split}: {shorten_list(empty)}"
            )
    return Files(root, classes, names, labels)


def _is_visible_image(path: str) -> bool:
    return is_image_file(path) and os.path.basename(path)[0] != "."


@register("folder", PRESET, digest=partial(digest, files))
def load(root: Path, size: int, *, skip_damaged: bool) -> tuple[Images, Images]:
    """One's own images, squashed to a square."""
    return decode("folder", files(root), size, skip_damaged)
