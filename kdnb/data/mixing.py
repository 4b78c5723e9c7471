"""Training images that are mixed in pairs, and the labels of what results.

Each image of a batch is mixed with the one before it, the first with the last: batches are in
random order. How much of it remains is drawn for each image, evenly from 0 to 1, which is Beta(1,
1), as in the papers' experiments on CIFAR.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kdnb.data.images import Batch


def draw_mixup(n: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Draws what `mixup` needs: "share" (n,), of the image itself."""
    return {"share": rng.random(n, np.float32)}


def draw_cutmix(n: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Draws what `cutmix` needs: "patch" (n, 4), its left, top, right, bottom as shares, 0..1."""
    side = np.sqrt(1 - rng.random((n, 1), np.float32))
    centre = rng.random((n, 2), np.float32)
    return {"patch": np.concatenate([centre - side / 2, centre + side / 2], 1).clip(0, 1)}


def mixup(images: Tensor, part: dict[str, Tensor]) -> Tensor:
    """Zhang, Cisse, Dauphin, Lopez-Paz, ICLR 2018: the weighted mean of two images.

    Args:
        images: (batch, 3, height, width).
        part: "share" (batch,), of an image in its mean.
    """
    return torch.lerp(
        images.roll(1, 0), images, part["share"].to(images.dtype)[:, None, None, None]
    )


def cutmix(images: Tensor, part: dict[str, Tensor]) -> Tensor:
    """Yun et al., ICCV 2019: a patch of each image is replaced by that of the one before it.

    Args:
        images: (batch, 3, size, size).
        part: "patch" (batch, 4), its left, top, right, bottom as shares of the size.
    """
    mask = patch_mask(part["patch"], images.shape[-1])[:, None]  # b 1 y x
    return torch.where(mask, images.roll(1, 0), images)


def patch_mask(patch: Tensor, size: int) -> Tensor:
    """Returns which pixels are in a patch, bool (batch, size, size)."""
    left, top, right, bottom = (patch * size).round().unbind(1)
    pixel = torch.arange(size, device=patch.device)
    columns = (pixel >= left[:, None]) & (pixel < right[:, None])  # b x
    rows = (pixel >= top[:, None]) & (pixel < bottom[:, None])  # b y
    return rows[:, :, None] & columns[:, None]


MIXES = {"mixup": (draw_mixup, mixup), "cutmix": (draw_cutmix, cutmix)}


def with_targets(
    batch: Batch, classes: int, smoothing: float, mix: str, part: dict[str, Tensor]
) -> Batch:
    """Returns the batch with mixed images, if there is a mix, and the targets of cross-entropy.

    The labels are those of the images themselves; -1 for one that is mixed with an image without a
    label.

    Args:
        batch: as it is without.
        classes: number of classes.
        smoothing: share of each label that is spread over all classes.
        mix: a name in MIXES; "": the images are not mixed.
        part: what was drawn for the batch.
    """
    if not mix:
        return batch._replace(targets=soft_labels(batch.labels, classes, smoothing))
    share = part.get("share")
    if share is None:  # of the patch in pixels
        share = 1 - patch_mask(part["patch"], batch.images.shape[-1]).float().mean((1, 2))
    function = MIXES[mix][1]
    for_teacher = batch.teacher_images
    return batch._replace(
        images=function(batch.images, part),
        labels=batch.labels.where(batch.labels.roll(1) >= 0, -1),
        teacher_images=None if for_teacher is None else function(for_teacher, part),
        targets=soft_labels(batch.labels, classes, smoothing, share),
    )


def soft_labels(
    labels: Tensor, classes: int, smoothing: float = 0.0, share: Tensor | None = None
) -> Tensor:
    """Returns the target probabilities of cross-entropy, float32 (batch, classes).

    Smoothed labels (Szegedy et al., CVPR 2016) are 1 - smoothing of the label, and the rest spread
    evenly over all classes. The row of an image without a label has no meaning.

    Args:
        labels: int64 (batch,), -1 for none.
        classes: number of classes.
        smoothing: share that is spread over all classes.
        share: of the image itself, (batch,), if it is mixed with the one before it.
    """
    targets = F.one_hot(labels.clamp(min=0), classes) * (labels >= 0)[:, None]
    targets = (1 - smoothing) * targets.float() + smoothing / classes
    if share is not None:
        targets = torch.lerp(targets.roll(1, 0), targets, share[:, None])
    return targets
