"""scikit-learn's handwritten digits: what the study runs on while one reads it."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from kdnb.data.base import Images, Preset, register

# The student sees 10 labelled images of each digit, the teacher saw all 1,437: so that there is something to teach.
# 16 pixels, so that the last maps are of 4 x 4; no flips, digits have a side. Chosen by measuring, see docs/lab-notes.md.
STUDENT = {"epochs": 40, "batch_size": 25, "lr": 0.1, "train_limit": 100}
TEACHER = {"epochs": 6, "batch_size": 64}
METHODS = {
    "afd": "ce + kd:0.9 + afd:50",  # on maps of so few pixels its loss is many times larger than at 32 x 32
    "crd": "ce + crd:0.8(K=64)",  # of 90 images of other digits there are no 16,384
}
NETWORKS = {"student": "wrn_16_1", "teacher": "wrn_16_2"}
PRESET = Preset(
    **NETWORKS, image_size=16, padding=1, **STUDENT, for_teacher=TEACHER, methods=METHODS
)


@register("digits", PRESET, test_images=360)
def load(root: Path, size: int, **_) -> tuple[Images, Images]:
    """1,797 digits of 8 x 8 pixels, enlarged to `size`, grey in all channels; 1,437 to train with, 360 to test."""
    from sklearn.datasets import (
        load_digits,
    )  # scikit-learn takes a second to import: only for those who ask
    from sklearn.model_selection import train_test_split

    pixels, labels = load_digits(return_X_y=True)  # 0..16
    grey = torch.from_numpy(np.rint(pixels * (255 / 16))).reshape(
        -1, 1, 8, 8
    )  # float64: every rounding is exact
    labels = torch.from_numpy(labels).long()
    train, test = train_test_split(
        np.arange(len(labels)), test_size=360, stratify=labels, random_state=0
    )
    values = grey[train] / 255  # as stored: the same statistics at every size
    mean, std = (float(values.mean()),) * 3, (float(values.std()),) * 3
    images = (
        F.interpolate(grey, size=(size, size), mode="bilinear").round().byte().repeat(1, 3, 1, 1)
    )
    return tuple(
        Images(images[part], labels[part], tuple("0123456789"), mean, std) for part in (train, test)
    )
