"""What each data set is trained with. One dataclass, one instance per data set; `recipe(name, epochs=5)` varies one."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from kdnb.errors import InputError, choose

__all__ = ["RECIPES", "Recipe", "recipe"]


@dataclass(frozen=True)
class Recipe:
    """SGD with momentum; the learning rate is multiplied by `gamma` after each of the `milestones`."""

    dataset: str
    teacher: str
    student: str
    pretrained: bool  # the teacher comes with ImageNet weights, and is not trained here
    image_size: int  # side of the square that the networks see, in pixels
    canvas_size: int  # side of the square that images are stored at, in pixels
    padding: int  # random crops from an image with so many black pixels around; 0: random-resized crops or none
    flip: bool  # mirror every second training image
    epochs: int
    batch_size: int
    lr: float
    milestones: tuple[float, ...]  # as fractions of `epochs`, so that a shortened run keeps its shape
    gamma: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4

    def lr_at(self, epoch: int) -> float:
        """The learning rate of an epoch, counted from 0: `lr` times `gamma` per milestone passed."""
        passed = sum(epoch >= int(m * self.epochs) for m in self.milestones)
        return self.lr * self.gamma**passed


_STANFORD40 = Recipe(
    dataset="stanford40",
    teacher="resnet34",
    student="resnet18",
    pretrained=True,
    image_size=224,
    canvas_size=256,
    padding=0,
    flip=True,
    epochs=160,
    batch_size=100,
    lr=0.05,
    milestones=(0.5, 0.75),
)

RECIPES = {
    # Small enough to finish while one reads the notebook: 1,797 images of 8x8 pixels. No flips, digits have a side.
    "digits": Recipe(
        dataset="digits",
        teacher="wrn_40_2",
        student="wrn_16_2",
        pretrained=False,
        image_size=8,
        canvas_size=8,
        padding=1,
        flip=False,
        epochs=20,
        batch_size=64,
        lr=0.01,  # on maps of so few pixels the AFD loss is many times larger than at 32x32, and 0.05 is too much
        milestones=(0.6, 0.85),
    ),
    # The official recipe: 240 epochs, x 0.1 after epochs 150, 180 and 210.
    "cifar100": Recipe(
        dataset="cifar100",
        teacher="wrn_40_2",
        student="wrn_16_2",
        pretrained=False,
        image_size=32,
        canvas_size=32,
        padding=4,
        flip=True,
        epochs=240,
        batch_size=64,
        lr=0.05,
        milestones=(150 / 240, 180 / 240, 210 / 240),
    ),
    "stanford40": _STANFORD40,
    "folder": replace(_STANFORD40, dataset="folder"),
}


def recipe(dataset: str, **changes) -> Recipe:
    """The recipe of a data set, with `changes`; None, 0 and "" among them mean: as it is. Raises InputError."""
    found = RECIPES[choose("dataset", dataset, RECIPES)]
    known = {f.name for f in fields(Recipe)}
    for name in changes:
        choose("recipe entry", name, known)
    changes = {name: value for name, value in changes.items() if value}
    if "image_size" in changes and changes["image_size"] != found.image_size:
        if found.padding:
            raise InputError(f"image_size {changes['image_size']}: {dataset} has images of {found.image_size} pixels")
        changes.setdefault("canvas_size", round(changes["image_size"] * found.canvas_size / found.image_size))
    return replace(found, **changes)
