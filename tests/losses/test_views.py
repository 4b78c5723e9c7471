"""Losses of two views of the same images: the weakly augmented ones first, then the others."""

import pytest
import torch
import torch.nn.functional as F

from kdnb import LOSSES, Output
from kdnb.losses.mlkd import share_up_to_median

TWO_VIEWS = [name for name in LOSSES if LOSSES[name].views == 2]


@pytest.fixture
def pair():
    """Outputs of eight images in two views, of five classes."""
    generator = torch.Generator().manual_seed(0)
    return tuple(
        Output(3 * torch.randn(16, 5, generator=generator), (), pooled=torch.zeros(16, 2))
        for _ in range(2)
    )


@pytest.mark.parametrize("name", TWO_VIEWS)
def test_the_first_half_of_a_batch_is_the_weak_view(pair, name):
    """With the views exchanged a loss is another; with the images in another order it is not."""
    loss = LOSSES[name](*pair)
    value = loss(*pair, None)
    exchanged = [output._replace(logits=output.logits.roll(8, 0)) for output in pair]
    assert not torch.isclose(loss(*exchanged, None), value, rtol=1e-3)
    order = torch.tensor([3, 1, 0, 2, 7, 6, 5, 4])
    order = torch.cat([order, order + 8])
    permuted = [output._replace(logits=output.logits[order]) for output in pair]
    assert torch.isclose(loss(*permuted, None), value, rtol=1e-5)


def kl(student, teacher):
    """KL(teacher || student) of one image's predictions at temperature 4, times 4^2."""
    p = F.softmax(teacher / 4, 0)
    return (p * (p.log() - F.log_softmax(student / 4, 0))).sum() * 16


@pytest.mark.parametrize("part", ["within", "across"])
def test_crld_is_the_formula_of_its_paper(pair, part):
    """Image by image: the mean over those images of whose view the teacher is confident."""
    views = [view for output in pair for view in output.logits.chunk(2)]
    expected = 0
    for weak_s, strong_s, weak_t, strong_t in zip(*views, strict=True):
        if part == "within" and F.softmax(weak_t, 0).max() >= 0.8:
            expected += 2 * (kl(weak_s, weak_t) + kl(strong_s, strong_t)) / 8
        if part == "across" and F.softmax(strong_t, 0).max() >= 0.7:
            expected += 0.5 * (kl(strong_s, weak_t) + kl(weak_s, strong_t)) / 8
    other = {"within": "across", "across": "within"}[part]
    loss = LOSSES["crld"](*pair, tau_w=0.8, tau_s=0.7, **{other: 0.0})
    assert expected > 0 and loss(*pair, None).item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize(
    ("values", "share"), [([3.0, 1, 2], 2 / 3), ([4.0, 1, 3, 2], 1 / 2), ([1.0, 1, 1, 2], 3 / 4)]
)
def test_the_median_of_an_even_number_is_between_the_middle_ones(values, share):
    assert share_up_to_median(torch.tensor(values)).item() == pytest.approx(share)
