"""Normalised knowledge distillation (Yang, Zeng, Li, Zhang, Yuan, Li, From Knowledge Distillation to Self-Knowledge
Distillation: A Unified Approach with Normalized Loss and Customized Soft Labels, ICCV 2023)."""

import torch.nn.functional as F
from torch import Tensor

from kdnb.losses.base import Batch, Loss, Output
from kdnb.losses.dkd import non_target


class NKD(Loss, name="nkd", method="ce + nkd"):
    """Cross-entropies with the teacher's predictions: of the label's class, at temperature 1, plus gamma * T^2 times
    that of the other classes, normalised among themselves.

    T: the temperature of the other classes. T and gamma are those for CIFAR-100; for ImageNet they are 1 and 1.5.
    """

    same_classes = True

    def __init__(self, student: Output, teacher: Output, *, T: float = 3.0, gamma: float = 3.5):
        super().__init__()
        self.T, self.gamma = T, gamma

    def forward(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        z_s, z_t, label = student.logits.float(), teacher.logits.float(), batch.labels[:, None]
        target = F.softmax(z_t, dim=1).gather(1, label) * F.log_softmax(z_s, dim=1).gather(
            1, label
        )  # b 1
        others_s, others_t = (non_target(z / self.T, batch.labels) for z in (z_s, z_t))  # b c
        return (
            self.gamma * self.T**2 * F.cross_entropy(others_s, F.softmax(others_t, dim=1))
            - target.mean()
        )
