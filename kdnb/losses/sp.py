"""Similarity-preserving knowledge distillation (Tung, Mori, ICCV 2019)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from kdnb.losses.base import Batch, Loss, Output


def similarities(output: Output) -> Tensor:
    """Dot products of the last stage of all pairs of images: (batch, batch), rows of length 1."""
    rows = output.stages[-1].float().flatten(1)  # b chw
    return F.normalize(rows @ rows.T)


class SP(Loss, name="sp", method="ce + sp:3000"):
    """Mean squared difference of the similarities that student and teacher see in a batch."""

    def forward(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        with torch.autocast(student.logits.device.type, enabled=False):
            return F.mse_loss(similarities(student), similarities(teacher))
