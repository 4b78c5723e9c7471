"""scikit-learn's handwritten digits: a data set that trains in seconds on a CPU."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from kdnb.data.base import Preset, register
from kdnb.data.digests import no_digest
from kdnb.data.images import Images

# The student gets 10 training images of each digit and the teacher all 1,437, so that the teacher
# has something to teach. At 16 pixels the last maps are 4 x 4. No flips: a mirrored digit is none.
# The values were chosen by measurement, see docs/lab-notes.md.
STUDENT = {"epochs": 40, "batch_size": 25, "lr": 0.1, "train_limit": 100}
TEACHER = {"epochs": 6, "batch_size": 64}
METHODS = {
    "afd": "ce + kd:0.9 + afd:50",  # on such small maps the loss is much larger than at 32 x 32
    "crd": "ce + crd:0.8(K=64)",  # there are only 90 images of other digits, not 16,384
}
NETWORKS = {"student": "wrn_16_1", "teacher": "wrn_16_2"}
PRESET = Preset(
    **NETWORKS, image_size=16, padding=1, **STUDENT, for_teacher=TEACHER, methods=METHODS
)
TEST_IMAGES = 360


@register("digits", PRESET, digest=no_digest, test_images=TEST_IMAGES, class_count=10)
def load(root: Path, size: int, **_) -> tuple[Images, Images]:
    """Returns 1,437 training and 360 test images, grey in all channels.

    The digits of 8 x 8 pixels are enlarged to size x size. The split is always the same.
    """
    # Here and not at the top: scikit-learn takes a second to import.
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    pixels, targets = load_digits(return_X_y=True)  # 0..16
    scaled = np.rint(pixels * (255 / 16))
    grey = torch.from_numpy(scaled).reshape(-1, 1, 8, 8)  # float64: every rounding is exact
    labels = torch.from_numpy(targets).long()
    train, test = train_test_split(
        np.arange(len(labels)), test_size=TEST_IMAGES, stratify=labels, random_state=0
    )
    values = grey[train] / 255  # not enlarged: the statistics are the same at every size
    mean = (float(values.mean()),) * 3
    std = (float(values.std()),) * 3
    enlarged = F.interpolate(grey, size=(size, size), mode="bilinear")
    images = enlarged.round().byte().repeat(1, 3, 1, 1)
    classes = tuple("0123456789")
    return (
        Images(images[train], labels[train], classes, mean, std),
        Images(images[test], labels[test], classes, mean, std),
    )
