"""Strong augmentation does to a batch what torchvision does to one image."""

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from kdnb.data.augment import BINS, OPERATIONS, POLICIES, augment

TORCHVISION = {  # names of torchvision's that are not ours in CamelCase
    "colour": "Color",
    "posterise": "Posterize",
    "solarise": "Solarize",
    "autocontrast": "AutoContrast",
    "equalise": "Equalize",
}
CLASSES = {"trivialaugment": v2.TrivialAugmentWide, "randaugment": v2.RandAugment}
# With nearest neighbours a rounding decides between two pixels; a sum is rounded down.
MOVES = ("shear_x", "shear_y", "rotate")


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("policy", POLICIES)
def test_every_operation_is_torchvisions_at_every_magnitude(policy, name):
    images = torch.randint(0, 256, (BINS, 3, 16, 20), dtype=torch.uint8)
    images = torch.nn.functional.avg_pool2d(images.float(), 3, 1, 1).byte()  # with some contrast
    reference = CLASSES[policy](interpolation="nearest")
    theirs = TORCHVISION.get(name, name.title().replace("_", ""))
    table, signed = reference._AUGMENTATION_SPACE[theirs]
    theirs_by_bin = table(BINS, 20, 20)
    number = list(OPERATIONS).index(name)
    ours = POLICIES[policy].magnitudes(20)[number]
    for sign in (1, -1) if signed else (1,):
        value = torch.from_numpy(sign * ours)
        made = augment(images, torch.full((BINS, 1), number), value[:, None])
        for i in range(BINS):
            level = sign * float(theirs_by_bin[i]) if theirs_by_bin is not None else 0.0
            due = reference._apply_image_or_video_transform(
                images[i], theirs, level, interpolation=v2.InterpolationMode.NEAREST, fill={}
            )
            difference = (made[i].int() - due.int()).abs()
            if name in MOVES:
                assert (difference.amax(0) > 0).float().mean() <= 0.02
            else:
                assert difference.max() <= 1


def test_operations_are_drawn_evenly_with_both_signs():
    drawn = POLICIES["trivialaugment"].draw(20_000, 32, np.random.default_rng(0))
    counts = np.bincount(drawn["operation"][:, 0], minlength=len(OPERATIONS))
    assert abs(counts * len(OPERATIONS) / 20_000 - 1).max() < 0.1
    rotations = drawn["magnitude"][drawn["operation"] == list(OPERATIONS).index("rotate")]
    assert np.mean(rotations < 0) == pytest.approx(0.5, abs=0.05)
    assert np.unique(abs(rotations)) == pytest.approx(np.linspace(0, 135, BINS))
