"""ShuffleNet V1 and V2 for 32 x 32 images (Zhang et al., CVPR 2018; Ma et al., ECCV 2018).

The state-dict keys are RepDistiller's, the initialisation is torch's default.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.shufflenetv2 import channel_shuffle

from kdnb.models.base import Grouped, conv, register

STEM = 24  # channels of the stem
COUNTS = (4, 8, 4)  # units of each group


class ConvsWithNorms(nn.Module):
    """Base class of the units: convolutions conv1, conv2 ... and their batch norms bn1, bn2 ..."""

    def __init__(self, *convs: nn.Conv2d):
        super().__init__()
        for i, module in enumerate(convs, 1):
            self.add_module(f"conv{i}", module)
            self.add_module(f"bn{i}", nn.BatchNorm2d(module.out_channels))


class Unit1(ConvsWithNorms):
    """Unit of V1: group convolutions with a channel shuffle between them (figure 2 of the paper).

    Args:
        halve: whether the map is halved. If so, the average-pooled input is concatenated to the
            output of the convolutions; if not, the input is added to it.
    """

    def __init__(self, in_channels: int, out_channels: int, halve: bool):
        added = out_channels - in_channels if halve else out_channels
        width = added // 4
        groups = 1 if in_channels == STEM else 3  # the stem has too few channels for groups
        super().__init__(
            conv(in_channels, width, groups=groups),
            conv(width, width, 3, 1 + halve, groups=width),
            conv(width, added, groups=3),
        )
        self.halve = halve

    def forward(self, x: Tensor) -> Tensor:
        out = channel_shuffle(F.relu(self.bn1(self.conv1(x))), self.conv1.groups)
        out = self.bn3(self.conv3(F.relu(self.bn2(self.conv2(out)))))
        if self.halve:
            return torch.cat([out, F.avg_pool2d(x, 3, 2, 1)], 1)
        return out + x


class Unit2(ConvsWithNorms):
    """Unit of V2: one half of the channels is convolved, the other passed on (figure 3c)."""

    def __init__(self, channels: int):
        half = channels // 2
        super().__init__(conv(half, half), conv(half, half, 3, groups=half), conv(half, half))

    def forward(self, x: Tensor) -> Tensor:
        shortcut, out = x.chunk(2, 1)
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(out)))))
        return channel_shuffle(torch.cat([shortcut, self.bn3(self.conv3(out))], 1), 2)


class Down2(ConvsWithNorms):
    """Downsampling unit of V2: two branches, each for half of the output channels (figure 3d)."""

    def __init__(self, channels: int, out_channels: int):
        half = out_channels // 2
        left = [conv(channels, channels, 3, 2, groups=channels), conv(channels, half)]
        right = [conv(channels, half), conv(half, half, 3, 2, groups=half), conv(half, half)]
        super().__init__(*left, *right)

    def forward(self, x: Tensor) -> Tensor:
        left = self.bn2(self.conv2(self.bn1(self.conv1(x))))
        right = self.bn4(self.conv4(F.relu(self.bn3(self.conv3(x)))))
        return channel_shuffle(torch.cat([left, self.bn5(self.conv5(right))], 1), 2)


@register(
    "cifar_shufflenetv([12])", "cifar_shufflenetv{}", "cifar_shufflenetv1, cifar_shufflenetv2"
)
class ShuffleNet(Grouped):
    """ShuffleNet, returning Output.

    The taps are the block outputs, the stages those of the last block of each group. Both are taken
    after the ReLU. V2 has a convolution before the global average pooling.
    """

    classifier_name = "linear"

    def __init__(self, version: str, num_classes: int):
        super().__init__()
        self.is_v2 = version == "2"
        widths = [116, 232, 464] if self.is_v2 else [240, 480, 960]
        self.conv1 = conv(3, STEM)
        self.bn1 = nn.BatchNorm2d(STEM)
        channels = STEM
        for group, (width, count) in enumerate(zip(widths, COUNTS, strict=True), 1):
            if self.is_v2:
                units = [Down2(channels, width), *(Unit2(width) for _ in range(count - 1))]
            else:
                units = [Unit1(channels, width, halve=True)]
                units += [Unit1(width, width, halve=False) for _ in range(count - 1)]
            self.add_module(f"layer{group}", nn.Sequential(*units))
            channels = width
        if self.is_v2:
            self.conv2 = conv(channels, 1024)
            self.bn2 = nn.BatchNorm2d(1024)
            channels = 1024
        self.linear = nn.Linear(channels, num_classes)

    def head(self, x: Tensor) -> Tensor:
        return F.relu(self.bn2(self.conv2(x))) if self.is_v2 else x
