"""Probabilistic knowledge transfer (Passalis, Tefas, ECCV 2018)."""

import torch
from torch import Tensor

from kdnb.losses.base import Batch, Loss, Output

EPS = 1e-7


def neighbours(output: Output) -> Tensor:
    """How probably each image has each as its neighbour, by the cosine of pooled features: (batch, batch)."""
    x = output.pooled.float()  # b c
    x = x / (x.norm(dim=1, keepdim=True) + EPS)
    similar = (x @ x.T + 1) / 2
    return similar / similar.sum(1, keepdim=True)


class PKT(Loss, name="pkt", method="ce + pkt:30000"):
    """KL(teacher || student) of the neighbours, itself included, mean over the pairs of a batch."""

    def forward(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        with torch.autocast(student.logits.device.type, enabled=False):  # it is what almost cancels
            p_s, p_t = neighbours(student), neighbours(teacher)
        return (p_t * ((p_t + EPS) / (p_s + EPS)).log()).mean()
