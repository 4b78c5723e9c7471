"""Cross-entropy with the labels, the loss that every method contains."""

import torch.nn.functional as F
from torch import Tensor

from kdnb.losses.base import Batch, Loss, Output, labelled_mean


class CE(Loss, name="ce"):
    """Cross-entropy of the student's predictions with the labels: mean of the batch, in nats.

    With `label_smoothing` or `mix` the labels are the probabilities in `batch.targets`.
    """

    needs_teacher = False
    needs_labels = True

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Tensor:
        logits = student.logits.float()
        if batch.targets is None:
            values = F.cross_entropy(logits, batch.labels, ignore_index=-1, reduction="none")  # b
        else:
            values = F.cross_entropy(logits, batch.targets, reduction="none")
        return labelled_mean(values, batch.labels)
