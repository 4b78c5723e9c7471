"""Residual networks for photographs (He et al., CVPR 2016), with torchvision's keys and initialisation."""

import torch
import torchvision
from torch import Tensor
from torchvision.models.resnet import BasicBlock, Bottleneck

from kdnb.models.base import Grouped, Output, register

LAYERS = {
    "resnet18": (BasicBlock, [2, 2, 2, 2]),
    "resnet34": (BasicBlock, [3, 4, 6, 3]),
    "resnet50": (Bottleneck, [3, 4, 6, 3]),
}


class ResNet(torchvision.models.ResNet):
    """torchvision's ResNet; the taps are the block outputs, the stages the last of each group, all after the ReLU."""

    classifier_name = "fc"
    block_groups, block_names, every = Grouped.block_groups, Grouped.block_names, 1

    def forward(self, x: Tensor) -> Output:
        """Images (batch, 3, height, width), normalised -> Output."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        feats, stages = [], []
        for group in self.block_groups():
            for block in group:
                x = block(x)
                feats.append(x)
            stages.append(x)
        pooled = torch.flatten(self.avgpool(x), 1)
        return Output(self.fc(pooled), tuple(feats), tuple(stages), pooled)


@register(f"({'|'.join(LAYERS)})(?:im)?", "{}", ", ".join(LAYERS))
def build(name: str, num_classes: int) -> ResNet:
    block, layers = LAYERS[name]
    return ResNet(block, layers, num_classes=num_classes)
