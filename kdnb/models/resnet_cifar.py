"""Residual networks for 32x32 images (He et al., CVPR 2016, sec. 4.2), in CRD/RepDistiller's key names."""

import torch.nn.functional as F
import torchvision.models.resnet
from torch import Tensor, nn

from kdnb.models.base import Grouped, conv, initialise, register


class BasicBlock(torchvision.models.resnet.BasicBlock):
    """torchvision's, without its last ReLU."""

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        return self.bn2(self.conv2(out)) + (x if self.downsample is None else self.downsample(x))


class Bottleneck(torchvision.models.resnet.Bottleneck):
    """torchvision's, without its last ReLU; its shortcut has another name."""

    def __init__(self, in_channels: int, width: int, stride: int, shortcut: nn.Module | None):
        super().__init__(in_channels, width, stride)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        return self.bn3(self.conv3(out)) + (x if self.shortcut is None else self.shortcut(x))


class CifarResNet(Grouped):
    """A 3x3 stem at full size, then groups of residual blocks, each from the second on at half the size of the last.

    The taps are the block outputs (of ResNet-110 every second), the stages the last of each group, both after the ReLU,
    the pre-activations the sums before it.
    """

    def __init__(
        self,
        block: type[nn.Module],
        stem: int,
        widths,
        counts,
        num_classes: int,
        classifier: str = "fc",
    ):
        super().__init__()
        self.conv1, self.bn1 = conv(3, stem, 3), nn.BatchNorm2d(stem)
        self.channels = stem
        for g, (width, count) in enumerate(zip(widths, counts, strict=True), 1):
            blocks = [self.block(block, width, 2 if g > 1 and b == 0 else 1) for b in range(count)]
            self.add_module(f"layer{g}", nn.Sequential(*blocks))
        self.classifier_name = classifier
        self.add_module(classifier, nn.Linear(self.channels, num_classes))
        initialise(self)

    def block(self, block: type[nn.Module], width: int, stride: int) -> nn.Module:
        before, self.channels = self.channels, width * block.expansion
        equal = stride == 1 and before == self.channels
        shortcut = nn.Sequential(
            conv(before, self.channels, 1, stride), nn.BatchNorm2d(self.channels)
        )
        return block(before, width, stride, None if equal else shortcut)


@register(
    r"resnet(8|14|20|32|44|56|110|8x4|32x4)",
    "resnet{}",
    "resnet8, 14, 20, 32, 44, 56, 110, 8x4, 32x4",
)
def build(size: str, num_classes: int) -> CifarResNet:
    depth, _, widen = size.partition("x")
    stem, widths = (32, [64, 128, 256]) if widen else (16, [16, 32, 64])
    model = CifarResNet(BasicBlock, stem, widths, [(int(depth) - 2) // 6] * 3, num_classes)
    model.tap_every = 2 if depth == "110" else 1  # as AFD's code
    return model


@register("cifar_resnet50")
def build_resnet50(num_classes: int) -> CifarResNet:
    return CifarResNet(Bottleneck, 64, [64, 128, 256, 512], [3, 4, 6, 3], num_classes, "linear")
