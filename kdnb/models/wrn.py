"""Wide residual networks for small images (Zagoruyko and Komodakis, BMVC 2016)."""

import torch.nn.functional as F
from torch import Tensor, nn

from kdnb.errors import InputError
from kdnb.models.base import Grouped, Output, conv, initialise, register


class WideBlock(nn.Module):
    """Pre-activation residual block (figure 1a of the paper), with RepDistiller's key names."""

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = conv(in_channels, out_channels, 3, stride)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv2 = conv(out_channels, out_channels, 3)
        self.convShortcut = (
            None if in_channels == out_channels else conv(in_channels, out_channels, 1, stride)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the block's output, the pre-activation bn1(x) and the activation relu(bn1(x))."""
        preact = self.bn1(x)
        entry = F.relu(preact)
        out = self.conv2(F.relu(self.bn2(self.conv1(entry))))
        return (x if self.convShortcut is None else self.convShortcut(entry)) + out, preact, entry


@register(r"wrn[-_]?([1-9]\d*)[-_x]([1-9]\d*)", "wrn_{}_{}", "wrn_DEPTH_WIDTH (such as wrn_40_2)")
class WideResNet(Grouped):
    """WRN-depth-widen_factor, with the state-dict keys of RepDistiller, mdistiller and AFD's code.

    The tap of a block is the activation of its output: `relu(bn1(x))` of the next block, or of the
    end of the network. There are (depth - 4) / 2 taps. The stages are the outputs of the three
    groups, the residual sums before batch norm, as in RepDistiller.

    The official AFD code calls these batch norms a second time to get the taps, so its running
    statistics have momentum 1 - 0.9^2 = 0.19, not 0.1. Outputs and gradients in train mode are the
    same. Here each batch norm is called once.

    Raises InputError for a depth that is not 6n + 4.
    """

    def __init__(self, depth: int | str, widen_factor: int | str, num_classes: int):
        super().__init__()
        depth, widen_factor = int(depth), int(widen_factor)
        if depth < 10 or (depth - 4) % 6 or widen_factor < 1:
            sizes = "depth must be 6n + 4 (10, 16, 22, 28, 40 ...), widen factor 1+"
            raise InputError(f"wrn_{depth}_{widen_factor}: {sizes}")
        blocks_per_group = (depth - 4) // 6
        self.conv1 = conv(3, 16, 3)
        channels = 16
        for group, base_width in enumerate((16, 32, 64), 1):
            width = base_width * widen_factor
            blocks = [WideBlock(channels, width, 1 if group == 1 else 2)]
            blocks += [WideBlock(width, width, 1) for _ in range(blocks_per_group - 1)]
            self.add_module(f"block{group}", nn.ModuleDict({"layer": nn.ModuleList(blocks)}))
            channels = width
        self.bn1 = nn.BatchNorm2d(channels)
        self.fc = nn.Linear(channels, num_classes)
        initialise(self)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Output:
        """Returns the Output of normalised images, (batch, 3, height, width)."""
        x = self.conv1(x)
        activations, stages, preacts = [], [], []
        for group in self.block_groups():
            for block in group:
                x, preact, activation = block(x)
                activations.append(activation)
                if stages and block is group[0]:
                    preacts.append(preact)  # of the previous group's output
            stages.append(x)
        preacts.append(self.bn1(x))
        activations.append(F.relu(preacts[-1]))
        feats = tuple(activations[1:])  # the first is no block's output but the stem's
        pooled = feats[-1].mean((2, 3))
        return Output(self.fc(pooled), feats, tuple(stages), pooled, tuple(preacts))

    def block_groups(self) -> list[nn.ModuleList]:
        return [group["layer"] for group in (self.block1, self.block2, self.block3)]
