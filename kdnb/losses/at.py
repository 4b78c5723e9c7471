"""Attention transfer (Zagoruyko, Komodakis, Paying More Attention to Attention, ICLR 2017)."""

import torch.nn.functional as F
from torch import Tensor

from kdnb.losses.base import Batch, Loss, Output, align_from_deepest, match_size


def attention(feat: Tensor, p: int) -> Tensor:
    """The mean of feat^p over the channels, L2-normalised per image: (b, c, h, w) -> (b, h * w)."""
    return F.normalize(feat.pow(p).mean(1).flatten(1))


class AT(Loss, name="at", method="ce + at:1000"):
    """Mean squared difference of the attention maps, summed over the stages (section 3.1).

    Maps of different sizes are compared at the smaller one.

    Args:
        p: the power of the values of which an attention map is the mean.
    """

    def __init__(self, student: Output, teacher: Output, *, p: int = 2):
        super().__init__()
        self.p = p

    def forward(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        loss = 0
        for maps in align_from_deepest(student.stages, teacher.stages):
            h_s, h_t = match_size(*maps)
            loss = loss + F.mse_loss(attention(h_s, self.p), attention(h_t, self.p))
        return loss
