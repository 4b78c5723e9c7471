"""Attention-based feature distillation (Ji, Heo, Park, Show, Attend and Distill, AAAI 2021)."""

import math
from collections.abc import Sequence
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdnb.losses.base import Batch, Loss, Output


class Statistics(torch.autograd.Function):
    """What AFD looks at of a map (batch, channels, height, width).

    Channel energy, the channel mean of the squares (batch, height, width), and global average (batch, channels), both
    handed on as float32; the sums are as exact as the map's own type. One function, because autograd would write three
    more maps for what is one pass: the gradient is a * feat + b.
    """

    @staticmethod
    def forward(ctx, feat: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(feat)
        return feat.square().sum(1).float() / feat.shape[1], feat.sum((2, 3)).float() / feat[
            0, 0
        ].numel()

    @staticmethod
    def backward(ctx, of_energy: Tensor, of_average: Tensor) -> Tensor:
        (feat,) = ctx.saved_tensors
        a = (of_energy * (2 / feat.shape[1])).to(feat.dtype)[:, None]  # b 1 h w
        b = (of_average / feat[0, 0].numel()).to(feat.dtype)[:, :, None, None]  # b c 1 1
        return torch.addcmul(b, feat, a)


def energy(feat: Tensor) -> Tensor:
    """Channel mean of the squares: (batch, channels, height, width) -> (batch, height, width), float32."""
    return Statistics.apply(feat)[0]


def projection(in_features: int, out_features: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(in_features, out_features), nn.BatchNorm1d(out_features))


class AFD(Loss, name="afd", method="ce + kd:0.9 + afd:200"):
    """For every teacher map t, attention over the student maps s says how strongly s should imitate t; both are
    compared by their normalised channel energy (section 3). Its parameters train with the student's.

    qk_dim: the size of queries and keys. Running mean: links (T, S), the attention of the training images.
    """

    def __init__(self, student: Output, teacher: Output, *, qk_dim: int = 128):
        super().__init__()
        self.qk_dim = qk_dim
        T, S = len(teacher.feats), len(student.feats)
        self.queries = nn.ModuleList(projection(f.shape[1], qk_dim) for f in teacher.feats)
        self.keys = nn.ModuleList(
            projection(f.shape[1], qk_dim).append(nn.ReLU()) for f in student.feats
        )
        self.bilinear = projection(qk_dim, qk_dim * T)
        self.p_t = nn.Parameter(nn.init.xavier_normal_(torch.empty(T, qk_dim)))
        self.p_s = nn.Parameter(nn.init.xavier_normal_(torch.empty(S, qk_dim)))
        self.register_running_mean("links", (T, S))

    def attention(self, student: Output, teacher: Output) -> Tensor:
        """Which student map each teacher map teaches: (batch, T, S), rows sum to one (eq. 1 to 3)."""
        return self._attention(
            *([Statistics.apply(h)[1] for h in output.feats] for output in (student, teacher))
        )

    def distances(self, student: Output, teacher: Output) -> Tensor:
        """Mean squared difference of the normalised energies of every pair of maps: (batch, T, S) (eq. 4 and 5)."""
        return self._distances(
            *([energy(h) for h in output.feats] for output in (student, teacher))
        )

    def _attention(
        self, student: Sequence[Tensor], teacher: Sequence[Tensor]
    ) -> Tensor:  # averages, each b c
        T, S, d = len(self.p_t), len(self.p_s), self.qk_dim
        q = torch.stack([f(h) for f, h in zip(self.queries, teacher, strict=True)], 1)  # b t d
        k = torch.stack([f(h) for f, h in zip(self.keys, student, strict=True)], 1)  # b s d
        K = self.bilinear(k.flatten(0, 1)).view(-1, S, T, d)  # b s t d
        scores = (
            (K.float() * q.float()[:, None]).sum(-1).mT
        )  # b t s; in float32 also under autocast, as the softmax is
        return F.softmax((scores + self.p_t @ self.p_s.T) / math.sqrt(d), dim=-1)

    @staticmethod
    def _distances(
        student: Sequence[Tensor], teacher: Sequence[Tensor]
    ) -> Tensor:  # energies, each b h w
        rows = []
        for size, group in groupby(
            teacher, key=lambda e: e.shape[1:]
        ):  # all teacher maps of one size at once
            m_t = F.normalize(torch.stack([*group], 1).flatten(2), dim=2)  # b t hw
            resized = [
                e if e.shape[1:] == size else F.adaptive_avg_pool2d(e, size) for e in student
            ]
            m_s = F.normalize(torch.stack(resized, 1).flatten(2), dim=2)  # b s hw
            with torch.autocast(
                m_t.device.type, enabled=False
            ):  # a small difference of large terms: in float32
                dots = m_t @ m_s.mT  # b t s
            # |m_t - m_s|^2 without a T x S stack of difference maps; the squares are 1, or 0 where a map is.
            squares = m_t.square().sum(-1)[:, :, None] + m_s.square().sum(-1)[:, None, :]
            rows.append((squares - 2 * dots) / m_t.shape[-1])
        return torch.cat(rows, 1)

    def forward(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        e_s, v_s = zip(*map(Statistics.apply, student.feats), strict=True)
        e_t, v_t = zip(*map(Statistics.apply, teacher.feats), strict=True)
        a = self._attention(v_s, v_t)  # b t s
        self.track("links", a)
        return (a * self._distances(e_s, e_t)).sum((1, 2)).mean()
