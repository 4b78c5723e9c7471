"""Knowledge distillation (Hinton, Vinyals, Dean, 2015)."""

import torch.nn.functional as F
from torch import Tensor

from kdnb.losses.base import Batch, Loss, Output


class KD(Loss, name="kd", method="ce:0.1 + kd:0.9"):
    """KL(teacher || student) of the predictions at temperature T, batch mean times T^2 (section 2).

    The weights of the method are those of RepDistiller's benchmark.

    Args:
        T: temperature of both networks' predictions.
    """

    teacher_outputs = frozenset({"logits"})
    same_classes = True

    def __init__(self, student: Output, teacher: Output, *, T: float = 4.0):
        super().__init__()
        self.T = T

    def forward(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        log_p_s = F.log_softmax(student.logits.float() / self.T, dim=1)  # b c
        log_p_t = F.log_softmax(teacher.logits.float() / self.T, dim=1)  # b c
        return F.kl_div(log_p_s, log_p_t, reduction="batchmean", log_target=True) * self.T**2
