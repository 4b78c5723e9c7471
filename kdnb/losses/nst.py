"""Neuron selectivity transfer, NST (Huang, Wang, Like What You Like, 2017)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from kdnb.losses.base import Batch, Loss, Output, align_from_deepest, match_size


def kernel(x: Tensor, y: Tensor) -> Tensor:
    """Mean of (x_i . y_j)^2 over the images and all pairs of channels i, j of an image.

    Args:
        x: (batch, channels, pixels).
        y: (batch, channels, pixels); the number of channels may differ.
    """
    return (x @ y.mT).square().mean()


class NST(Loss, name="nst", method="ce + nst:50"):
    """Squared maximum mean discrepancy between the channels of both networks, over all stages.

    Each channel is L2-normalised over its pixels. The kernel is polynomial, of degree 2 and without
    offset.
    """

    def forward(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        loss = 0
        # In float32: the loss is a small difference of large terms.
        with torch.autocast(student.logits.device.type, enabled=False):
            for maps in align_from_deepest(student.stages, teacher.stages):
                x, y = (F.normalize(h.flatten(2), dim=2) for h in match_size(*maps))  # b c hw
                loss = loss + kernel(y, y) + kernel(x, x) - 2 * kernel(x, y)
        return loss
