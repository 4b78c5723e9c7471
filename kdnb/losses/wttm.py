"""Weighted transformed teacher matching (Zheng, Yang, Knowledge Distillation Based on Transformed Teacher Matching,
ICLR 2024)."""

import torch.nn.functional as F
from torch import Tensor

from kdnb.losses.base import Batch, Loss, Output


class WTTM(Loss, name="wttm", method="ce + wttm:4"):
    """KL(p^gamma / U || student), U = sum over the classes of p^gamma, each image weighed by its U; batch mean.

    gamma: the power of the teacher's probabilities p; softening by T = 1 / gamma, but of the teacher alone. It and
    the weight are the ones that the authors' code gives for WTTM, beside CRD and for VGG-13 -> VGG-8.
    """

    same_classes = True

    def __init__(self, student: Output, teacher: Output, *, gamma: float = 0.2):
        super().__init__()
        self.gamma = gamma

    def forward(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        log_p_s = F.log_softmax(student.logits.float(), dim=1)  # b c
        powers = self.gamma * F.log_softmax(teacher.logits.float(), dim=1)  # b c
        divergence = F.kl_div(
            log_p_s, F.log_softmax(powers, dim=1), reduction="none", log_target=True
        ).sum(1)  # b
        return (powers.exp().sum(1) * divergence).mean()
