"""Cross-entropy with the labels, the loss that every method contains."""

import torch.nn.functional as F
from torch import Tensor

from kdnb.losses.base import Batch, Loss, Output


class CE(Loss, name="ce"):
    """Cross-entropy of the student's predictions with the labels: batch mean, in nats."""

    needs_teacher = False

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Tensor:
        return F.cross_entropy(student.logits.float(), batch.labels)
