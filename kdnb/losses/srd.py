"""SRD (Miles, Mikolajczyk, Understanding the Role of the Projector in Knowledge Distillation,
AAAI 2024)."""

import torch
from torch import Tensor, nn

from kdnb.losses.base import Batch, Loss, Output


class SRD(Loss, name="srd", method="ce + kd(T=1) + srd:2"):
    """log(sum of |difference|^exponent) of the pooled features, both batch-normalised (section 3).

    The student's are projected linearly to the width of the teacher's first. The sum is over all
    values of a batch. Both batch norms are without weights and biases.

    Args:
        exponent: the power of the differences.
    """

    teacher_outputs = frozenset({"pooled"})

    def __init__(self, student: Output, teacher: Output, *, exponent: float = 4.0):
        super().__init__()
        self.exponent = exponent
        c_s, c_t = student.pooled.shape[1], teacher.pooled.shape[1]
        self.linear = nn.Linear(c_s, c_t)
        self.norm_s, self.norm_t = (nn.BatchNorm1d(c_t, eps=1e-4, affine=False) for _ in range(2))

    def forward(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        with torch.autocast(student.logits.device.type, enabled=False):
            x_s = self.norm_s(self.linear(student.pooled.float()))  # b d
            x_t = self.norm_t(teacher.pooled.float())  # b d
            distance = (x_s - x_t).abs().pow(self.exponent).sum()
            return distance.clamp(min=1e-12).log()  # 0 for features that are all constant
