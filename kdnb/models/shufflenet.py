"""ShuffleNet V1 and V2 for 32x32 images (Zhang et al., CVPR 2018; Ma et al., ECCV 2018), in CRD/RepDistiller's keys.

The taps are the block outputs, the stages the last of each group, both after the ReLU. Weights begin as in torch.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.shufflenetv2 import channel_shuffle

from kdnb.models.base import Grouped, conv, register

STEM, COUNTS = 24, (4, 8, 4)  # channels of the stem, units of each group


class Normed(nn.Module):
    """Convolutions conv1, conv2 ... and the batch norms bn1, bn2 ... behind them."""

    def __init__(self, *convs: nn.Conv2d):
        super().__init__()
        for i, module in enumerate(convs, 1):
            self.add_module(f"conv{i}", module)
            self.add_module(f"bn{i}", nn.BatchNorm2d(module.out_channels))


class Unit1(Normed):
    """Group convolutions with a shuffle between them (fig. 2 of the paper); at half size beside the averaged input."""

    def __init__(self, in_channels: int, out_channels: int, halve: bool):
        added = out_channels - in_channels if halve else out_channels
        width = added // 4
        first = conv(
            in_channels, width, groups=1 if in_channels == STEM else 3
        )  # the stem has too few channels
        super().__init__(
            first, conv(width, width, 3, 1 + halve, groups=width), conv(width, added, groups=3)
        )
        self.halve = halve

    def forward(self, x: Tensor) -> Tensor:
        out = channel_shuffle(F.relu(self.bn1(self.conv1(x))), self.conv1.groups)
        out = self.bn3(self.conv3(F.relu(self.bn2(self.conv2(out)))))
        return torch.cat([out, F.avg_pool2d(x, 3, 2, 1)], 1) if self.halve else out + x


class Unit2(Normed):
    """Half of the channels are convolved, the others pass by (fig. 3c of the paper)."""

    def __init__(self, channels: int):
        half = channels // 2
        super().__init__(conv(half, half), conv(half, half, 3, groups=half), conv(half, half))

    def forward(self, x: Tensor) -> Tensor:
        beside, out = x.chunk(2, 1)
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(out)))))
        return channel_shuffle(torch.cat([beside, self.bn3(self.conv3(out))], 1), 2)


class Down2(Normed):
    """Both halves of the output are convolved from the whole input, at half its size (fig. 3d of the paper)."""

    def __init__(self, channels: int, out_channels: int):
        half = out_channels // 2
        left = conv(channels, channels, 3, 2, groups=channels), conv(channels, half)
        super().__init__(
            *left, conv(channels, half), conv(half, half, 3, 2, groups=half), conv(half, half)
        )

    def forward(self, x: Tensor) -> Tensor:
        left = self.bn2(self.conv2(self.bn1(self.conv1(x))))
        right = self.bn4(self.conv4(F.relu(self.bn3(self.conv3(x)))))
        return channel_shuffle(torch.cat([left, self.bn5(self.conv5(right))], 1), 2)


@register(
    "cifar_shufflenetv([12])", "cifar_shufflenetv{}", "cifar_shufflenetv1, cifar_shufflenetv2"
)
class ShuffleNet(Grouped):
    """V2 has a convolution before the pixel mean."""

    classifier_name = "linear"

    def __init__(self, version: str, num_classes: int):
        super().__init__()
        widths, last = {"1": ([240, 480, 960], 0), "2": ([116, 232, 464], 1024)}[version]
        self.conv1, self.bn1 = conv(3, STEM), nn.BatchNorm2d(STEM)
        for g, (before, width, count) in enumerate(
            zip([STEM, *widths], widths, COUNTS, strict=False), 1
        ):
            first = Down2(before, width) if last else Unit1(before, width, halve=True)
            others = [
                Unit2(width) if last else Unit1(width, width, halve=False) for _ in range(count - 1)
            ]
            self.add_module(f"layer{g}", nn.Sequential(first, *others))
        self.last = last
        if last:
            self.conv2, self.bn2 = conv(widths[-1], last), nn.BatchNorm2d(last)
        self.linear = nn.Linear(last or widths[-1], num_classes)

    def head(self, x: Tensor) -> Tensor:
        return F.relu(self.bn2(self.conv2(x))) if self.last else x
