"""What every network of the study returns and how it makes itself known; the networks stand in files of their own."""

import re
from collections.abc import Callable, Iterable
from functools import lru_cache, partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdnb.errors import InputError


class Output(NamedTuple):
    """What every model returns.

    Attributes:
        logits: (batch, classes).
        feats: one (batch, channels, height, width) per tapped block, shallow to deep, after the ReLU where one follows.
        stages: the maps that published recipes take, mostly the last of each size (of a WRN the raw, signed sums).
        pooled: (batch, channels), what the classifier reads.
        preacts: stages after batch norm and before the ReLU, of networks that have such; else empty.
    """

    logits: Tensor
    feats: tuple[Tensor, ...]
    stages: tuple[Tensor, ...] = ()
    pooled: Tensor | None = None
    preacts: tuple[Tensor, ...] = ()


class Grouped(nn.Module):
    """A stem, groups of blocks, a head and a linear layer: what the networks of the study have in common.

    Its blocks compute pre-activations; the ReLU that turns them into taps is here. A group's last tap is a stage.
    """

    classifier_name = "fc"
    relu_after_block = True  # False: a block's output is its tap as it is
    tap_every = 1  # of a group, every so many-th block is a tap

    def block_groups(self) -> list[Iterable[nn.Module]]:
        return [layer for name, layer in self.named_children() if name.startswith("layer")]

    def stem(self, x: Tensor) -> Tensor:
        return F.relu(self.bn1(self.conv1(x)))

    def head(self, x: Tensor) -> Tensor:
        """What is done before the pixel mean."""
        return x

    def forward(self, x: Tensor) -> Output:
        """Images (batch, 3, height, width), normalised -> Output."""
        x, feats, stages, preacts = self.stem(x), [], [], []
        for group in self.block_groups():
            for b, block in enumerate(group, 1):
                preact = block(x)
                x = F.relu(preact) if self.relu_after_block else preact
                feats += [] if b % self.tap_every else [x]
            stages.append(x)
            preacts.append(preact)
        pooled = self.head(x).mean((2, 3))
        logits = self.get_submodule(self.classifier_name)(pooled)
        return Output(
            logits,
            tuple(feats),
            tuple(stages),
            pooled,
            tuple(preacts) if self.relu_after_block else (),
        )

    @property
    def block_names(self) -> list[str]:
        """A name per tap, for the axes of plots: group.block, counted from 1."""
        groups = enumerate(([*group] for group in self.block_groups()), 1)
        return [
            f"{g}.{b}"
            for g, group in groups
            for b in range(self.tap_every, len(group) + 1, self.tap_every)
        ]


def conv(
    in_channels: int, out_channels: int, kernel: int = 1, stride: int = 1, groups: int = 1
) -> nn.Conv2d:
    """A convolution that keeps the size (at stride 1), without bias: batch norm follows."""
    return nn.Conv2d(
        in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False
    )


def initialise(model: nn.Module, linear: float = 0) -> None:
    """Convolutions as in He et al. (ICCV 2015); linear: the deviation of linear layers, biases 0 then; 0: as torch."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear) and linear:
            nn.init.normal_(module.weight, std=linear)
        if linear and getattr(module, "bias", None) is not None:
            nn.init.zeros_(module.bias)


class Block(NamedTuple):
    """A tap of a network: its name, group.block, and (channels, height, width) of its map."""

    name: str
    shape: tuple[int, int, int]


FAMILIES: dict[
    str, tuple[re.Pattern, str, Callable[..., nn.Module]]
] = {}  # by how people spell them


def register(pattern: str, template: str = "", spelling: str = "") -> Callable:
    """Makes a function a family of networks: `build(*groups, num_classes)` of the groups of `pattern` in a name.

    template: the canonical name, with a {} for each group; spelling: for people; both are the pattern, if not given. The
    network returns Output and has `block_names`, a name per tap, and `classifier_name`, that of its last linear layer;
    an impossible one is an InputError.
    """

    def add(build: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
        FAMILIES[spelling or pattern] = re.compile(pattern), template or pattern, build
        return build

    return add


def find_family(name: str) -> tuple[str, Callable[..., nn.Module]]:
    for pattern, template, build in FAMILIES.values():
        if match := pattern.fullmatch(name.strip().lower()):
            return template.format(*match.groups()), partial(build, *match.groups())
    raise InputError(f"unknown model {name!r}: choose {', '.join(FAMILIES)}")


@lru_cache
def model_name(name: str) -> str:
    """The name as the study writes it (wrn_40_2); the official code's spellings (`wrn40x2`, `resnet34im`) are accepted.

    Raises InputError for anything that is not a model here.
    """
    canonical, build = find_family(name)
    with torch.device("meta"):  # without memory or random draws: only to see that it can be built
        build(num_classes=2)
    return canonical


def create_model(name: str, num_classes: int) -> nn.Module:
    """A freshly initialised network; its weights follow torch's global seed. Raises InputError for an unknown name."""
    return find_family(name)[1](num_classes=num_classes)


def parameter_count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def class_count(model: nn.Module) -> int:
    """How many classes a network of the study tells apart."""
    return model.get_submodule(model.classifier_name).out_features


@torch.no_grad()
def example_output(model: nn.Module, images: Tensor) -> Output:
    """One forward pass in eval mode that leaves the model as it was. Raises InputError for images it cannot take."""
    was_training = model.training
    try:
        return model.eval()(images)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, AssertionError) as error:
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"images of {images.shape[-1]} pixels do not pass through this network: {why}"
        ) from error
    finally:
        model.train(was_training)


def blocks(model: nn.Module, image_size: int) -> list[Block]:
    """Name and shape of each block's map for square images of so many pixels a side; leaves the model as it was."""
    device = next(model.parameters()).device
    feats = example_output(model, torch.zeros(2, 3, image_size, image_size, device=device)).feats
    return [
        Block(name, tuple(feat.shape[1:]))
        for name, feat in zip(model.block_names, feats, strict=True)
    ]
