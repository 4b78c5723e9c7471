"""DIST (Huang, You, Wang, Qian, Xu, Knowledge Distillation from A Stronger Teacher, NeurIPS 2022)."""

import torch.nn.functional as F
from torch import Tensor

from kdnb.losses.base import Batch, Loss, Output


def correlation(x: Tensor, y: Tensor) -> Tensor:
    """Pearson's, of each row of two matrices: (rows, columns) twice -> (rows,)."""
    x, y = (m - m.mean(1, keepdim=True) for m in (x, y))
    return (x * y).sum(1) / (x.norm(dim=1) * y.norm(dim=1) + 1e-8)


class DIST(Loss, name="dist", method="ce + dist:2"):
    """(beta * inter + gamma * intra) * T^2: each 1 - the mean correlation of both networks' probabilities,
    inter over the classes of an image, intra over the images of a class.

    T: the temperature that softens both predictions.
    """

    same_classes = True

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
        self.beta, self.gamma, self.T = beta, gamma, T

    def forward(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        p_s, p_t = (
            F.softmax(output.logits.float() / self.T, dim=1) for output in (student, teacher)
        )  # b c
        inter = 1 - correlation(p_s, p_t).mean()
        intra = 1 - correlation(p_s.T, p_t.T).mean()
        return (self.beta * inter + self.gamma * intra) * self.T**2
