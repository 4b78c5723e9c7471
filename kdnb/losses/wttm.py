"""Weighted transformed teacher matching, WTTM (Zheng, Yang, ICLR 2024)."""

import torch.nn.functional as F
from torch import Tensor

from kdnb.losses.base import Batch, Loss, Output


class WTTM(Loss, name="wttm", method="ce + wttm:4"):
    """U * KL(p^gamma / U || student), batch mean.

    p are the teacher's probabilities of an image, U is the sum of p^gamma over the classes: the
    weight of the image. Only the teacher's predictions are softened, by temperature 1 / gamma.

    Args:
        gamma: the power of the teacher's probabilities. It and the weight of the method are those
            that the authors' code gives for WTTM with CRD and VGG-13 -> VGG-8.
    """

    teacher_outputs = frozenset({"logits"})
    same_classes = True

    def __init__(self, student: Output, teacher: Output, *, gamma: float = 0.2):
        super().__init__()
        self.gamma = gamma

    def forward(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        log_p_s = F.log_softmax(student.logits.float(), dim=1)  # b c
        powers = self.gamma * F.log_softmax(teacher.logits.float(), dim=1)  # b c
        log_p_t = F.log_softmax(powers, dim=1)  # b c
        divergence = F.kl_div(log_p_s, log_p_t, reduction="none", log_target=True).sum(1)  # b
        return (powers.exp().sum(1) * divergence).mean()
