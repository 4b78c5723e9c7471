"""Distillation losses. Each is built from one example Output per network and called with (student, teacher) Outputs.

Gradients never reach the teacher: the Distiller computes its Output without them. A new loss is a class of that form
in `LOSSES`; one whose teacher must share the student's classes says so with `needs_same_classes`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdnb.models import Output

__all__ = ["AFD", "AT", "KD", "LOSSES", "FitNet", "energy", "kd_loss"]


def kd_loss(student: Tensor, teacher: Tensor, temperature: float = 4.0) -> Tensor:
    """KL(teacher/T || student/T) * T^2, batch mean (Hinton, Vinyals, Dean, 2015). Logits (batch, classes) -> scalar."""
    log_p_s = F.log_softmax(student.float() / temperature, dim=1)
    log_p_t = F.log_softmax(teacher.float() / temperature, dim=1)
    return F.kl_div(log_p_s, log_p_t, reduction="batchmean", log_target=True) * temperature**2


class KD(nn.Module):
    """Soft targets (Hinton, Vinyals, Dean, 2015)."""

    needs_same_classes = True

    def __init__(self, student: Output, teacher: Output, temperature: float = 4.0):
        super().__init__()
        self.temperature = temperature

    def forward(self, student: Output, teacher: Output) -> Tensor:
        return kd_loss(student.logits, teacher.logits, self.temperature)


class Statistics(torch.autograd.Function):
    """What AFD looks at of a map (batch, channels, height, width), both float32.

    Channel energy, the channel mean of the squares (batch, height, width), and global average (batch, channels). One
    function, because autograd would write three more maps for what is one pass: the gradient is a * feat + b.
    """

    @staticmethod
    def forward(ctx, feat: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(feat)
        return feat.square().sum(1).float() / feat.shape[1], feat.sum((2, 3)).float() / feat[0, 0].numel()

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


class AFD(nn.Module):
    """Attention-based feature distillation (Ji, Heo, Park, AAAI 2021, section 3).

    For every teacher map t, attention over the student maps s says how strongly s should imitate t; both are compared
    by their normalised channel energy. Built from one example Output of each network.

    Its parameters train with the student's. `links` sums the attention of every training image since it was last
    zeroed, (T, S), `seen` counts those images: their quotient is the mean link matrix, at no extra pass.
    """

    needs_same_classes = False

    def __init__(self, student: Output, teacher: Output, qk_dim: int = 128):
        super().__init__()
        self.qk_dim = qk_dim
        T, S = len(teacher.feats), len(student.feats)
        self.queries = nn.ModuleList(projection(f.shape[1], qk_dim) for f in teacher.feats)
        self.keys = nn.ModuleList(projection(f.shape[1], qk_dim).append(nn.ReLU()) for f in student.feats)
        self.bilinear = projection(qk_dim, qk_dim * T)
        self.p_t = nn.Parameter(nn.init.xavier_normal_(torch.empty(T, qk_dim)))
        self.p_s = nn.Parameter(nn.init.xavier_normal_(torch.empty(S, qk_dim)))
        self.register_buffer("links", torch.zeros(T, S), persistent=False)
        self.register_buffer("seen", torch.zeros(()), persistent=False)

    def attention(self, student: Output, teacher: Output) -> Tensor:
        """Which student map each teacher map teaches: (batch, T, S), rows sum to one (eq. 1 to 3)."""
        return self._attention(*([Statistics.apply(h)[1] for h in output.feats] for output in (student, teacher)))

    def distances(self, student: Output, teacher: Output) -> Tensor:
        """Mean squared difference of the normalised energies of every pair of maps: (batch, T, S) (eq. 4 and 5)."""
        return self._distances(*([energy(h) for h in output.feats] for output in (student, teacher)))

    def _attention(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:  # averages, each b c
        T, S, d = len(self.p_t), len(self.p_s), self.qk_dim
        q = torch.stack([f(h) for f, h in zip(self.queries, teacher, strict=True)], 1)  # b t d
        k = torch.stack([f(h) for f, h in zip(self.keys, student, strict=True)], 1)  # b s d
        K = self.bilinear(k.flatten(0, 1)).view(-1, S, T, d)  # b s t d
        scores = (K.float() * q.float()[:, None]).sum(-1).mT  # b t s; in float32 also under autocast, as the softmax is
        return F.softmax((scores + self.p_t @ self.p_s.T) / math.sqrt(d), dim=-1)

    @staticmethod
    def _distances(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:  # energies, each b h w
        rows = []
        for size, group in groupby(teacher, key=lambda e: e.shape[1:]):  # all teacher maps of one size at once
            m_t = F.normalize(torch.stack([*group], 1).flatten(2), dim=2)  # b t hw
            resized = [e if e.shape[1:] == size else F.adaptive_avg_pool2d(e, size) for e in student]
            m_s = F.normalize(torch.stack(resized, 1).flatten(2), dim=2)  # b s hw
            with torch.autocast(m_t.device.type, enabled=False):  # a small difference of large terms: in float32
                dots = m_t @ m_s.mT  # b t s
            # |m_t - m_s|^2 without a T x S stack of difference maps; the squares are 1, or 0 where a map is.
            squares = m_t.square().sum(-1)[:, :, None] + m_s.square().sum(-1)[:, None, :]
            rows.append((squares - 2 * dots) / m_t.shape[-1])
        return torch.cat(rows, 1)

    def forward(self, student: Output, teacher: Output) -> Tensor:
        e_s, v_s = zip(*map(Statistics.apply, student.feats), strict=True)
        e_t, v_t = zip(*map(Statistics.apply, teacher.feats), strict=True)
        a = self._attention(v_s, v_t)  # b t s
        if self.training:
            self.links += a.detach().sum(0)
            self.seen += len(a)
        return (a * self._distances(e_s, e_t)).sum((1, 2)).mean()


def evenly(teacher: Output, student: Output) -> list[tuple[Tensor, Tensor]]:
    """Pairs (student map, teacher map) at equal relative depth, one per student map: what one links by hand."""
    S, T = len(student.feats), len(teacher.feats)
    return [(h, teacher.feats[max((s + 1) * T // S, 1) - 1]) for s, h in enumerate(student.feats)]


class AT(nn.Module):
    """Attention transfer (Zagoruyko and Komodakis, ICLR 2017): normalised energies of maps at equal relative depth."""

    needs_same_classes = False

    def __init__(self, student: Output, teacher: Output):
        super().__init__()

    def forward(self, student: Output, teacher: Output) -> Tensor:
        total = student.logits.new_zeros((), dtype=torch.float32)
        for h_s, h_t in evenly(teacher, student):
            m_s = F.normalize(F.adaptive_avg_pool2d(energy(h_s), h_t.shape[2:]).flatten(1), dim=1)
            m_t = F.normalize(energy(h_t).flatten(1), dim=1)
            total = total + (m_s - m_t).square().mean()
        return total


class FitNet(nn.Module):
    """Hints (Romero et al., ICLR 2015): a 1x1 convolution of the student's middle map imitates the teacher's."""

    needs_same_classes = False

    def __init__(self, student: Output, teacher: Output):
        super().__init__()
        h_s, h_t = self.middle(student, teacher)
        self.regressor = nn.Sequential(
            nn.Conv2d(h_s.shape[1], h_t.shape[1], 1), nn.BatchNorm2d(h_t.shape[1]), nn.ReLU()
        )

    @staticmethod
    def middle(student: Output, teacher: Output) -> tuple[Tensor, Tensor]:
        pairs = evenly(teacher, student)
        return pairs[(len(pairs) - 1) // 2]

    def forward(self, student: Output, teacher: Output) -> Tensor:
        h_s, h_t = self.middle(student, teacher)
        hint = F.adaptive_avg_pool2d(self.regressor(h_s), h_t.shape[2:])
        return F.mse_loss(hint.float(), h_t.float())


LOSSES: dict[str, type[nn.Module]] = {"kd": KD, "afd": AFD, "at": AT, "fitnet": FitNet}
