"""VGG with batch norm for 32 x 32 images (Simonyan, Zisserman, ICLR 2015), RepDistiller's keys."""

import torch.nn.functional as F
from torch import Tensor, nn

from kdnb.models.base import Grouped, initialise, register

WIDTHS = [64, 128, 256, 512, 512]  # channels of each block
LAYERS = {  # number of convolutions of each block, by depth
    "8": [1, 1, 1, 1, 1],
    "11": [1, 1, 2, 2, 2],
    "13": [2, 2, 2, 2, 2],
    "16": [2, 2, 3, 3, 3],
    "19": [2, 2, 4, 4, 4],
}


class VGGBlock(nn.Sequential):
    """Convolutions, each with batch norm, and ReLUs between them.

    Args:
        count: number of convolutions.
        halve: whether the maps are max-pooled to half their size before the first convolution.
    """

    def __init__(self, in_channels: int, out_channels: int, count: int, halve: bool):
        super().__init__()
        self.halve = halve
        for i in range(count):
            if i > 0:
                self.append(nn.ReLU())
            channels = out_channels if i else in_channels
            self.append(nn.Conv2d(channels, out_channels, 3, padding=1))
            self.append(nn.BatchNorm2d(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        if self.halve:
            x = F.max_pool2d(x, 2)
        return super().forward(x)


@register(f"cifar_vgg({'|'.join(LAYERS)})", "cifar_vgg{}", "cifar_vgg8, 11, 13, 16, 19")
class VGG(Grouped):
    """VGG, returning Output: five blocks, the last two at the same size.

    Each block is a tap, after its ReLU. The stages are the blocks from the second on, f1 to f4 in
    the published code.
    """

    classifier_name = "classifier"

    def __init__(self, depth: str, num_classes: int):
        super().__init__()
        channels = 3
        for i, (width, count) in enumerate(zip(WIDTHS, LAYERS[depth], strict=True)):
            self.add_module(f"block{i}", VGGBlock(channels, width, count, halve=i in (1, 2, 3)))
            channels = width
        self.classifier = nn.Linear(channels, num_classes)
        initialise(self, linear=0.01)

    def block_groups(self) -> list[list[nn.Module]]:
        return [[self.block0, self.block1], [self.block2], [self.block3], [self.block4]]

    def stem(self, x: Tensor) -> Tensor:
        return x
