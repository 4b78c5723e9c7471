"""Normalised knowledge distillation, NKD (Yang, Zeng, Li, Zhang, Yuan, Li, ICCV 2023)."""

import torch.nn.functional as F
from torch import Tensor

from kdnb.losses.base import Batch, Loss, Output, labelled_mean
from kdnb.losses.dkd import non_target


class NKD(Loss, name="nkd", method="ce + nkd"):
    """Cross-entropy with the teacher's predictions, split into target and other classes.

    The target part, -p_t * log p_s of the label's class, is taken at temperature 1. To it is added
    gamma * T^2 times the cross-entropy of the other classes, whose probabilities are normalised to
    sum to 1. Batch mean.

    Args:
        T: temperature of the other classes; 3 for CIFAR-100, 1 for ImageNet in the paper.
        gamma: weight of the other classes; 3.5 for CIFAR-100, 1.5 for ImageNet in the paper.
    """

    teacher_outputs = frozenset({"logits"})
    same_classes = True
    needs_labels = True
    may_be_zero = frozenset({"gamma"})

    def __init__(self, student: Output, teacher: Output, *, T: float = 3.0, gamma: float = 3.5):
        super().__init__()
        self.T = T
        self.gamma = gamma

    def forward(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        z_s = student.logits.float()  # b c
        z_t = teacher.logits.float()  # b c
        labels = batch.labels.clamp(min=0)  # for indexing; images without a label do not count
        log_p_s = F.log_softmax(z_s, dim=1).gather(1, labels[:, None])  # b 1
        p_t = F.softmax(z_t, dim=1).gather(1, labels[:, None])  # b 1
        others_s = non_target(z_s / self.T, labels)  # b c
        others_t = non_target(z_t / self.T, labels)  # b c
        others = F.cross_entropy(others_s, F.softmax(others_t, dim=1), reduction="none")  # b
        target = labelled_mean((p_t * log_p_s)[:, 0], batch.labels)
        return self.gamma * self.T**2 * labelled_mean(others, batch.labels) - target
