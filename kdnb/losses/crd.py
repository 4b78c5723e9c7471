"""Contrastive representation distillation (Tian, Krishnan, Isola, ICLR 2020)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdnb.errors import InputError
from kdnb.losses.base import Batch, Loss, Output

EPS = 1e-7


class CRD(Loss, name="crd", method="ce + crd:0.8"):
    """An image's embedded pooled features shall be told from those of K images of other classes by what the other
    network made of them, which two memories hold (section 3). The student learns from the half that embeds its own.

    dim: the size of the embeddings. K: negatives, drawn anew for each image in each step; with replacement if there are
    not as many outside of a class. T: temperature. momentum: how much of a memory's row stays when its image is seen.
    """

    def __init__(
        self,
        *examples: Output,
        dim: int = 128,
        K: int = 16384,
        T: float = 0.07,
        momentum: float = 0.5,
    ):
        super().__init__()
        self.dim, self.K, self.T, self.momentum = dim, K, T, momentum
        self.embed_s, self.embed_t = (nn.Linear(output.pooled.shape[1], dim) for output in examples)
        self.register_buffer("labels", None)

    def setup(self, labels: Tensor) -> None:
        others = len(labels) - int(labels.bincount().max())
        if not others:
            raise InputError(
                "crd tells images of different classes apart, and all of these are of one: choose another"
            )
        self.replacement = others < self.K
        self.register_buffer("labels", labels.clone())
        bound = 1 / math.sqrt(self.dim / 3)
        for side in "st":
            self.register_buffer(
                f"memory_{side}", torch.empty(len(labels), self.dim).uniform_(-bound, bound)
            )
            self.register_buffer(f"Z_{side}", torch.tensor(-1.0))  # not known yet

    def forward(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        if self.labels is None or batch.index is None:
            raise InputError(
                "crd remembers training images: it needs all labels beforehand, and each batch's index"
            )
        places = torch.cat([batch.index[:, None], self.negatives(batch.labels)], 1)  # b 1+k
        return self.contrast(student.pooled, teacher.pooled, batch.index, places)

    def negatives(self, labels: Tensor) -> Tensor:
        """Random places of images of other classes than each of these labels: (batch,) -> (batch, K)."""
        other = self.labels != labels[:, None]  # b n
        if self.replacement:
            counted = other.cumsum(1, dtype=torch.float32)
            draws = torch.rand(len(labels), self.K, device=labels.device) * counted[:, -1:]
            return torch.searchsorted(counted, draws, right=True)
        keys = torch.rand(other.shape, device=labels.device).masked_fill(~other, -1)
        return keys.topk(self.K, sorted=False).indices

    def contrast(self, student: Tensor, teacher: Tensor, index: Tensor, places: Tensor) -> Tensor:
        """The loss of pooled features (batch, channels) of the images index (batch,), against what is remembered of the
        images places (batch, 1 + K), the first of which they are themselves."""
        with torch.autocast(student.device.type, enabled=False):
            e_s, e_t = (
                F.normalize(self.embed_s(student.float())),
                F.normalize(self.embed_t(teacher.float())),
            )  # b d
            loss = self.half(e_s, self.memory_t, self.Z_s, places) + self.half(
                e_t, self.memory_s, self.Z_t, places
            )
        if self.training:
            for memory, e in ((self.memory_s, e_s), (self.memory_t, e_t)):
                rows = self.momentum * memory[index] + (1 - self.momentum) * e.detach()
                memory.index_copy_(0, index, F.normalize(rows))
        return loss

    def half(self, e: Tensor, memory: Tensor, Z: Tensor, places: Tensor) -> Tensor:
        """Noise-contrastive estimation: embeddings (batch, dim) of one network against the other's memory (n, dim)."""
        n, c = len(memory), (places.shape[1] - 1) / len(memory)
        # All products are much less than K + 1 copied rows an image; one copy, because the rows change after this.
        u = (e @ memory.clone().T / self.T).gather(1, places).exp()  # b 1+k
        known = torch.where(Z < 0, u.detach().mean() * n, Z)  # from the first batch on
        if self.training:
            Z.copy_(known)
        u = u / known
        own, others = u[:, 0] / (u[:, 0] + c + EPS), c / (u[:, 1:] + c + EPS)
        return -(own.log().mean() + others.log().sum(1).mean())
