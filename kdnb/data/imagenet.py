"""ImageNet (ILSVRC 2012, Russakovsky et al., 2015): `train/CLASS/*.JPEG` and `val/CLASS/*.JPEG`."""

from functools import partial
from pathlib import Path

from torchvision.models import ResNet18_Weights

from kdnb.data import folder
from kdnb.data.base import Images, Preset, register
from kdnb.data.digests import once
from kdnb.data.photographs import Files, decode, digest
from kdnb.errors import InputError

NETWORKS = {"student": "resnet18", "teacher": "resnet34", "teacher_weights": "imagenet"}
IMAGES = {"image_size": 224, "stored_size": 256, "flip": True}
SCHEDULE = {
    "epochs": 100,
    "batch_size": 256,
    "lr": 0.1,
    "milestones": (30 / 100, 60 / 100, 90 / 100),
    "weight_decay": 1e-4,
}
METHODS = {  # ResNet-34 -> ResNet-18, as published
    "afd": "ce + kd:0.9 + afd:50",
    "dkd": "ce + dkd(T=1, beta=0.5)",
    "nkd": "ce + nkd(T=1, gamma=1.5)",
}
PRESET = Preset(**NETWORKS, **IMAGES, **SCHEDULE, methods=METHODS)
CATEGORIES = ResNet18_Weights.IMAGENET1K_V1.meta["categories"]


def files(root: Path) -> Files:
    """Lists the images in `root`, or else in `root/imagenet`.

    Classes are folders, named by their WordNet IDs. If all 1,000 are there, they get the names that
    torchvision's weights have for them: these are in the order of the sorted IDs. So a teacher with
    these weights knows the same classes.

    Raises InputError if folders or images are missing.
    """
    inner = root / "imagenet"
    try:
        found = folder.files(inner if inner.is_dir() else root)
    except InputError as error:
        raise InputError(
            f"no ImageNet in {root} nor in {inner} ({error}): it needs train/CLASS/*.JPEG and "
            "val/CLASS/*.JPEG, to be downloaded from https://image-net.org by hand"
        ) from error
    is_whole = len(found.classes) == len(CATEGORIES)
    return found._replace(classes=CATEGORIES if is_whole else found.classes)


@register("imagenet", PRESET, digest=once(partial(digest, files)), test_images=50_000)
def load(root: Path, size: int, *, skip_damaged: bool) -> tuple[Images, Images]:
    """Returns 1,281,167 training and 50,000 validation images in 1,000 classes."""
    return decode("imagenet", files(root), size, skip_damaged)
