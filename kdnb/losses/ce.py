"""Cross-entropy with the labels: what every student learns from, with a teacher or without."""

import torch.nn.functional as F
from torch import Tensor

from kdnb.losses.base import Batch, Loss, Output


class CE(Loss, name="ce"):
    """The mean over the batch, in nats."""

    needs_teacher = False

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Tensor:
        return F.cross_entropy(student.logits.float(), batch.labels)
