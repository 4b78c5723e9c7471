"""Attention-based feature distillation (Ji, Heo, Park, Show, Attend and Distill, AAAI 2021)."""

import math
from collections.abc import Sequence
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdnb.losses.base import Batch, Loss, Output, average_pool


class Statistics(torch.autograd.Function):
    """The two statistics of a feature map that AFD reads, computed in one pass.

    Input: a map (batch, channels, height, width). Outputs, in float32 but summed in the map's own
    type: the channel energy, which is the mean square over the channels, (batch, height, width);
    and the global average, (batch, channels).

    Autograd would write three maps of intermediate gradients. Here the gradient is a * feat + b.
    """

    @staticmethod
    def forward(ctx, feat: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(feat)
        channels = feat.shape[1]
        pixels = feat[0, 0].numel()
        return feat.square().sum(1).float() / channels, feat.sum((2, 3)).float() / pixels

    @staticmethod
    def backward(ctx, grad_energy: Tensor, grad_average: Tensor) -> Tensor:
        (feat,) = ctx.saved_tensors
        a = (grad_energy * (2 / feat.shape[1])).to(feat.dtype)[:, None]  # b 1 h w
        b = (grad_average / feat[0, 0].numel()).to(feat.dtype)[:, :, None, None]  # b c 1 1
        return torch.addcmul(b, feat, a)


def energy(feat: Tensor) -> Tensor:
    """The mean square over the channels, in float32: (b, c, h, w) -> (b, h, w)."""
    return Statistics.apply(feat)[0]


def projection(in_features: int, out_features: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(in_features, out_features), nn.BatchNorm1d(out_features))


class AFD(Loss, name="afd", method="ce + kd:0.9 + afd:200"):
    """Attention-weighted distances between all teacher maps and all student maps (section 3).

    For each of the T teacher maps, attention over the S student maps decides which of them imitate
    it. Maps are compared by their normalised channel energy. The parameters of the attention are
    trained together with the student's.

    Running mean: "links", (T, S), the attention of the training images.

    Args:
        qk_dim: size of the queries (of teacher maps) and keys (of student maps).
    """

    def __init__(self, student: Output, teacher: Output, *, qk_dim: int = 128):
        super().__init__()
        self.qk_dim = qk_dim
        T, S = len(teacher.feats), len(student.feats)
        self.queries = nn.ModuleList(projection(h.shape[1], qk_dim) for h in teacher.feats)
        self.keys = nn.ModuleList(
            projection(h.shape[1], qk_dim).append(nn.ReLU()) for h in student.feats
        )
        self.bilinear = projection(qk_dim, qk_dim * T)
        self.p_t = nn.Parameter(nn.init.xavier_normal_(torch.empty(T, qk_dim)))
        self.p_s = nn.Parameter(nn.init.xavier_normal_(torch.empty(S, qk_dim)))
        self.register_running_mean("links", (T, S))

    def attention(self, student: Output, teacher: Output) -> Tensor:
        """Attention of the teacher maps over the student maps: (batch, T, S) (eq. 1 to 3).

        Its rows sum to 1.
        """
        averages_s = [Statistics.apply(h)[1] for h in student.feats]
        averages_t = [Statistics.apply(h)[1] for h in teacher.feats]
        return self._attention(averages_s, averages_t)

    @classmethod
    def distances(cls, student: Output, teacher: Output) -> Tensor:
        """Mean squared differences of the normalised energies of all pairs of maps (eq. 4 and 5).

        Returns (batch, T, S).
        """
        return cls._distances([*map(energy, student.feats)], [*map(energy, teacher.feats)])

    def _attention(self, averages_s: Sequence[Tensor], averages_t: Sequence[Tensor]) -> Tensor:
        """The attention of global averages, each (batch, channels)."""
        T, S, d = len(self.p_t), len(self.p_s), self.qk_dim
        q = torch.stack([f(h) for f, h in zip(self.queries, averages_t, strict=True)], 1)  # b t d
        k = torch.stack([f(h) for f, h in zip(self.keys, averages_s, strict=True)], 1)  # b s d
        K = self.bilinear(k.flatten(0, 1)).view(-1, S, T, d)  # b s t d
        # In float32 also under autocast, as the softmax is.
        scores = (K.float() * q.float()[:, None]).sum(-1).mT  # b t s
        return F.softmax((scores + self.p_t @ self.p_s.T) / math.sqrt(d), dim=-1)

    @staticmethod
    def _distances(energies_s: Sequence[Tensor], energies_t: Sequence[Tensor]) -> Tensor:
        """The distances of channel energies, each (batch, height, width)."""
        rows = []
        # Neighbouring teacher maps of one size share the resized student maps.
        for size, group in groupby(energies_t, key=lambda e: e.shape[1:]):
            m_t = F.normalize(torch.stack([*group], 1).flatten(2), dim=2)  # b t hw
            resized = [average_pool(e, size) for e in energies_s]
            m_s = F.normalize(torch.stack(resized, 1).flatten(2), dim=2)  # b s hw
            # In float32: the distance is a small difference of large terms.
            with torch.autocast(m_t.device.type, enabled=False):
                dots = m_t @ m_s.mT  # b t s
            # |m_t - m_s|^2 without T x S difference maps. The squares are 1, or 0 for a zero map.
            squares = m_t.square().sum(-1)[:, :, None] + m_s.square().sum(-1)[:, None, :]
            rows.append((squares - 2 * dots) / m_t.shape[-1])
        return torch.cat(rows, 1)

    def forward(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        energies_s, averages_s = zip(*map(Statistics.apply, student.feats), strict=True)
        energies_t, averages_t = zip(*map(Statistics.apply, teacher.feats), strict=True)
        attention = self._attention(averages_s, averages_t)  # b t s
        self.track("links", attention)
        return (attention * self._distances(energies_s, energies_t)).sum((1, 2)).mean()
