"""Mixed images and the targets of cross-entropy."""

import pytest
import torch
import torch.nn.functional as F
from conftest import image_set

from kdnb.data.loader import Loader
from kdnb.data.mixing import soft_labels


def batches(**how):
    """A batch without a mix, and the same one with it."""
    images = image_set(n=40, size=16)
    plain = next(Loader(images, 40, 16, train=True).epoch())
    return plain, next(Loader(images, 40, 16, train=True, **how).epoch())


def test_mixup_is_the_weighted_mean_of_neighbours_and_of_their_labels():
    plain, mixed = batches(mix="mixup")
    own, other = F.one_hot(plain.labels, 4), F.one_hot(plain.labels.roll(1), 4)
    difference = (own != other).any(1)
    share = (mixed.targets * own).sum(1)
    assert share[difference].min() < 0.2 and share[difference].max() > 0.8
    for i in difference.nonzero().flatten():
        due = share[i] * plain.images[i] + (1 - share[i]) * plain.images[i - 1]
        assert torch.allclose(mixed.images[i], due, atol=1e-5)
        assert torch.allclose(mixed.targets[i], share[i] * own[i] + (1 - share[i]) * other[i])
    assert torch.equal(mixed.labels, plain.labels)


def test_cutmix_weighs_labels_by_the_pixels_of_each_image():
    plain, mixed = batches(mix="cutmix")
    is_other = (mixed.images != plain.images).any(1)
    assert torch.equal(
        mixed.images, torch.where(is_other[:, None], plain.images.roll(1, 0), plain.images)
    )
    own = (mixed.targets * F.one_hot(plain.labels, 4)).sum(1)
    differs = plain.labels != plain.labels.roll(1)
    shares = 1 - is_other.float().mean((1, 2))
    assert (own - shares)[differs].abs().max() < 0.02
    rows, columns = is_other.any(2), is_other.any(1)
    assert torch.equal(is_other.sum((1, 2)), rows.sum(1) * columns.sum(1))  # rectangles


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_smoothed_labels_are_those_of_torch(smoothing):
    logits, labels = torch.randn(20, 4), torch.arange(20) % 4
    due = F.cross_entropy(logits, labels, label_smoothing=smoothing)
    assert F.cross_entropy(logits, soft_labels(labels, 4, smoothing)).item() == pytest.approx(
        due.item(), rel=1e-6
    )


def test_an_image_that_is_mixed_with_an_unlabelled_one_has_no_label():
    images = image_set(n=40, size=16)
    images.labels[::4] = -1
    batch = next(Loader(images, 40, 16, train=True, mix="mixup").epoch())
    has_label = images.labels[batch.index] >= 0
    assert torch.equal(batch.labels >= 0, has_label & has_label.roll(1))
