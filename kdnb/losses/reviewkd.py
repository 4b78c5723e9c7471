"""ReviewKD (Chen, Liu, Zhao, Jia, Distilling Knowledge via Knowledge Review, CVPR 2021)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdnb.losses.base import Batch, Loss, Output, align_from_deepest, average_pool

MAX_WIDTH = 512  # channels between the two convolutions of a fusion


def convolution(c_in: int, c_out: int, kernel: int) -> nn.Sequential:
    conv = nn.Conv2d(c_in, c_out, kernel, padding=kernel // 2, bias=False)
    nn.init.kaiming_uniform_(conv.weight, a=1)
    return nn.Sequential(conv, nn.BatchNorm2d(c_out))


class Fusion(nn.Module):
    """Attention-based fusion (ABF) of a student's map with the result of the deeper level.

    Args:
        c_in: channels of the student's map.
        c_mid: channels of the fused maps.
        c_out: channels of the teacher's map.
        is_deepest: whether there is no deeper level to fuse with.
    """

    def __init__(self, c_in: int, c_mid: int, c_out: int, is_deepest: bool):
        super().__init__()
        self.enter = convolution(c_in, c_mid, 1)
        self.leave = convolution(c_mid, c_out, 3)
        self.gates = None
        if not is_deepest:
            self.gates = nn.Sequential(nn.Conv2d(2 * c_mid, 2, 1), nn.Sigmoid())

    def forward(self, h: Tensor, deeper: Tensor | None, size: torch.Size) -> tuple[Tensor, Tensor]:
        """Fuses one level.

        Args:
            h: the student's map, (batch, c_in, height, width).
            deeper: the second result of the deeper level; None at the deepest.
            size: height and width of the teacher's map.

        Returns:
            (batch, c_out, *size): to be compared with the teacher's map.
            (batch, c_mid, *size): input of the next shallower level.
        """
        x = self.enter(h)
        if deeper is not None:
            deeper = F.interpolate(deeper, x.shape[2:])
            gates = self.gates(torch.cat([x, deeper], 1))  # b 2 h w
            x = x * gates[:, :1] + deeper * gates[:, 1:]
        x = F.interpolate(x, size)
        return self.leave(x), x


def hierarchical(h_s: Tensor, h_t: Tensor) -> Tensor:
    """Hierarchical context loss: mean squared error of two maps at several resolutions.

    The maps are compared at full size and averaged to 4, 2 and 1 pixels a side; each resolution has
    half the weight of the one before. The weighted mean is returned.
    """
    loss = F.mse_loss(h_s, h_t)
    weights = [1.0]
    for size in (4, 2, 1):
        if size < h_s.shape[2]:
            weights.append(weights[-1] / 2)
            small_s, small_t = (average_pool(h, (size, size)) for h in (h_s, h_t))
            loss = loss + weights[-1] * F.mse_loss(small_s, small_t)
    return loss / sum(weights)


def levels(student: Output, teacher: Output) -> list[tuple[Tensor, Tensor]]:
    """Returns the (student, teacher) maps to compare, deep to shallow.

    The deepest level are the pooled features, as maps of one pixel; the others are the stages. The
    teacher's are taken before the ReLU where it has pre-activations.
    """
    pooled_s, pooled_t = (output.pooled[:, :, None, None] for output in (student, teacher))
    maps_t = teacher.preacts or teacher.stages
    return align_from_deepest((*student.stages, pooled_s), (*maps_t, pooled_t))[::-1]


class ReviewKD(Loss, name="reviewkd", method="ce + reviewkd:5"):
    """Compares each teacher map with a fusion of the student's map of its level and deeper ones.

    The hierarchical context losses of all levels are summed (section 3).
    """

    warmup = 20

    def __init__(self, student: Output, teacher: Output):
        super().__init__()
        c_mid = min(MAX_WIDTH, student.pooled.shape[1])
        self.fusions = nn.ModuleList(
            Fusion(h_s.shape[1], c_mid, h_t.shape[1], is_deepest=level == 0)
            for level, (h_s, h_t) in enumerate(levels(student, teacher))
        )

    def forward(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        loss = 0
        deeper = None
        for fusion, (h_s, h_t) in zip(self.fusions, levels(student, teacher), strict=True):
            fused, deeper = fusion(h_s, deeper, h_t.shape[2:])
            loss = loss + hierarchical(fused.float(), h_t.float())
        return loss
