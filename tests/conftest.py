"""Small networks and images that every test file may use."""

import pytest
import torch

from kdnb.data import ImageSet
from kdnb.models import create_model


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def image_set(n=40, size=8, classes=4, aspect=None, seed=0):
    """Random bytes whose brightness gives the class away, so that a network can learn it."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % classes
    images = torch.randint(0, 80, (n, 3, size, size), generator=generator) + 50 * labels.view(-1, 1, 1, 1)
    names = tuple(f"class {i}" for i in range(classes))
    return ImageSet(images.clamp(max=255).to(torch.uint8), labels, names, (0.5,) * 3, (0.25,) * 3, aspect)


@pytest.fixture
def pair():
    """(student, teacher) outputs of two small networks on the same images."""
    student, teacher = create_model("wrn_10_1", 5), create_model("wrn_16_1", 5)
    images = torch.randn(6, 3, 16, 16)
    return student(images), teacher(images)
