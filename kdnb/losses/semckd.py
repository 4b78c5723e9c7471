"""SemCKD (Chen, Mei, Zhang, Wang, Feng, Chen, Cross-Layer Distillation with Semantic Calibration,
AAAI 2021)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdnb.losses.base import Batch, Loss, Output, match_size


def relations(feat: Tensor, size: int) -> Tensor:
    """The inner products of the maps of a batch: (batch, channels, ...) -> (batch, size).

    Of more than `size` images, each part of so many is a batch. Of fewer, zeros fill the rows.
    """
    parts = feat.float().flatten(1).split(size)
    return torch.cat([F.pad(x @ x.T, (0, size - len(x))) for x in parts])


def embedding(in_features: int, dim: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(in_features, 2 * dim), nn.ReLU(), nn.Linear(2 * dim, dim))


def regressor(c_s: int, c_t: int) -> nn.Sequential:
    """Returns a network that predicts the teacher's map (c_t channels) from the student's (c_s)."""
    c_mid = 2 * c_t
    return nn.Sequential(
        nn.Conv2d(c_s, c_mid, 1, bias=False),
        nn.BatchNorm2d(c_mid),
        nn.ReLU(inplace=True),
        nn.Conv2d(c_mid, c_mid, 3, padding=1, bias=False),
        nn.BatchNorm2d(c_mid),
        nn.ReLU(inplace=True),
        nn.Conv2d(c_mid, c_t, 1, bias=False),
    )


def stage_ends(output: Output) -> list[int]:
    """Returns the index of the block that ends each stage of a network."""
    ends = []
    for stage in output.stages:
        # A WRN's stages are not its taps but the same maps before batch norm and ReLU.
        same_shape = [i for i, feat in enumerate(output.feats) if feat.shape == stage.shape]
        same = [i for i, feat in enumerate(output.feats) if feat is stage]
        ends.append((same or same_shape or [len(output.feats) - 1])[-1])
    return ends


def places(ends: list[int], blocks: int) -> Tensor:
    """Returns which of a number of blocks ends each stage, as 0 and 1: (blocks, stages)."""
    matrix = torch.zeros(blocks, len(ends))
    matrix[ends, range(len(ends))] = 1
    return matrix


class SemCKD(Loss, name="semckd", method="ce + kd + semckd:400"):
    """Attention-weighted distances between all student stages and all teacher stages (section 3).

    For each student stage, attention over the teacher stages decides which of them teaches it. A
    stage is the map of its last block, after the ReLU. It is described by the similarities that it
    sees among the images of a batch. Every pair of stages has a regressor from the student's map to
    the teacher's; maps of different sizes are compared at the smaller one.

    The description of a stage is as wide as a batch, so that the authors' code leaves out the last,
    smaller batch of an epoch. Here zeros stand for the images that it lacks. The attention of more
    images than a batch has is computed in parts.

    Running mean: "links", (T, S), the attention of the training images over the T blocks of the
    teacher and the S of the student. The columns of blocks that end a stage sum to 1, all other
    cells are 0.

    Args:
        batch_size: the number of images in a full batch.
        factor: the queries and keys have batch_size / factor values, but at least 2.
        soft: temperature of the attention.
    """

    needs_batch_size = True

    def __init__(
        self,
        student: Output,
        teacher: Output,
        batch_size: int,
        *,
        factor: int = 4,
        soft: float = 1.0,
    ):
        super().__init__()
        self.batch_size = batch_size
        self.soft = soft
        dim = max(2, batch_size // factor)  # of length 1, a single number could not be learned
        self.ends_s, self.ends_t = stage_ends(student), stage_ends(teacher)
        widths_s = [student.feats[i].shape[1] for i in self.ends_s]
        widths_t = [teacher.feats[i].shape[1] for i in self.ends_t]
        self.queries = nn.ModuleList(embedding(batch_size, dim) for _ in widths_s)
        self.keys = nn.ModuleList(embedding(batch_size, dim) for _ in widths_t)
        self.regressors = nn.ModuleList(
            nn.ModuleList(regressor(c_s, c_t) for c_t in widths_t) for c_s in widths_s
        )
        for name, ends, output in (("s", self.ends_s, student), ("t", self.ends_t, teacher)):
            matrix = places(ends, len(output.feats))
            self.register_buffer(f"places_{name}", matrix, persistent=False)
        self.register_running_mean("links", (len(teacher.feats), len(student.feats)))

    def attention(self, student: Output, teacher: Output) -> Tensor:
        """Attention of the student's blocks over the teacher's: (batch, T, S)."""
        return self.by_block(self.stage_attention(student, teacher))

    def by_block(self, attention: Tensor) -> Tensor:
        """Attention of stages, (batch, student, teacher), as that of blocks: (batch, T, S)."""
        return self.places_t @ attention.mT @ self.places_s.T

    def stage_attention(self, student: Output, teacher: Output) -> Tensor:
        """Attention of the student's stages over the teacher's: (batch, student, teacher).

        Its rows sum to 1.
        """
        with torch.autocast(student.logits.device.type, enabled=False):
            q = self.embed(self.queries, student, self.ends_s)  # b s d
            k = self.embed(self.keys, teacher, self.ends_t)  # b t d
            return F.softmax(q @ k.mT / self.soft, dim=2)

    def embed(self, embeddings: nn.ModuleList, output: Output, ends: list[int]) -> Tensor:
        """The embeddings of a network's stages, of length 1: (batch, stages, dim).

        ends: the index of the block that ends each stage.
        """
        rows = [relations(output.feats[i], self.batch_size) for i in ends]
        embedded = [f(x) for f, x in zip(embeddings, rows, strict=True)]
        return F.normalize(torch.stack(embedded, 1), dim=2)

    def distances(self, student: Output, teacher: Output) -> Tensor:
        """Mean squared errors of all regressors, per image: (batch, student, teacher stages)."""
        rows = []
        for regressors, i in zip(self.regressors, self.ends_s, strict=True):
            row = []
            for regress, j in zip(regressors, self.ends_t, strict=True):
                x_s, x_t = match_size(student.feats[i], teacher.feats[j])
                row.append((regress(x_s).float() - x_t).square().mean((1, 2, 3)))  # b
            rows.append(torch.stack(row, 1))
        return torch.stack(rows, 1)

    def forward(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        attention = self.stage_attention(student, teacher)  # b s t
        self.track("links", self.by_block(attention))
        return (attention * self.distances(student, teacher)).sum(2).mean()
