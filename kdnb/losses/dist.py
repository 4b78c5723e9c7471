"""DIST (Huang, You, Wang, Qian, Xu, Distillation from A Stronger Teacher, NeurIPS 2022)."""

import torch.nn.functional as F
from torch import Tensor

from kdnb.losses.base import Batch, Loss, Output


def correlation(x: Tensor, y: Tensor) -> Tensor:
    """Pearson's correlation of the rows of two matrices: two (rows, columns) -> (rows,)."""
    x = x - x.mean(1, keepdim=True)
    y = y - y.mean(1, keepdim=True)
    return (x * y).sum(1) / (x.norm(dim=1) * y.norm(dim=1) + 1e-8)


class DIST(Loss, name="dist", method="ce + dist:2"):
    """(beta * inter + gamma * intra) * T^2, each part 1 - the mean correlation of probabilities.

    `inter` correlates student and teacher over the classes of an image, `intra` over the images of
    a class.

    Args:
        beta: weight of the inter-class part.
        gamma: weight of the intra-class part.
        T: temperature of both networks' predictions.
    """

    teacher_outputs = frozenset({"logits"})
    same_classes = True
    may_be_zero = frozenset({"beta", "gamma"})

    def __init__(
        self,
        student: Output,
        teacher: Output,
        *,
        beta: float = 1.0,
        gamma: float = 1.0,
        T: float = 4.0,
    ):
        super().__init__()
        self.beta = beta
        self.gamma = gamma
        self.T = T

    def forward(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        p_s = F.softmax(student.logits.float() / self.T, dim=1)  # b c
        p_t = F.softmax(teacher.logits.float() / self.T, dim=1)  # b c
        inter = 1 - correlation(p_s, p_t).mean()
        intra = 1 - correlation(p_s.T, p_t.T).mean()
        return (self.beta * inter + self.gamma * intra) * self.T**2
