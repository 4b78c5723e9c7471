"""Images without a label, -1: losses that need labels leave them out, the others do not notice."""

import pytest
import torch
from published_losses import build_loss

from kdnb import LOSSES, Distiller, create_model
from kdnb.data import Batch
from kdnb.losses.base import labelled_mean

TRAINING_LABELS = torch.tensor([0, 1, 2, 3, 4, -1, -1] * 4)  # 20 of 28 images have one
INDEX = torch.arange(3, 11)
LABELS = TRAINING_LABELS[INDEX]  # 3 4 -1 -1 0 1 2 3
LABELLED = LABELS >= 0
IMAGES = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(1))
OPTIONS = {"crd": {"K": 16}}  # all images of other classes: none is left to chance


@pytest.fixture(scope="module")
def pair():
    """The outputs of a student and a teacher on the same images."""
    torch.manual_seed(0)
    with torch.no_grad():
        return tuple(create_model(name, 5)(IMAGES) for name in ("wrn_10_1", "wrn_16_1"))


def evaluated(name, pair, labels, keep=slice(None)):
    """A loss of some of the images, and its gradients by the student's logits and features."""
    torch.manual_seed(0)
    loss = build_loss(name, pair, **OPTIONS.get(name, {}))
    loss.setup(TRAINING_LABELS.index_copy(0, INDEX, labels))
    if name == "crd":  # its constants are estimated in the first step, also from other images
        loss.Z_s.fill_(30.0)
        loss.Z_t.fill_(30.0)
    student, teacher = (
        output._replace(
            logits=output.logits[keep].clone(),
            pooled=output.pooled[keep].clone(),
            feats=tuple(h[keep] for h in output.feats),
            stages=tuple(h[keep] for h in output.stages),
            preacts=tuple(h[keep] for h in output.preacts),
        )
        for output in pair
    )
    leaves = [student.logits.requires_grad_(), student.pooled.requires_grad_()]
    value = loss(student, teacher, Batch(IMAGES[keep], labels[keep], INDEX[keep]))
    if not value.requires_grad:
        return value, []
    gradients = torch.autograd.grad(value, leaves, allow_unused=True)
    return value.detach(), [g for g in gradients if g is not None]


@pytest.mark.parametrize("name", [name for name in LOSSES if LOSSES[name].needs_labels])
def test_a_loss_that_needs_labels_is_that_of_the_labelled_images(name, pair):
    value, gradients = evaluated(name, pair, LABELS)
    expected, expected_gradients = evaluated(name, pair, LABELS, LABELLED)
    assert value == pytest.approx(expected.item(), rel=1e-5)
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        assert torch.allclose(gradient[LABELLED], expected_gradient, rtol=1e-4, atol=1e-7)
        assert not gradient[~LABELLED].any()


@pytest.mark.parametrize("name", [name for name in LOSSES if LOSSES[name].needs_labels])
def test_without_any_label_a_loss_that_needs_them_is_zero(name, pair):
    value, gradients = evaluated(name, pair, torch.full_like(LABELS, -1))
    assert value == 0 and gradients and not any(g.any() for g in gradients)


@pytest.mark.parametrize("name", [name for name in LOSSES if not LOSSES[name].needs_labels])
def test_the_other_losses_do_not_read_labels(name, pair):
    """Otherwise the class has to say `needs_labels = True`."""
    value, gradients = evaluated(name, pair, LABELS)
    expected, expected_gradients = evaluated(name, pair, torch.full_like(LABELS, -1))
    assert torch.equal(value, expected) and torch.isfinite(value)
    assert all(map(torch.equal, gradients, expected_gradients))


def test_the_mean_of_labelled_images_ignores_what_the_others_have():
    values = torch.tensor([1.0, float("nan"), 3.0], requires_grad=True)
    mean = labelled_mean(values, torch.tensor([0, -1, 0]))
    mean.backward()
    assert mean == 2 and values.grad.tolist() == [0.5, 0, 0.5]


def test_images_without_a_label_teach_a_student_through_the_other_losses(pair):
    torch.manual_seed(0)
    student, teacher = create_model("wrn_10_1", 5), create_model("wrn_16_1", 5)
    distiller = Distiller(student, teacher, "ce + kd", IMAGES, labels=TRAINING_LABELS).train()
    terms, _ = distiller(IMAGES, torch.full_like(LABELS, -1), INDEX)
    assert terms["ce"] == 0 and torch.equal(terms["total"], terms["kd"]) and terms["kd"] > 0
