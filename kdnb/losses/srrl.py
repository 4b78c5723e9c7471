"""SRRL (Yang, Martinez, Bulat, Tzimiropoulos, Knowledge Distillation via Softmax Regression
Representation Learning, ICLR 2021)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdnb.errors import InputError
from kdnb.losses.base import Batch, Loss, Output


class SRRL(Loss, name="srrl", method="ce + kd + srrl"):
    """Mean squared errors of features and of what the teacher's classifier makes of them.

    The student's pooled features are projected to the width of the teacher's. They have to equal
    these, and give the teacher's logits when the teacher's classifier is applied to them
    (section 3).

    Raises InputError for a teacher without a classifier.
    """

    teacher_outputs = frozenset({"logits", "pooled"})
    needs_classifiers = True

    def __init__(self, student: Output, teacher: Output):
        super().__init__()
        if not teacher.logits.shape[1]:
            raise InputError("srrl needs the teacher's classifier, and this teacher has none")
        c_s, c_t = student.pooled.shape[1], teacher.pooled.shape[1]
        self.transfer = nn.Sequential(
            nn.Linear(c_s, c_t, bias=False), nn.BatchNorm1d(c_t), nn.ReLU(inplace=True)
        )

    def forward(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        with torch.autocast(student.logits.device.type, enabled=False):
            x = self.transfer(student.pooled.float())  # b d
            classifier = self.classifiers.teacher
            bias = None if classifier.bias is None else classifier.bias.detach()
            logits = F.linear(x, classifier.weight.detach(), bias)  # b c
            features = F.mse_loss(x, teacher.pooled.float())
            return features + F.mse_loss(logits, teacher.logits.float())
