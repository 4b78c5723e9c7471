"""Variational information distillation (Ahn, Hu, Damianou, Lawrence, Dai, CVPR 2019)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdnb.losses.base import Batch, Loss, Output, align_from_deepest, match_size

EPS = 1e-5  # the least variance


def regressor(c_s: int, c_t: int) -> nn.Sequential:
    """What a student's map of c_s channels says of the teacher's, pixel by pixel."""
    enter, *others = (nn.Conv2d(c_in, c_t, 1, bias=False) for c_in in (c_s, c_t, c_t))
    return nn.Sequential(enter, nn.ReLU(), others[0], nn.ReLU(), others[1])


class VID(Loss, name="vid", method="ce + vid"):
    """Negative log likelihood of the teacher's maps under normal distributions around what the student's say of them,
    without its constant: mean over all values, summed over the stages. It can be negative.

    variance: that of every channel at first; it is trained, as the mean is.
    """

    def __init__(self, student: Output, teacher: Output, *, variance: float = 5.0):
        super().__init__()
        widths = [
            (h_s.shape[1], h_t.shape[1])
            for h_s, h_t in align_from_deepest(student.stages, teacher.stages)
        ]
        first = max(variance - EPS, EPS)
        first += math.log(-math.expm1(-first))  # what softplus makes that of
        self.regressors = nn.ModuleList(regressor(c_s, c_t) for c_s, c_t in widths)
        self.scales = nn.ParameterList(torch.full((c_t,), first) for _, c_t in widths)

    def forward(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        loss = 0
        pairs = align_from_deepest(student.stages, teacher.stages)
        for regressor, scale, pair in zip(self.regressors, self.scales, pairs, strict=True):
            h_s, h_t = match_size(*pair)
            variance = F.softplus(scale)[:, None, None] + EPS  # c 1 1
            loss = (
                loss
                + ((regressor(h_s).float() - h_t).square() / variance + variance.log()).mean() / 2
            )
        return loss
