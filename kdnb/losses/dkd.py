"""Decoupled knowledge distillation (Zhao, Cui, Song, Qiu, Liang, CVPR 2022)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from kdnb.losses.base import Batch, Loss, Output
from kdnb.losses.lskd import standardise


def non_target(logits: Tensor, labels: Tensor) -> Tensor:
    """Logits (batch, classes) whose softmax is that of the classes other than the label's, where it is 0."""
    return logits.scatter(1, labels[:, None], -1000.0)


class DKD(Loss, name="dkd", method="ce + dkd"):
    """alpha * TCKD + beta * NCKD, batch means times T^2 (section 3): KL(teacher || student) of the label's class
    against all others together, and of the others among themselves.

    T: the temperature. standardise: both predictions, as in LSKD, whose alpha, beta and T are 12, 24 and 2.
    """

    same_classes, warmup = True, 20

    def __init__(
        self,
        *_: Output,
        alpha: float = 1.0,
        beta: float = 6.0,
        T: float = 4.0,
        standardise: bool = False,
    ):
        super().__init__()
        self.alpha, self.beta, self.T, self.standardise = alpha, beta, T, standardise

    def forward(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        if self.standardise:
            student, teacher = standardise(student), standardise(teacher)
        binary_s, others_s = self.decoupled(student.logits, batch.labels)
        binary_t, others_t = self.decoupled(teacher.logits, batch.labels)
        tckd = F.kl_div(binary_s, binary_t, reduction="batchmean", log_target=True)
        nckd = F.kl_div(others_s, others_t, reduction="batchmean", log_target=True)
        return (self.alpha * tckd + self.beta * nckd) * self.T**2

    def decoupled(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Log probabilities (batch, 2) of the label's class and of all others, (batch, classes) among the others."""
        z = logits.float() / self.T  # b c
        others = non_target(z, labels)  # b c
        binary = torch.cat(
            [z.gather(1, labels[:, None]), others.logsumexp(1, keepdim=True)], 1
        )  # b 2
        return F.log_softmax(binary, dim=1), F.log_softmax(others, dim=1)
