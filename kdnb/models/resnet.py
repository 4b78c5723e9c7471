"""Residual networks for ImageNet (He et al., CVPR 2016): torchvision's keys and initialisation."""

import torchvision
from torch import Tensor
from torchvision.models.resnet import BasicBlock, Bottleneck

from kdnb.models.base import Grouped, register

LAYERS = {  # block, and number of blocks per group
    "resnet18": (BasicBlock, [2, 2, 2, 2]),
    "resnet34": (BasicBlock, [3, 4, 6, 3]),
    "resnet50": (Bottleneck, [3, 4, 6, 3]),
}


class ResNet(Grouped, torchvision.models.ResNet):
    """torchvision's ResNet, returning Output.

    The taps are the block outputs, the stages those of the last block of each group. All are taken
    after the ReLU.
    """

    relu_after_block = False  # torchvision's blocks end in their ReLU

    def stem(self, x: Tensor) -> Tensor:
        return self.maxpool(super().stem(x))


@register(f"({'|'.join(LAYERS)})(?:im)?", "{}", ", ".join(LAYERS))
def build(name: str, num_classes: int) -> ResNet:
    return ResNet(*LAYERS[name], num_classes=num_classes)
