"""CIFAR-100 (Krizhevsky, 2009), trained as in the AFD paper and the work compared with it."""

from pathlib import Path

import torch
from torchvision.datasets import CIFAR100

from kdnb.data.base import Preset, register
from kdnb.data.digests import no_digest
from kdnb.data.download import downloading
from kdnb.data.images import Images
from kdnb.errors import InputError

# The official recipe: the learning rate is multiplied by 0.1 after epochs 150, 180 and 210.
SCHEDULE = {
    "epochs": 240,
    "batch_size": 64,
    "lr": 0.05,
    "milestones": (150 / 240, 180 / 240, 210 / 240),
}
# CRD's code trains these with a lower learning rate.
LRS = dict.fromkeys(("cifar_mobilenetv2", "cifar_shufflenetv1", "cifar_shufflenetv2"), 0.01)
IMAGES = {"image_size": 32, "fixed_size": True, "padding": 4, "flip": True}
PRESET = Preset(student="wrn_16_2", teacher="wrn_40_2", lrs=LRS, **IMAGES, **SCHEDULE)
STATS = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)  # mean and std


def unpacked_in(root: Path) -> type[CIFAR100]:
    """Returns torchvision's class for where the files are: in ROOT/cifar-100-python, or in ROOT.

    Who unpacks the archive into the folder of its name has them one level below.
    """
    own = CIFAR100.base_folder
    for folder in (own, ".", f"{own}/{own}"):
        if (root / folder / "train").is_file():
            return type("CIFAR100", (CIFAR100,), {"base_folder": folder})
    return CIFAR100


@register("cifar100", PRESET, digest=no_digest, test_images=10_000, class_count=100)
def load(root: Path, size: int, **_) -> tuple[Images, Images]:
    """Returns 50,000 training and 10,000 test images of 32 x 32 pixels in 100 classes.

    They are downloaded into `root` if they are missing there.
    """
    # The official files are pickles. torchvision checks their MD5 sums before it unpickles them, so
    # no other file is ever unpickled. Do not open them here.
    dataset = unpacked_in(root)
    folder = root / dataset.base_folder
    try:
        splits = dataset(root, train=True), dataset(root, train=False)
    except RuntimeError as error:  # missing or damaged
        if (folder / "train").is_file() and (folder / "test").is_file() and "etadata" in str(error):
            raise InputError(
                f"CIFAR-100 is not complete in {folder}: its file meta is missing or damaged; "
                f"unpack {CIFAR100.url} into {root} again"
            ) from error
        # Not `download=True` at once, which checks all files again and takes half a second.
        with downloading("CIFAR-100", [CIFAR100.url], folder, unpack_into=root):
            splits = CIFAR100(root, train=True, download=True), CIFAR100(root, train=False)
    classes = tuple(splits[0].classes)
    train, test = (
        Images(
            torch.from_numpy(split.data).permute(0, 3, 1, 2).contiguous(),
            torch.tensor(split.targets),
            classes,
            *STATS,
        )
        for split in splits
    )
    return train, test
