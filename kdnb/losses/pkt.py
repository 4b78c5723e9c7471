"""Probabilistic knowledge transfer (Passalis, Tefas, ECCV 2018)."""

import torch
from torch import Tensor

from kdnb.losses.base import Batch, Loss, Output

EPS = 1e-7


def neighbours(output: Output) -> Tensor:
    """Probabilities that image j is a neighbour of image i: (batch, batch), rows sum to 1.

    They are proportional to the cosine similarity of pooled features, scaled to 0..1.
    """
    x = output.pooled.float()  # b c
    x = x / (x.norm(dim=1, keepdim=True) + EPS)
    similarities = (x @ x.T + 1) / 2  # b b
    return similarities / similarities.sum(1, keepdim=True)


class PKT(Loss, name="pkt", method="ce + pkt:30000"):
    """KL(teacher || student) of the neighbour probabilities: mean over all pairs of a batch.

    An image counts as its own neighbour, too.
    """

    teacher_outputs = frozenset({"pooled"})

    def forward(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        # In float32: the terms almost cancel.
        with torch.autocast(student.logits.device.type, enabled=False):
            p_s = neighbours(student)
            p_t = neighbours(teacher)
        return (p_t * ((p_t + EPS) / (p_s + EPS)).log()).mean()
