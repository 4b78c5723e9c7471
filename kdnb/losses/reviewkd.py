"""ReviewKD (Chen, Liu, Zhao, Jia, Distilling Knowledge via Knowledge Review, CVPR 2021)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdnb.losses.base import Batch, Loss, Output, align_from_deepest

WIDEST = 512  # channels between the two convolutions of a fusion


def convolution(c_in: int, c_out: int, kernel: int) -> nn.Sequential:
    conv = nn.Conv2d(c_in, c_out, kernel, padding=kernel // 2, bias=False)
    nn.init.kaiming_uniform_(conv.weight, a=1)
    return nn.Sequential(conv, nn.BatchNorm2d(c_out))


class Fusion(nn.Module):
    """Attention-based fusion of a student's map with what the deeper ones gave, to the shape of a teacher's."""

    def __init__(self, c_in: int, c_mid: int, c_out: int, deepest: bool):
        super().__init__()
        self.enter, self.leave = convolution(c_in, c_mid, 1), convolution(c_mid, c_out, 3)
        self.gates = None if deepest else nn.Sequential(nn.Conv2d(2 * c_mid, 2, 1), nn.Sigmoid())

    def forward(self, h: Tensor, deeper: Tensor | None, size: torch.Size) -> tuple[Tensor, Tensor]:
        """(what the teacher's map of this size is compared with, what goes on to the next shallower map)."""
        x = self.enter(h)
        if deeper is not None:
            deeper = F.interpolate(deeper, x.shape[2:])
            gates = self.gates(torch.cat([x, deeper], 1))  # b 2 h w
            x = x * gates[:, :1] + deeper * gates[:, 1:]
        x = F.interpolate(x, size)
        return self.leave(x), x


def hierarchical(h_s: Tensor, h_t: Tensor) -> Tensor:
    """Mean squared error of two maps, whole and averaged to 4, 2 and 1 pixels a side, each weighing half the former."""
    loss, weights = F.mse_loss(h_s, h_t), [1.0]
    for side in (4, 2, 1):
        if side < h_s.shape[2]:
            weights.append(weights[-1] / 2)
            small_s, small_t = (F.adaptive_avg_pool2d(h, side) for h in (h_s, h_t))
            loss = loss + weights[-1] * F.mse_loss(small_s, small_t)
    return loss / sum(weights)


def levels(student: Output, teacher: Output) -> list[tuple[Tensor, Tensor]]:
    """What is compared, from deep to shallow: pooled features as maps of one pixel, then the stages."""
    pooled_s, pooled_t = (output.pooled[:, :, None, None] for output in (student, teacher))
    return align_from_deepest(
        (*student.stages, pooled_s), (*(teacher.preacts or teacher.stages), pooled_t)
    )[::-1]


class ReviewKD(Loss, name="reviewkd", method="ce + reviewkd:5"):
    """Each of the teacher's maps, before its ReLU if there is one, teaches the student's of its level and all deeper
    ones, fused; the hierarchical context losses are summed (section 3)."""

    warmup = 20

    def __init__(self, student: Output, teacher: Output):
        super().__init__()
        pairs, c_mid = levels(student, teacher), min(WIDEST, student.pooled.shape[1])
        self.fusions = nn.ModuleList(
            Fusion(s.shape[1], c_mid, t.shape[1], not i) for i, (s, t) in enumerate(pairs)
        )

    def forward(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        loss, deeper = 0, None
        for fusion, (h_s, h_t) in zip(self.fusions, levels(student, teacher), strict=True):
            fused, deeper = fusion(h_s, deeper, h_t.shape[2:])
            loss = loss + hierarchical(fused.float(), h_t.float())
        return loss
