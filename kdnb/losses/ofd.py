"""Overhaul of feature distillation, OFD (Heo, Kim, Yun, Park, Kwak, Choi, ICCV 2019)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdnb.losses.base import Batch, Loss, Output, align_from_deepest

RARE = 0.001  # share of negative values below which a channel's margin is three deviations


def connector(c_in: int, c_out: int) -> nn.Sequential:
    conv = nn.Conv2d(c_in, c_out, 1, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(conv, nn.BatchNorm2d(c_out))


def margins(mean: Tensor, std: Tensor) -> Tensor:
    """The mean of a channel's negative values, if all are normally distributed: (channels,).

    Of a channel with hardly any it is -3 std.
    """
    std = std.clamp(min=1e-12)
    z = mean / std
    negative = torch.special.ndtr(-z)  # the share of negative values
    density = torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)
    return torch.where(negative > RARE, mean - std * density / negative, -3 * std)


def maps(output: Output) -> tuple[Tensor, ...]:
    """The maps to compare: the stages between batch norm and ReLU, or as they are."""
    return output.preacts or output.stages


class OFD(Loss, name="ofd", method="ce + ofd:0.001"):
    """Partial squared distance of the maps before the ReLU, summed over a map (section 3).

    A teacher's value below its channel's margin, which is negative, counts as the margin. Where the
    teacher's value is not positive and the student's is below it, there is no loss. The sum is
    averaged over the images, halved for each stage that is deeper, and summed over the stages.

    The margin is the mean of a channel's negative values. The authors' code computes it from the
    bias and the weight of the teacher's last batch norm, which are the mean and the standard
    deviation of the map's values. Here both are measured over the training images seen so far, so
    that any network can teach.
    """

    def __init__(self, student: Output, teacher: Output):
        super().__init__()
        widths = [
            (h_s.shape[1], h_t.shape[1])
            for h_s, h_t in align_from_deepest(maps(student), maps(teacher))
        ]
        self.connectors = nn.ModuleList(connector(c_s, c_t) for c_s, c_t in widths)
        self.register_buffer("batches", torch.zeros(()))  # seen in train mode
        for stage, (_, c_t) in enumerate(widths):
            # Sums over the batches of the means of the teacher's values and of their squares.
            self.register_buffer(f"moments_{stage}", torch.zeros(2, c_t))

    def forward(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        loss = 0
        if self.training:
            self.batches.add_(1)
        pairs = align_from_deepest(maps(student), maps(teacher))
        for stage, (connect, (h_s, h_t)) in enumerate(zip(self.connectors, pairs, strict=True)):
            h_t = h_t.float()
            margin = self.margin(stage, h_t)[:, None, None]  # c 1 1
            bound = torch.maximum(F.adaptive_avg_pool2d(h_t, h_s.shape[2:]), margin)
            x = connect(h_s).float()  # b c h w
            distance = torch.where((x > bound) | (bound > 0), (x - bound).square(), 0)
            loss = loss + distance.sum() / len(x) / 2 ** (len(pairs) - 1 - stage)
        return loss

    @torch.no_grad()
    def margin(self, stage: int, h_t: Tensor) -> Tensor:
        """The margins of a stage, (channels,), from the batches seen in train mode.

        h_t: the teacher's map; its moments are added in train mode.
        """
        moments = getattr(self, f"moments_{stage}")
        if self.training:
            moments.add_(torch.stack([h_t.mean((0, 2, 3)), h_t.square().mean((0, 2, 3))]))
        mean, square = moments / self.batches.clamp(min=1)
        return margins(mean, (square - mean.square()).clamp(min=0).sqrt())
