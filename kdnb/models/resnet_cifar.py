"""Residual networks for 32 x 32 images (He et al., CVPR 2016, section 4.2), RepDistiller's keys."""

from collections.abc import Sequence

import torch.nn.functional as F
import torchvision.models.resnet
from torch import Tensor, nn

from kdnb.models.base import Grouped, conv, initialise, register


class BasicBlock(torchvision.models.resnet.BasicBlock):
    """torchvision's basic block without the ReLU at its end."""

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        shortcut = x if self.downsample is None else self.downsample(x)
        return out + shortcut


class Bottleneck(torchvision.models.resnet.Bottleneck):
    """torchvision's bottleneck block without the ReLU at its end.

    The state dict has the projection on the shortcut under `shortcut`, not `downsample`.
    """

    def __init__(self, in_channels: int, width: int, stride: int, shortcut: nn.Module | None):
        super().__init__(in_channels, width, stride)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        shortcut = x if self.shortcut is None else self.shortcut(x)
        return out + shortcut


class CifarResNet(Grouped):
    """A 3 x 3 stem at full size and groups of residual blocks; each group halves the size again.

    The taps are the block outputs (of ResNet-110 every second one), the stages those of the last
    block of each group. Both are taken after the ReLU, the pre-activations before it.

    Args:
        block: class of the residual blocks.
        stem: channels of the stem.
        widths: channels of each group, before a block's expansion.
        counts: number of blocks in each group.
        num_classes: number of outputs of the classifier.
        classifier: name of the classifier in the state dict.
    """

    def __init__(
        self,
        block: type[nn.Module],
        stem: int,
        widths: Sequence[int],
        counts: Sequence[int],
        num_classes: int,
        classifier: str = "fc",
    ):
        super().__init__()
        self.conv1 = conv(3, stem, 3)
        self.bn1 = nn.BatchNorm2d(stem)
        channels = stem
        for group, (width, count) in enumerate(zip(widths, counts, strict=True), 1):
            blocks = []
            for number in range(count):
                stride = 2 if group > 1 and number == 0 else 1
                blocks.append(make_block(block, channels, width, stride))
                channels = width * block.expansion
            self.add_module(f"layer{group}", nn.Sequential(*blocks))
        self.classifier_name = classifier
        self.add_module(classifier, nn.Linear(channels, num_classes))
        initialise(self)


def make_block(block: type[nn.Module], in_channels: int, width: int, stride: int) -> nn.Module:
    """Returns a residual block; its shortcut is a projection where the shape changes."""
    channels = width * block.expansion
    projection = nn.Sequential(conv(in_channels, channels, 1, stride), nn.BatchNorm2d(channels))
    is_identity = stride == 1 and in_channels == channels
    return block(in_channels, width, stride, None if is_identity else projection)


@register(
    r"resnet(8|14|20|32|44|56|110|8x4|32x4)",
    "resnet{}",
    "resnet8, 14, 20, 32, 44, 56, 110, 8x4, 32x4",
)
def build(size: str, num_classes: int) -> CifarResNet:
    depth, _, widen_factor = size.partition("x")
    stem, widths = 16, [16, 32, 64]
    if widen_factor:
        stem, widths = 32, [64, 128, 256]
    blocks_per_group = (int(depth) - 2) // 6
    model = CifarResNet(BasicBlock, stem, widths, [blocks_per_group] * 3, num_classes)
    if depth == "110":
        model.tap_every = 2  # as in AFD's code
    return model


@register("cifar_resnet50")
def build_resnet50(num_classes: int) -> CifarResNet:
    return CifarResNet(Bottleneck, 64, [64, 128, 256, 512], [3, 4, 6, 3], num_classes, "linear")
