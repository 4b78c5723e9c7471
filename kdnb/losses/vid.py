"""Variational information distillation (Ahn, Hu, Damianou, Lawrence, Dai, CVPR 2019)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdnb.losses.base import Batch, Loss, Output, align_from_deepest, match_size


def regressor(c_s: int, c_t: int) -> nn.Sequential:
    """Returns a network that predicts the teacher's map (c_t channels) from the student's (c_s)."""
    first, second, third = (nn.Conv2d(c_in, c_t, 1, bias=False) for c_in in (c_s, c_t, c_t))
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), third)


class VID(Loss, name="vid", method="ce + vid"):
    """Negative log-likelihood of the teacher's maps given the student's, summed over the stages.

    Each value of a teacher's map is normally distributed. A regressor of the student's map predicts
    its mean, and each channel has a trained variance. The constant of the likelihood is left out,
    so that the loss can be negative. It is the mean over all values of a stage.

    Args:
        variance: the initial variance of every channel.
        eps: the smallest variance.
    """

    def __init__(
        self, student: Output, teacher: Output, *, variance: float = 5.0, eps: float = 1e-5
    ):
        super().__init__()
        self.eps = eps
        widths = [
            (h_s.shape[1], h_t.shape[1])
            for h_s, h_t in align_from_deepest(student.stages, teacher.stages)
        ]
        # The inverse of softplus, so that the variance starts at the given value.
        scale = max(variance - eps, eps)
        scale += math.log(-math.expm1(-scale))
        self.regressors = nn.ModuleList(regressor(c_s, c_t) for c_s, c_t in widths)
        self.scales = nn.ParameterList(torch.full((c_t,), scale) for _, c_t in widths)

    def forward(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        loss = 0
        pairs = align_from_deepest(student.stages, teacher.stages)
        for regressor, scale, pair in zip(self.regressors, self.scales, pairs, strict=True):
            h_s, h_t = match_size(*pair)
            variance = F.softplus(scale)[:, None, None] + self.eps  # c 1 1
            squared_error = (regressor(h_s).float() - h_t).square()  # b c h w
            loss = loss + (squared_error / variance + variance.log()).mean() / 2
        return loss
