"""Every loss between any two networks of six families, maps of one size among them."""

from itertools import combinations, permutations

import pytest
import torch
from published_losses import build_loss

from kdnb import LOSSES, InputError, Output, create_model
from kdnb.data import Batch

NAMES = ["resnet18", "mobilenet_v3_small", "timm/vit_tiny_patch16_224", "timm/convnext_atto"]
NAMES += ["timm/swin_tiny_patch4_window7_224", "timm/tf_efficientnet_lite0"]
SIZE = 32
SLOW = {"reviewkd", "semckd", "simkd"}  # whose convolutions are as wide as the networks
AVERAGED = {"cat", "simkd"}  # which need a classifier that averages the last map


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


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else [])
        for name in LOSSES
        if LOSSES[name].needs_teacher
    ],
)
def test_every_loss_works_between_any_two_families(outputs, name):
    labels = torch.arange(4)
    # AFD in both directions; to save time, the others in one of them, or between neighbours.
    pairs = permutations(NAMES, 2) if name == "afd" else combinations(NAMES, 2)
    if name in SLOW:
        pairs = zip(NAMES, NAMES[1:] + NAMES[:1], strict=True)
    for number, pair in enumerate(pairs):
        teacher, student = pair if number % 2 else pair[::-1]
        taught, tensors = leaves(outputs[student])
        try:
            loss = build_loss(name, (outputs[student], outputs[teacher]))
        except InputError as error:
            assert name in AVERAGED and "choose another loss or network" in str(error)
            continue
        loss.setup(labels)
        value = loss.train()(taught, outputs[teacher], Batch(None, labels, labels))
        value.backward()
        gradients = [t.grad for t in (*tensors, *loss.parameters()) if t.grad is not None]
        assert gradients and all(g.isfinite().all() for g in [value, *gradients]), pair
