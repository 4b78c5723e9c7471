"""MobileNetV2 at half width for 32 x 32 images (Sandler et al., CVPR 2018), RepDistiller's keys."""

from torch import Tensor, nn

from kdnb.models.base import Grouped, conv, initialise, register

EXPAND = 6  # expansion factor, but for the first blocks
BLOCKS = [  # channels, number of blocks, stride of the first
    (8, 1, 1),
    (12, 2, 1),
    (16, 3, 2),
    (32, 4, 2),
    (48, 3, 1),
    (80, 3, 2),
    (160, 1, 1),
]


class InvertedResidual(nn.Module):
    """Expansion, depthwise convolution and a linear projection (figure 4 of the paper).

    Its output is added to its input where both have the same shape.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, expand: int):
        super().__init__()
        width = in_channels * expand
        self.is_residual = stride == 1 and in_channels == out_channels
        expansion = [conv(in_channels, width), nn.BatchNorm2d(width), nn.ReLU()]
        depthwise = [conv(width, width, 3, stride, groups=width), nn.BatchNorm2d(width), nn.ReLU()]
        self.conv = nn.Sequential(
            *expansion, *depthwise, conv(width, out_channels), nn.BatchNorm2d(out_channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv(x)
        return x + out if self.is_residual else out


@register("cifar_mobilenetv2")
class MobileNetV2(Grouped):
    """MobileNetV2, returning Output.

    The taps are the block outputs, the stages the last of each size. No ReLU follows a block, so
    its map has negative values, too, as in the published code.
    """

    classifier_name = "classifier.0"
    relu_after_block = False

    def __init__(self, num_classes: int):
        super().__init__()
        channels, expand = 16, 1
        rows = []
        self.conv1 = nn.Sequential(conv(3, channels, 3, 2), nn.BatchNorm2d(channels), nn.ReLU())
        for width, count, stride in BLOCKS:
            row = [InvertedResidual(channels, width, stride, expand)]
            row += [InvertedResidual(width, width, 1, expand) for _ in range(count - 1)]
            rows.append(nn.Sequential(*row))
            channels, expand = width, EXPAND
        self.blocks = nn.ModuleList(rows)
        self.conv2 = nn.Sequential(conv(channels, 1280), nn.BatchNorm2d(1280), nn.ReLU())
        self.classifier = nn.Sequential(nn.Linear(1280, num_classes))
        initialise(self, linear=0.01)

    def block_groups(self) -> list[list[nn.Module]]:
        rows = [[*row] for row in self.blocks]
        return [rows[0] + rows[1], rows[2], rows[3] + rows[4], rows[5] + rows[6]]

    def stem(self, x: Tensor) -> Tensor:
        return self.conv1(x)

    def head(self, x: Tensor) -> Tensor:
        return self.conv2(x)
