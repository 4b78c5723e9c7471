"""Contrastive representation distillation (Tian, Krishnan, Isola, ICLR 2020)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdnb.errors import InputError
from kdnb.losses.base import Batch, Loss, Output, labelled_mean
from kdnb.losses.random_numbers import RandomNumbers

EPS = 1e-7


class CRD(Loss, name="crd", method="ce + crd:0.8"):
    """Noise-contrastive estimation between the pooled features of student and teacher (section 3).

    Both networks' features are embedded and normalised. Each network has a memory of the embeddings
    of all training images. An image's embedding from one network has to be closer to the image's
    row in the other network's memory than to the rows of K images of other classes. An image
    without a label is neither compared nor a negative.

    Args:
        dim: size of the embeddings.
        K: number of negatives, drawn anew for each image in each step. They are drawn with
            replacement if a class has fewer than K images outside of it.
        T: temperature that the similarities are divided by.
        momentum: share of the old value in a memory row when its image is seen again.
    """

    teacher_outputs = frozenset({"pooled"})
    needs_labels = True
    may_be_zero = frozenset({"momentum"})

    def __init__(
        self,
        *examples: Output,
        dim: int = 128,
        K: int = 16384,
        T: float = 0.07,
        momentum: float = 0.5,
    ):
        super().__init__()
        self.dim = dim
        self.K = K
        self.T = T
        self.momentum = momentum
        self.embed_s, self.embed_t = (nn.Linear(output.pooled.shape[1], dim) for output in examples)
        self.random = RandomNumbers()
        self.register_buffer("labels", None)

    def setup(self, labels: Tensor) -> None:
        """Fills the memories with random rows. Raises InputError if there is only one class."""
        labels_given = labels[labels >= 0]
        fewest_negatives = len(labels_given) - int(labels_given.bincount(minlength=1).max())
        if not fewest_negatives:
            raise InputError(
                "crd contrasts images of different classes, and all training images are of one: "
                "choose another loss"
            )
        self.replacement = fewest_negatives < self.K
        self.n = len(labels_given)  # images that a negative may be
        self.register_buffer("labels", labels.clone())
        bound = 1 / math.sqrt(self.dim / 3)
        for network in "st":
            memory = torch.empty(len(labels), self.dim).uniform_(-bound, bound)
            self.register_buffer(f"memory_{network}", memory)
            self.register_buffer(f"Z_{network}", torch.tensor(-1.0))  # unknown until the first step

    def forward(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        if self.labels is None or batch.index is None:
            raise InputError(
                "crd has a memory of the training images: it needs all of their labels before the "
                "first batch, and the index of each batch"
            )
        # b 1+k: the image itself, then its negatives
        indices = torch.cat([batch.index[:, None], self.negatives(batch.labels)], 1)
        return self.contrast(student.pooled, teacher.pooled, batch.index, indices)

    def negatives(self, labels: Tensor) -> Tensor:
        """Draws indices of training images of other classes: labels (batch,) -> (batch, K)."""
        is_negative = (self.labels != labels[:, None]) & (self.labels >= 0)  # b n
        if self.replacement:
            counts = is_negative.cumsum(1, dtype=torch.float32)
            draws = self.random.uniform(len(labels), self.K) * counts[:, -1:]
            return torch.searchsorted(counts, draws, right=True)
        keys = self.random.uniform(*is_negative.shape).masked_fill_(~is_negative, -1)
        return keys.topk(self.K, sorted=False).indices

    def contrast(self, student: Tensor, teacher: Tensor, index: Tensor, indices: Tensor) -> Tensor:
        """Returns the loss of a batch and, in train mode, updates the memories.

        Args:
            student: the student's pooled features, (batch, channels).
            teacher: the teacher's, (batch, channels).
            index: indices of the batch's images in the training set, (batch,).
            indices: `index` and, after it, those of the negatives, (batch, 1 + K).
        """
        with torch.autocast(student.device.type, enabled=False):
            e_s = F.normalize(self.embed_s(student.float()))  # b d
            e_t = F.normalize(self.embed_t(teacher.float()))  # b d
            labels = self.labels[index]
            loss_s = self.nce(e_s, self.memory_t, self.Z_s, indices, labels)
            loss_t = self.nce(e_t, self.memory_s, self.Z_t, indices, labels)
        if self.training:
            # An image with two views has two embeddings: its row gets the first, in either place,
            # because which of two different ones is written last is not defined.
            first = (index[:, None] == index).int().argmax(1)
            for memory, e in ((self.memory_s, e_s), (self.memory_t, e_t)):
                rows = self.momentum * memory[index] + (1 - self.momentum) * e.detach()[first]
                memory.index_copy_(0, index, F.normalize(rows))
        return loss_s + loss_t

    def nce(self, e: Tensor, memory: Tensor, Z: Tensor, indices: Tensor, labels: Tensor) -> Tensor:
        """Noise-contrastive estimation of one network's embeddings against the other's memory.

        Args:
            e: embeddings, (batch, dim).
            memory: the other network's memory, (n, dim).
            Z: normalisation constant, a scalar buffer; it is set in the first training step.
            indices: rows of the memory to compare with, (batch, 1 + K), the positive one first.
            labels: the labels of the batch, (batch,).
        """
        noise = (indices.shape[1] - 1) / self.n
        # All n products cost less than a copy of K + 1 rows per image. The memory itself is copied
        # because its rows change before the backward pass.
        u = (e @ memory.clone().T / self.T).gather(1, indices).exp()  # b 1+k
        constant = torch.where(Z < 0, u.detach().mean() * self.n, Z)
        if self.training:
            Z.copy_(constant)
        u = u / constant
        positive = u[:, 0] / (u[:, 0] + noise + EPS)
        negative = noise / (u[:, 1:] + noise + EPS)
        return -(
            labelled_mean(positive.log(), labels) + labelled_mean(negative.log().sum(1), labels)
        )
