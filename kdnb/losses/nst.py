"""Neuron selectivity transfer (Huang, Wang, Like What You Like: Knowledge Distill via Neuron Selectivity Transfer,
2017)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from kdnb.losses.base import Batch, Loss, Output, align_from_deepest, match_size


def kernel(x: Tensor, y: Tensor) -> Tensor:
    """Mean of (x_i . y_j)^2 over all pairs of an image's channels and the batch; x, y: (batch, channels, pixels)."""
    return (x @ y.mT).square().mean()


class NST(Loss, name="nst", method="ce + nst:50"):
    """Squared maximum mean discrepancy of both networks' channels, each normalised over its pixels, summed over the
    stages (the polynomial kernel of degree 2 without offset)."""

    def forward(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        loss = 0
        with torch.autocast(
            student.logits.device.type, enabled=False
        ):  # a small difference of large terms
            for maps in align_from_deepest(student.stages, teacher.stages):
                x, y = (F.normalize(h.flatten(2), dim=2) for h in match_size(*maps))  # b c hw
                loss = loss + kernel(y, y) + kernel(x, x) - 2 * kernel(x, y)
        return loss
