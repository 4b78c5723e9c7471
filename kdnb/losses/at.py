"""Attention transfer (Zagoruyko, Komodakis, Paying More Attention to Attention, ICLR 2017)."""

import torch.nn.functional as F
from torch import Tensor

from kdnb.losses.base import Batch, Loss, Output, align_from_deepest, match_size


def attention(feat: Tensor) -> Tensor:
    """The normalised channel mean of the squares: (batch, channels, height, width) -> (batch, height * width)."""
    return F.normalize(feat.square().mean(1).flatten(1))


class AT(Loss, name="at", method="ce + at:1000"):
    """Mean squared difference of both networks' attention, summed over the stages (section 3.1, p = 2)."""

    def forward(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        pairs = [match_size(*pair) for pair in align_from_deepest(student.stages, teacher.stages)]
        return sum(F.mse_loss(attention(h_s), attention(h_t)) for h_s, h_t in pairs)
