"""Refined logit distillation, RLD (Sun, Chen, Wang, Ye, Wang, 2024)."""

import torch
from torch import Tensor

from kdnb.losses.base import Batch, Loss, Output, divergences, labelled_mean
from kdnb.losses.lskd import standardise


def binary(z: Tensor, target: Tensor) -> Tensor:
    """Logits of a class, and of all others together: z (batch, classes) -> (batch, 2).

    target: the class of each image, (batch,).
    """
    one = z.gather(1, target[:, None])  # b 1
    others = z.scatter(1, target[:, None], float("-inf")).logsumexp(1, keepdim=True)  # b 1
    return torch.cat([one, others], 1)


class RLD(Loss, name="rld", method="ce + rld"):
    """alpha * SCD + beta * MCD, batch means of KL(teacher || student).

    Sample confidence distillation (SCD) compares the student's probability of the label with the
    teacher's of its likeliest class, whichever it is, each against all other classes together.
    Masked correlation distillation (MCD) compares the probabilities among those classes that the
    teacher finds less likely than the label, so that its mistakes are not taught.

    Args:
        alpha: weight of SCD.
        beta: weight of MCD.
        T: temperature of MCD, which is multiplied by T^2.
        alpha_T: temperature of SCD, which is multiplied by alpha_T^2.
        standardise: whether the logits are standardised first, as in LSKD.
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
        beta: float = 8.0,
        T: float = 4.0,
        alpha_T: float = 1.0,
        standardise: bool = False,
    ):
        super().__init__()
        self.alpha = alpha
        self.beta = beta
        self.T = T
        self.alpha_T = alpha_T
        self.standardise = standardise

    def forward(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        if self.standardise:
            student, teacher = standardise(student), standardise(teacher)
        z_s, z_t = student.logits.float(), teacher.logits.float()  # b c
        labels = batch.labels.clamp(min=0)  # for indexing; images without a label do not count
        confidence_s = binary(z_s / self.alpha_T, labels)  # b 2
        confidence_t = binary(z_t / self.alpha_T, z_t.argmax(1))  # b 2
        scd = divergences(confidence_s, confidence_t, 1.0) * self.alpha_T**2  # b
        is_masked = z_t >= z_t.gather(1, labels[:, None])  # b c
        masked_s, masked_t = (z.masked_fill(is_masked, -1e9) for z in (z_s, z_t))
        mcd = divergences(masked_s, masked_t, self.T) * self.T**2  # b
        scd, mcd = (labelled_mean(values, batch.labels) for values in (scd, mcd))
        return self.alpha * scd + self.beta * mcd
