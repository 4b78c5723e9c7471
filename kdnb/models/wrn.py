"""Wide residual networks for small images (Zagoruyko and Komodakis, BMVC 2016)."""

import torch.nn.functional as F
from torch import Tensor, nn

from kdnb.errors import InputError
from kdnb.models.base import Grouped, Output, conv, initialise, register


class WideBlock(nn.Module):
    """Pre-activation residual block (fig. 1a of the paper), in CRD/RepDistiller's key names."""

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
        """(block output, bn1(x) of its input, the activation relu(bn1(x)) that entered it)."""
        preact = self.bn1(x)
        entry = F.relu(preact)
        out = self.conv2(F.relu(self.bn2(self.conv1(entry))))
        return (x if self.convShortcut is None else self.convShortcut(entry)) + out, preact, entry


@register(r"wrn[-_]?([1-9]\d*)[-_x]([1-9]\d*)", "wrn_{}_{}", "wrn_DEPTH_WIDTH (such as wrn_40_2)")
class WideResNet(Grouped):
    """WRN-depth-widen_factor. State-dict keys are those of the CRD/RepDistiller, mdistiller and official AFD code.

    A block's tap is the activation its output turns into, the next block's `relu(bn1(x))` or the final `relu(bn1(x))`:
    (depth - 4) / 2 taps. The stages are the outputs of the three groups, raw residual sums, as RepDistiller's are.

    The official AFD code calls each of these batch norms a second time to obtain the tap, so its running statistics
    move at momentum 1 - 0.9^2 = 0.19 rather than 0.1. Train-mode outputs and gradients are the same. Here each batch
    norm is called once.
    """

    def __init__(self, depth: int | str, widen_factor: int | str, num_classes: int):
        super().__init__()
        depth, widen_factor = int(depth), int(widen_factor)
        if depth < 10 or (depth - 4) % 6 or widen_factor < 1:
            sizes = "depth must be 6n + 4 (10, 16, 22, 28, 40 ...), widen factor 1+"
            raise InputError(f"wrn_{depth}_{widen_factor}: {sizes}")
        self.conv1, channels = conv(3, 16, 3), 16
        for g, width in enumerate((16 * widen_factor, 32 * widen_factor, 64 * widen_factor), 1):
            blocks = [WideBlock(channels, width, 1 if g == 1 else 2)]
            blocks += [WideBlock(width, width, 1) for _ in range((depth - 4) // 6 - 1)]
            self.add_module(f"block{g}", nn.ModuleDict({"layer": nn.ModuleList(blocks)}))
            channels = width
        self.bn1, self.fc = nn.BatchNorm2d(channels), nn.Linear(channels, num_classes)
        initialise(self)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Output:
        """Images (batch, 3, height, width), normalised -> Output."""
        x = self.conv1(x)
        entries, stages, preacts = [], [], []
        for group in self.block_groups():
            for block in group:
                x, preact, entry = block(x)
                entries.append(entry)
                preacts += [preact] if block is group[0] and stages else []  # of the stage before
            stages.append(x)
        preacts.append(self.bn1(x))
        last = F.relu(preacts[-1])
        pooled = last.mean((2, 3))
        return Output(self.fc(pooled), (*entries[1:], last), tuple(stages), pooled, tuple(preacts))

    def block_groups(self) -> list[nn.ModuleList]:
        return [group["layer"] for group in (self.block1, self.block2, self.block3)]
