"""Knowledge distillation (Hinton, Vinyals, Dean, 2015)."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from kdnb.losses.base import Batch, Loss, Output


class KD(Loss, name="kd", method="ce:0.1 + kd:0.9"):
    """KL(teacher || student) of the predictions at temperature T, batch mean times T^2 (section 2).

    The weights of the method are those of RepDistiller's benchmark.

    Args:
        T: temperature of both networks' predictions.
        ensemble: whether several teachers teach the mean of their predictions at temperature T, in
            place of a loss for each of them.
    """

    teacher_outputs = frozenset({"logits"})
    same_classes = True

    def __init__(self, student: Output, teacher: Output, *, T: float = 4.0, ensemble: bool = False):
        super().__init__()
        self.T = T
        self.takes_all_teachers = ensemble

    def log_prediction(self, output: Output) -> Tensor:
        return F.log_softmax(output.logits.float() / self.T, dim=1)  # b c

    def forward(self, student: Output, teacher: Output | Sequence[Output], batch: Batch) -> Tensor:
        log_p_s = self.log_prediction(student)
        if self.takes_all_teachers:
            log_p = torch.stack([*map(self.log_prediction, teacher)])  # k b c
            log_p_t = log_p.logsumexp(0) - math.log(len(teacher))
        else:
            log_p_t = self.log_prediction(teacher)
        return F.kl_div(log_p_s, log_p_t, reduction="batchmean", log_target=True) * self.T**2
