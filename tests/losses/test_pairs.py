"""Every loss between any two networks of six families, maps of one size among them."""

from itertools import permutations

import pytest
import torch

from kdnb import LOSSES, InputError, Output, create_model
from kdnb.data import Batch

NAMES = ["resnet18", "mobilenet_v3_small", "timm/vit_tiny_patch16_224", "timm/convnext_atto"]
NAMES += ["timm/swin_tiny_patch4_window7_224", "timm/tf_efficientnet_lite0"]
SIZE = 32
# From maps of one size to larger ones of another network there is no convolution.
REFUSING = {"fitnet"}


@pytest.fixture(scope="session")
def outputs():
    """The Output of each network for four images, in train mode."""
    images = torch.randn(4, 3, SIZE, SIZE)
    with torch.no_grad():
        return {name: create_model(name, 4, SIZE).train()(images) for name in NAMES}


def leaves(output: Output) -> tuple[Output, list[torch.Tensor]]:
    """A copy of an Output whose tensors require gradients, and a list of these."""
    copies = {}

    def copy(tensor):
        return copies.setdefault(id(tensor), tensor.clone().requires_grad_())

    parts = [tuple(map(copy, part)) if isinstance(part, tuple) else copy(part) for part in output]
    return Output(*parts), list(copies.values())


@pytest.mark.parametrize("name", [name for name in LOSSES if LOSSES[name].needs_teacher])
def test_every_loss_works_between_any_two_families(outputs, name):
    labels = torch.arange(4)
    refused = []
    for teacher, student in permutations(NAMES, 2):
        taught, tensors = leaves(outputs[student])
        try:
            loss = LOSSES[name](outputs[student], outputs[teacher])
        except InputError as error:
            assert "\n" not in str(error)
            refused.append((teacher, student))
            continue
        loss.setup(labels)
        value = loss.train()(taught, outputs[teacher], Batch(None, labels, labels))
        value.backward()
        gradients = [t.grad for t in (*tensors, *loss.parameters()) if t.grad is not None]
        assert gradients and all(g.isfinite().all() for g in [value, *gradients]), (
            teacher,
            student,
        )
    assert len(refused) < 30 if name in REFUSING else not refused
