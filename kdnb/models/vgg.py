"""VGG with batch norm for 32x32 images (Simonyan and Zisserman, ICLR 2015), in CRD/RepDistiller's key names."""

import torch.nn.functional as F
from torch import Tensor, nn

from kdnb.models.base import Grouped, initialise, register

WIDTHS = [64, 128, 256, 512, 512]
LAYERS = {  # convolutions of each block
    "8": [1, 1, 1, 1, 1],
    "11": [1, 1, 2, 2, 2],
    "13": [2, 2, 2, 2, 2],
    "16": [2, 2, 3, 3, 3],
    "19": [2, 2, 4, 4, 4],
}


class VGGBlock(nn.Sequential):
    """Convolutions with batch norm and ReLUs between them; halve: the maps before."""

    def __init__(self, in_channels: int, out_channels: int, count: int, halve: bool):
        super().__init__()
        self.halve = halve
        for i in range(count):
            self.extend([nn.ReLU()] if i else [])
            conv = nn.Conv2d(out_channels if i else in_channels, out_channels, 3, padding=1)
            self.extend([conv, nn.BatchNorm2d(out_channels)])

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.max_pool2d(x, 2) if self.halve else x)


@register(f"cifar_vgg({'|'.join(LAYERS)})", "cifar_vgg{}", "cifar_vgg8, 11, 13, 16, 19")
class VGG(Grouped):
    """Five blocks, the last two at the same size. Every block is a tap, after the ReLU; the published code's f1 to f4,
    the stages, are those from the second on."""

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
