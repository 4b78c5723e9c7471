"""Logit standardisation in knowledge distillation (Sun, Ren, Li, Wang, Cao, CVPR 2024)."""

from torch import Tensor

from kdnb.losses.base import Batch, Output
from kdnb.losses.kd import KD


def standardise(output: Output) -> Output:
    """Returns the Output with each image's logits at mean 0 and standard deviation 1 (Z-scores)."""
    logits = output.logits.float()
    centred = logits - logits.mean(1, keepdim=True)  # b c
    return output._replace(logits=centred / (1e-7 + logits.std(1, keepdim=True)))


class LSKD(KD, name="lskd", method="ce:0.1 + lskd:9"):
    """KD of standardised logits, so that the student need not match the scale of the teacher's.

    Args:
        T: temperature of the standardised logits.
    """

    def __init__(self, student: Output, teacher: Output, *, T: float = 2.0):
        super().__init__(student, teacher, T=T)

    def forward(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        return super().forward(standardise(student), standardise(teacher), batch)
