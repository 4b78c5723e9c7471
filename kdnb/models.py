"""The networks of the study. Each returns its features beside its logits; nothing hooks into a forward pass.

`create_model(name, num_classes)` builds one, `load_weights(name, path)` from any published checkpoint.
"""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path
from typing import NamedTuple
from urllib.error import URLError

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models import get_model_weights
from torchvision.models.resnet import BasicBlock, Bottleneck

from kdnb.errors import InputError
from kdnb.names import check_wide, model_name

__all__ = [
    "Output",
    "ResNet",
    "WideResNet",
    "create_model",
    "fingerprint",
    "imagenet_weights",
    "load_weights",
    "model_name",
    "parameter_count",
]


class Output(NamedTuple):
    """What every model returns."""

    logits: Tensor  # (batch, classes)
    feats: tuple[
        Tensor, ...
    ]  # one (batch, channels, height, width) per residual block, shallow to deep, after the ReLU


class WideBlock(nn.Module):
    """Pre-activation residual block (Zagoruyko and Komodakis, BMVC 2016, fig. 1a), in CRD/RepDistiller's key names."""

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        equal = in_channels == out_channels
        self.convShortcut = None if equal else nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(block output, the activation relu(bn1(x)) that entered it)."""
        entry = F.relu(self.bn1(x))
        out = self.conv2(F.relu(self.bn2(self.conv1(entry))))
        shortcut = x if self.convShortcut is None else self.convShortcut(entry)
        return shortcut + out, entry


class WideGroup(nn.Module):
    def __init__(self, depth: int, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        blocks = [WideBlock(in_channels, out_channels, stride)]
        blocks += [WideBlock(out_channels, out_channels, 1) for _ in range(depth - 1)]
        self.layer = nn.ModuleList(blocks)


class WideResNet(nn.Module):
    """WRN-depth-widen_factor for small images (Zagoruyko and Komodakis, BMVC 2016).

    State-dict keys are those of the CRD/RepDistiller, mdistiller and official AFD checkpoints. A block's tap is the
    activation its output turns into, the next block's `relu(bn1(x))` or the final `relu(bn1(x))`: (depth - 4) / 2 taps.

    The official AFD code calls each of these batch norms a second time to obtain the tap, so its running statistics
    move at momentum 1 - 0.9^2 = 0.19 rather than 0.1. Train-mode outputs and gradients are the same. Here each batch
    norm is called once.
    """

    def __init__(self, depth: int, widen_factor: int, num_classes: int):
        super().__init__()
        check_wide(depth, widen_factor)
        per_group = (depth - 4) // 6
        widths = [16 * widen_factor, 32 * widen_factor, 64 * widen_factor]
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.block1 = WideGroup(per_group, 16, widths[0], 1)
        self.block2 = WideGroup(per_group, widths[0], widths[1], 2)
        self.block3 = WideGroup(per_group, widths[1], widths[2], 2)
        self.bn1 = nn.BatchNorm2d(widths[2])
        self.fc = nn.Linear(widths[2], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Output:
        """Images (batch, 3, height, width), normalised -> Output."""
        x = self.conv1(x)
        entries = []
        for group in (self.block1, self.block2, self.block3):
            for block in group.layer:
                x, entry = block(x)
                entries.append(entry)
        last = F.relu(self.bn1(x))
        logits = self.fc(last.mean((2, 3)))
        return Output(logits, (*entries[1:], last))

    @property
    def block_names(self) -> list[str]:
        """A name per tap, for the axes of plots: group.block, counted from 1."""
        groups = (self.block1, self.block2, self.block3)
        return [f"{g}.{b}" for g, group in enumerate(groups, 1) for b in range(1, len(group.layer) + 1)]


class ResNet(torchvision.models.ResNet):
    """torchvision's ResNet, its keys and initialisation; the taps are the block outputs (He et al., CVPR 2016)."""

    def forward(self, x: Tensor) -> Output:
        """Images (batch, 3, height, width), normalised -> Output."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        feats = []
        for group in (self.layer1, self.layer2, self.layer3, self.layer4):
            for block in group:
                x = block(x)
                feats.append(x)
        logits = self.fc(torch.flatten(self.avgpool(x), 1))
        return Output(logits, tuple(feats))

    @property
    def block_names(self) -> list[str]:
        groups = (self.layer1, self.layer2, self.layer3, self.layer4)
        return [f"{g}.{b}" for g, group in enumerate(groups, 1) for b in range(1, len(group) + 1)]


RESNETS = {
    "resnet18": (BasicBlock, [2, 2, 2, 2]),
    "resnet34": (BasicBlock, [3, 4, 6, 3]),
    "resnet50": (Bottleneck, [3, 4, 6, 3]),
}


def create_model(name: str, num_classes: int) -> WideResNet | ResNet:
    """A freshly initialised network; its weights follow torch's global seed. Raises InputError for an unknown name."""
    name = model_name(name)
    if name in RESNETS:
        block, layers = RESNETS[name]
        return ResNet(block, layers, num_classes=num_classes)
    _, depth, widen_factor = name.split("_")
    return WideResNet(int(depth), int(widen_factor), num_classes)


def parameter_count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors or torch checkpoint, without the wrappings that trainers put around them.

    Nothing in the file is executed: torch files are read with `weights_only=True`; NumPy scalars, which some trainers
    store beside the weights, are data and let through. Raises InputError.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no weights file at {path}")
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            numpy_scalars = [
                np._core.multiarray.scalar,
                np.dtype,
                *(type(np.dtype(t)) for t in ("f4", "f8", "i4", "i8")),
            ]
            with torch.serialization.safe_globals(numpy_scalars):
                state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, KeyError, ValueError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"{path} is not a readable weights file (safetensors, or torch's with tensors alone): {reason}"
        ) from None
    while isinstance(state, dict) and not any(isinstance(v, Tensor) and v.ndim for v in state.values()):
        inner = [
            state[k] for k in ("model", "state_dict", "net", "student", "teacher") if isinstance(state.get(k), dict)
        ]
        if not inner:
            raise InputError(f"{path} holds no weights: expected a state dict, or one under 'model' or 'state_dict'")
        state = inner[0]
    if not isinstance(state, dict):
        raise InputError(f"{path} holds a {type(state).__name__}, not a state dict")
    return {
        k.removeprefix("module."): v.float() if v.is_floating_point() else v
        for k, v in state.items()
        if isinstance(v, Tensor)
    }


def load_weights(name: str, path: str | Path) -> WideResNet | ResNet:
    """The model `name` with the weights in `path`; the number of classes is read from the file.

    Raises InputError if the file is of another network.
    """
    state = read_state_dict(path)
    if "fc.weight" not in state or state["fc.weight"].ndim != 2:
        raise InputError(f"{path} has no classifier 'fc.weight': is it a {model_name(name)}?")
    model = create_model(name, num_classes=len(state["fc.weight"]))
    expected = {k: v.shape for k, v in model.state_dict().items()}
    missing = [k for k in expected if k not in state and not k.endswith("num_batches_tracked")]
    wrong = [
        f"{k} is {tuple(state[k].shape)}, not {tuple(s)}"
        for k, s in expected.items()
        if k in state and state[k].shape != s
    ]
    extra = [k for k in state if k not in expected]
    if missing or wrong or extra:
        first = wrong[0] if wrong else f"{missing[0]} is missing" if missing else f"{extra[0]} has no place"
        count = len(missing) + len(wrong) + len(extra)
        raise InputError(f"{path} does not fit {model_name(name)}: {first} ({count} differences in all)")
    model.load_state_dict(state, strict=False)  # strict but for the counters, which old checkpoints lack
    return model


def imagenet_weights(name: str) -> dict:
    """torchvision's ImageNet weights, from its cache or the network. Raises InputError that says where to put them."""
    weights = get_model_weights(name).IMAGENET1K_V1
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    try:
        return weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except (URLError, OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise InputError(
            f"no ImageNet weights for {name} ({error}): put {weights.url} into {folder}, or set teacher_weights to a "
            f"file with trained weights, or to 'none' to train a teacher from scratch first"
        ) from None


def fingerprint(model: torch.nn.Module) -> str:
    """SHA-256 of all weights: which teacher it was, whatever its file is called."""
    digest = hashlib.sha256()
    for key, value in model.state_dict().items():
        digest.update(key.encode() + value.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
