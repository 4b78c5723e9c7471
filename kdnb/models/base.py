"""What all networks return, the base class of most, and how a network gets its name."""

import inspect
import re
from collections.abc import Callable, Iterable
from functools import lru_cache, partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdnb.device import system_errors
from kdnb.errors import InputError, quote
from kdnb.sources import claim


class Output(NamedTuple):
    """The logits and feature maps of a batch: what every network returns.

    A tap is a block whose feature map is returned. Maps are (batch, channels, height, width).

    Attributes:
        logits: (batch, classes); (batch, 0) for a network without a classifier.
        feats: the map of each tap, shallow to deep, after the ReLU if one follows the block.
        stages: the maps that published distillation losses compare, shallow to deep: for most
            networks the last map of each size. Those of a WRN are taken before the ReLU. Those of a
            network whose maps have one size, such as a ViT, are spread evenly over its depth.
        pooled: (batch, channels), the input of the classifier.
        preacts: the stages between batch norm and ReLU; empty for a network without such maps.
        adapted: maps that a loss's `predict` made of the student's, see `kdnb.losses.base.Loss`.
    """

    logits: Tensor
    feats: tuple[Tensor, ...]
    stages: tuple[Tensor, ...] = ()
    pooled: Tensor | None = None
    preacts: tuple[Tensor, ...] = ()
    adapted: tuple[Tensor, ...] = ()


class Grouped(nn.Module):
    """Base class of networks made of a stem, groups of blocks, a head and a linear classifier.

    A subclass creates its layers, with the groups as `layer1`, `layer2` ... (or it overrides
    `block_groups`), and the classifier under `classifier_name`. `forward` applies them and collects
    the Output. The last map of each group is a stage.

    Attributes:
        classifier_name: name of the classifier, a linear layer, as in `named_modules()`.
        relu_after_block: whether `forward` applies a ReLU after each block. If so, the blocks
            return pre-activations, and those of the stages become `Output.preacts`.
        tap_every: which blocks of a group are taps: every n-th.
    """

    classifier_name = "fc"
    relu_after_block = True
    tap_every = 1

    def block_groups(self) -> list[Iterable[nn.Module]]:
        """Returns the groups of blocks in the order in which they are applied."""
        return [layer for name, layer in self.named_children() if name.startswith("layer")]

    def stem(self, x: Tensor) -> Tensor:
        """Applies the layers before the first group to the images."""
        return F.relu(self.bn1(self.conv1(x)))

    def head(self, x: Tensor) -> Tensor:
        """Applies the layers between the last group and the global average pooling: none here."""
        return x

    def forward(self, x: Tensor) -> Output:
        """Returns the Output of normalised images, (batch, 3, height, width)."""
        x = self.stem(x)
        feats, stages, preacts = [], [], []
        for group in self.block_groups():
            for number, block in enumerate(group, 1):
                preact = block(x)
                x = F.relu(preact) if self.relu_after_block else preact
                if number % self.tap_every == 0:
                    feats.append(x)
            stages.append(x)
            preacts.append(preact)
        pooled = self.head(x).mean((2, 3))
        logits = self.get_submodule(self.classifier_name)(pooled)
        if not self.relu_after_block:
            preacts = []
        return Output(logits, tuple(feats), tuple(stages), pooled, tuple(preacts))

    @property
    def block_names(self) -> list[str]:
        """The name of each tap for plots: "group.block", both counted from 1."""
        return [
            f"{group}.{block}"
            for group, blocks in enumerate(self.block_groups(), 1)
            for block in range(self.tap_every, len([*blocks]) + 1, self.tap_every)
        ]


def conv(
    in_channels: int, out_channels: int, kernel: int = 1, stride: int = 1, groups: int = 1
) -> nn.Conv2d:
    """Returns a convolution without bias, padded so that stride 1 keeps the size of the map."""
    return nn.Conv2d(
        in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False
    )


def initialise(model: nn.Module, linear: float = 0) -> None:
    """Initialises a network in place: its convolutions as in He et al. (ICCV 2015), mode fan_out.

    Args:
        linear: standard deviation of the weights of linear layers; all biases are set to 0 then.
            0 leaves linear layers and biases as they are.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear) and linear:
            nn.init.normal_(module.weight, std=linear)
        if linear and getattr(module, "bias", None) is not None:
            nn.init.zeros_(module.bias)


class Family(NamedTuple):
    """One registered network or family of networks, see `register`."""

    pattern: re.Pattern
    template: str
    build: Callable[..., nn.Module]


# What a network's name may ask for: a deeper or wider one would take hours to build, or all memory.
MOST_LETTERS = 200
MOST_NUMBER = 2000  # a depth or a width
MOST_PARAMETERS = 10**10

FAMILIES: dict[str, Family] = {}  # by the text that error messages list them with


def register(pattern: str, template: str = "", spelling: str = "") -> Callable:
    """Returns a decorator that gives a network, or a family of networks, its name.

    The decorated function or class is called as `build(*groups, num_classes=...)`, with the groups
    of the pattern that the name matched. It returns a network, for example from `kdnb.tapped`,
    whose forward pass returns an Output and that has two attributes: `block_names`, a name per tap,
    and `classifier_name`, the name of its last linear layer in `named_modules()`. A function with a
    parameter `image_size` also gets the side of the images in pixels, 0 if it is not known. It
    raises InputError for groups that describe no network.

    Names match in upper and lower case alike. The groups are passed in lower case.

    Example::

        @register("MyNet")
        def build(num_classes): ...

        @register(r"mynet_(\\d+)", "mynet_{}", "mynet_DEPTH")
        def build(depth, num_classes): ...

    Args:
        pattern: regular expression that matches the whole name.
        template: the canonical name, with a {} for each group. Default: the pattern.
        spelling: how error messages write the pattern. Default: the pattern.
    """

    def add(build: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
        name = spelling or pattern
        claim("network", name, build, getattr(FAMILIES.get(name), "build", None))
        FAMILIES[name] = Family(
            re.compile(pattern, re.IGNORECASE | re.ASCII), template or pattern, build
        )
        return build

    return add


def find_family(name: str) -> tuple[str, Callable[..., nn.Module]]:
    """Returns the canonical name of a network, and a function `build(num_classes=...)` of it.

    Raises InputError for an unknown name.
    """
    for family in FAMILIES.values() if len(name) <= MOST_LETTERS else ():
        if match := family.pattern.fullmatch(name.strip()):
            groups = [group and group.lower() for group in match.groups()]
            numbers = [group for group in groups if group and group.isdigit()]
            if any(len(number) > 4 or int(number) > MOST_NUMBER for number in numbers):
                break
            return family.template.format(*groups), partial(family.build, *groups)
    raise InputError(f"unknown model {quote(name)}: choose {', '.join(FAMILIES)}")


@lru_cache
@system_errors()
def model_name(name: str) -> str:
    """Returns the canonical name of a network, such as wrn_40_2 for WRN-40-2 and wrn40x2.

    Raises InputError for an unknown name, or a network that cannot be built.
    """
    canonical, build = find_family(name)
    with torch.device("meta"):  # only a check: no memory, and no random numbers are drawn
        parameters = sum(each.numel() for each in build(num_classes=2).parameters())
    if parameters > MOST_PARAMETERS:
        raise InputError(
            f"{canonical} has {parameters:,} parameters: at most {MOST_PARAMETERS:,} are allowed"
        )
    return canonical


def create_model(name: str, num_classes: int, image_size: int = 0) -> nn.Module:
    """Returns a newly initialised network; its weights depend on torch's global seed.

    Args:
        name: the name of a registered network, such as "wrn_40_2", of one of torchvision's, or
            timm/NAME for one of timm's.
        num_classes: number of outputs of its classifier.
        image_size: side of its images in pixels, for a network that is built for one size, such as
            a ViT; 0: the network's own default. Other networks ignore it.

    Raises InputError for an unknown name.
    """
    _, build = find_family(name)
    if image_size and "image_size" in inspect.signature(build).parameters:
        return build(num_classes=num_classes, image_size=image_size)
    return build(num_classes=num_classes)
