"""Decoupled knowledge distillation (Zhao, Cui, Song, Qiu, Liang, CVPR 2022)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from kdnb.losses.base import Batch, Loss, Output, labelled_mean
from kdnb.losses.lskd import standardise


def non_target(logits: Tensor, labels: Tensor) -> Tensor:
    """Sets each image's logit of its label to -1000: (batch, classes) -> (batch, classes).

    Their softmax is 0 at the label and sums to 1 over the other classes.
    """
    return logits.scatter(1, labels[:, None], -1000.0)


class DKD(Loss, name="dkd", method="ce + dkd"):
    """(alpha * TCKD + beta * NCKD) * T^2, batch means of KL(teacher || student) (section 3).

    TCKD compares the probability of the label's class with that of all other classes together,
    NCKD the probabilities of the other classes among themselves.

    Args:
        alpha: weight of the target-class part, TCKD.
        beta: weight of the non-target-class part, NCKD.
        T: temperature of both networks' predictions.
        standardise: whether the logits are standardised first, as in LSKD; its authors use
            alpha = 12, beta = 24 and T = 2 then.
    """

    teacher_outputs = frozenset({"logits"})
    same_classes = True
    needs_labels = True
    warmup = 20
    may_be_zero = frozenset({"alpha", "beta"})

    def __init__(
        self,
        *examples: Output,
        alpha: float = 1.0,
        beta: float = 6.0,
        T: float = 4.0,
        standardise: bool = False,
    ):
        super().__init__()
        self.alpha = alpha
        self.beta = beta
        self.T = T
        self.standardise = standardise

    def forward(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        if self.standardise:
            student = standardise(student)
            teacher = standardise(teacher)
        labels = batch.labels.clamp(min=0)  # for indexing; images without a label do not count
        binary_s, others_s = self.decoupled(student.logits, labels)
        binary_t, others_t = self.decoupled(teacher.logits, labels)
        tckd = F.kl_div(binary_s, binary_t, reduction="none", log_target=True).sum(1)  # b
        nckd = F.kl_div(others_s, others_t, reduction="none", log_target=True).sum(1)  # b
        tckd, nckd = (labelled_mean(values, batch.labels) for values in (tckd, nckd))
        return (self.alpha * tckd + self.beta * nckd) * self.T**2

    def decoupled(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Splits predictions (batch, classes) into two sets of log probabilities.

        Returns:
            (batch, 2): of the label's class, and of all other classes together.
            (batch, classes): of the other classes among themselves.
        """
        z = logits.float() / self.T  # b c
        others = non_target(z, labels)  # b c
        target = z.gather(1, labels[:, None])  # b 1
        binary = torch.cat([target, others.logsumexp(1, keepdim=True)], 1)  # b 2
        return F.log_softmax(binary, dim=1), F.log_softmax(others, dim=1)
