"""Relational knowledge distillation (Park, Kim, Lu, Cho, CVPR 2019)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from kdnb.losses.base import Batch, Loss, Output


def distances(x: Tensor) -> Tensor:
    """Euclidean distances of all pairs of rows, divided by their mean: (batch, features) -> (batch, batch)."""
    squares, n = x.square().sum(1), len(x)
    d = (
        (squares[:, None] + squares - 2 * (x @ x.T)).clamp(min=1e-12).sqrt()
    )  # its root has a slope, also of 0
    d = d * (1 - torch.eye(n, device=x.device))
    return d * (n * (n - 1) / d.sum())


def angles(x: Tensor) -> Tensor:
    """Cosines of the angles at row i between the rows j and k: (batch, features) -> (batch, batch, batch), i j k."""
    e = F.normalize(x - x[:, None], dim=2)  # i j features
    return e @ e.mT


class RKD(Loss, name="rkd", method="ce + rkd"):
    """distance * RKD-D + angle * RKD-A, smooth L1 of both networks' relations between pooled features (section 3.2).

    distance, angle: the weights of both parts.
    """

    def __init__(
        self, student: Output, teacher: Output, *, distance: float = 25.0, angle: float = 50.0
    ):
        super().__init__()
        self.distance, self.angle = distance, angle

    def forward(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        with torch.autocast(student.logits.device.type, enabled=False):
            x, y = student.pooled.float(), teacher.pooled.float()  # b c
            of_distances = F.smooth_l1_loss(distances(x), distances(y))
            of_angles = F.smooth_l1_loss(angles(x), angles(y))
        return self.distance * of_distances + self.angle * of_angles
