"""Relational knowledge distillation (Park, Kim, Lu, Cho, CVPR 2019)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from kdnb.losses.base import Batch, Loss, Output


def distances(x: Tensor) -> Tensor:
    """Euclidean distances of all pairs of rows, divided by their mean: (b, c) -> (b, b)."""
    n = len(x)
    squares = x.square().sum(1)
    # The clamp gives the root a finite slope where two rows are equal.
    d = (squares[:, None] + squares - 2 * (x @ x.T)).clamp(min=1e-12).sqrt()
    d = d * (1 - torch.eye(n, device=x.device))
    return d * (n * (n - 1) / d.sum())


def angles(x: Tensor) -> Tensor:
    """Cosines of the angles at row i between rows j and k: (b, c) -> (b, b, b), indexed i j k."""
    e = F.normalize(x - x[:, None], dim=2)  # i j c
    return e @ e.mT


class RKD(Loss, name="rkd", method="ce + rkd"):
    """distance * RKD-D + angle * RKD-A of the pooled features (section 3.2).

    RKD-D and RKD-A are the smooth L1 differences between student and teacher of the distances and
    the angles among the images of a batch.

    Args:
        distance: weight of the distance-wise part, RKD-D.
        angle: weight of the angle-wise part, RKD-A.
    """

    teacher_outputs = frozenset({"pooled"})
    may_be_zero = frozenset({"distance", "angle"})

    def __init__(
        self, student: Output, teacher: Output, *, distance: float = 25.0, angle: float = 50.0
    ):
        super().__init__()
        self.distance = distance
        self.angle = angle

    def forward(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        with torch.autocast(student.logits.device.type, enabled=False):
            x_s = student.pooled.float()  # b c
            x_t = teacher.pooled.float()  # b c
            rkd_d = F.smooth_l1_loss(distances(x_s), distances(x_t))
            rkd_a = F.smooth_l1_loss(angles(x_s), angles(x_t))
        return self.distance * rkd_d + self.angle * rkd_a
