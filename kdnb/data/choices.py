"""The random choices of an epoch: its order, and how each image is cropped, augmented and mixed."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kdnb.data.augment import POLICIES, Policy
from kdnb.data.crops import centre_boxes, random_boxes
from kdnb.data.images import Images
from kdnb.data.mixing import MIXES
from kdnb.data.ragged import Ragged

STRONG = "strong_"  # begins the names of the second view's choices


@dataclass(frozen=True, eq=False, repr=False)
class Choices:
    """Draws the choices of an epoch from (seed, epoch) alone; the fields are those of a Loader."""

    images: Images
    size: int
    train: bool
    seed: int
    padding: int
    flip: bool
    augment: str
    mix: str
    views: int
    test_crop: float

    @property
    def has_photographs(self) -> bool:
        return isinstance(self.images.images, Ragged)

    @property
    def crops_at_random(self) -> bool:
        return self.train and self.augment != "none"

    @property
    def policy(self) -> Policy | None:
        """How images, or those of the second view, are strongly augmented; None: they are not."""
        if not self.train:
            return None
        return POLICIES.get(self.augment, POLICIES["randaugment"] if self.views == 2 else None)

    def draw(self, epoch: int) -> dict[str, Tensor]:
        """Draws all choices of an epoch: tensors on the CPU with a row per image, in order.

        Returns a dictionary with
            "index": int64 (n,), the index of the image;
            "box": int64 (n, 4), for photographs: left, top, width and height of the crop in pixels
                of the stored image;
            "corner": int64 (n, 2), with `padding`: row and column of the crop's first pixel;
            "flip": bool (n,), with `flip` in training: whether it is flipped;
            "operation", "magnitude": of strong augmentation, see `augment.Policy.draw`;
            "share" or "patch": of mixed images, see `mixing`.
        With two views, the second one's box, corner and flip have names that begin with STRONG, and
        it alone is strongly augmented.
        """
        n = len(self.images)
        rng = np.random.default_rng([self.seed, epoch])
        order = rng.permutation(n) if self.train else np.arange(n)
        choices = {"index": order} | self.draw_view(order, rng)
        if self.train and self.views == 2:
            second = self.draw_view(order, rng)
            choices |= {STRONG + name: rows for name, rows in second.items()}
        if self.policy:
            choices |= self.policy.draw(n, self.size, rng)
        if self.train and self.mix:
            draw_mix, _ = MIXES[self.mix]
            choices |= draw_mix(n, rng)
        return {name: torch.from_numpy(rows) for name, rows in choices.items()}

    def draw_view(self, order: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Draws the crops and flips of one view of each image."""
        choices = {}
        if self.has_photographs:
            sizes = self.images.images.sizes.numpy()[order]
            choices["box"] = (
                random_boxes(sizes, rng)
                if self.crops_at_random
                else centre_boxes(sizes, self.test_crop)
            )
        elif self.crops_at_random and self.padding:
            choices["corner"] = rng.integers(0, 2 * self.padding + 1, (len(order), 2))
        if self.crops_at_random and self.flip:
            choices["flip"] = rng.random(len(order)) < 0.5
        return choices


def views_of(part: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Returns the choices and pixels of the weak and of the strong view, each under the names of a
    single one."""
    strong = {name: rows for name, rows in part.items() if name.startswith(STRONG)}
    weak = {name: rows for name, rows in part.items() if name not in strong}
    strong = weak | {name.removeprefix(STRONG): rows for name, rows in strong.items()}
    del weak["operation"], weak["magnitude"]
    return weak, strong
