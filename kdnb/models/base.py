"""What every network of the study returns and how it makes itself known; the networks stand in files of their own."""

import re
from collections.abc import Callable
from functools import lru_cache, partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from kdnb.errors import InputError


class Output(NamedTuple):
    """What every model returns.

    Attributes:
        logits: (batch, classes).
        feats: one (batch, channels, height, width) per block, shallow to deep, after the ReLU.
        stages: the last map of each resolution, as published recipes see it (of a WRN the raw residual sum, signed).
        pooled: (batch, channels), what the classifier reads.
        preacts: stages after batch norm and before the ReLU, of networks that have such; else empty.
    """

    logits: Tensor
    feats: tuple[Tensor, ...]
    stages: tuple[Tensor, ...] = ()
    pooled: Tensor | None = None
    preacts: tuple[Tensor, ...] = ()


class Block(NamedTuple):
    """A tap of a network: its name, group.block, and (channels, height, width) of its map."""

    name: str
    shape: tuple[int, int, int]


FAMILIES: dict[str, tuple[re.Pattern, str, Callable[..., nn.Module]]] = {}  # by how people spell them


def register(pattern: str, template: str, spelt: str) -> Callable:
    """Makes a function a family of networks: `build(*groups, num_classes)` of the groups of `pattern` in a name.

    template: the canonical name, with a {} for each group; spelt: for people. The network returns Output and has
    `block_names`, a name per tap, and `classifier`, the name of its last linear layer; an impossible one is an
    InputError.
    """

    def add(build: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
        FAMILIES[spelt] = re.compile(pattern), template, build
        return build

    return add


def find(name: str) -> tuple[str, Callable[..., nn.Module]]:
    for pattern, template, build in FAMILIES.values():
        if match := pattern.fullmatch(name.strip().lower()):
            return template.format(*match.groups()), partial(build, *match.groups())
    raise InputError(f"unknown model {name!r}: choose {', '.join(FAMILIES)}")


@lru_cache
def model_name(name: str) -> str:
    """The name as the literature writes it; the official code's spellings (`wrn40x2`, `resnet34im`) are accepted.

    Raises InputError for anything that is not a model here.
    """
    canonical, build = find(name)
    with torch.device("meta"):  # without memory or random draws: only to see that it can be built
        build(num_classes=2)
    return canonical


def create_model(name: str, num_classes: int) -> nn.Module:
    """A freshly initialised network; its weights follow torch's global seed. Raises InputError for an unknown name."""
    return find(name)[1](num_classes=num_classes)


def class_count(model: nn.Module) -> int:
    """How many classes a network of the study tells apart."""
    return model.get_submodule(model.classifier).out_features


@torch.no_grad()
def blocks(model: nn.Module, image_size: int) -> list[Block]:
    """Name and shape of each block's map for square images of so many pixels a side; leaves the model as it was."""
    was_training, device = model.training, next(model.parameters()).device
    feats = model.eval()(torch.zeros(2, 3, image_size, image_size, device=device)).feats
    model.train(was_training)
    return [Block(name, tuple(feat.shape[1:])) for name, feat in zip(model.block_names, feats, strict=True)]
