"""Facts of a network: its parameters, classes, and the shapes of its maps."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from kdnb.errors import InputError
from kdnb.models.base import Output


class Block(NamedTuple):
    """A tap of a network.

    Attributes:
        name: its name in `block_names`.
        shape: (channels, height, width) of its map.
    """

    name: str
    shape: tuple[int, int, int]


def parameter_count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def class_count(model: nn.Module) -> int:
    """Returns the number of classes of a network: the outputs of its classifier; 0 without one."""
    if not model.classifier_name:
        return 0
    return model.get_submodule(model.classifier_name).out_features


@torch.no_grad()
def example_output(model: nn.Module, images: Tensor) -> Output:
    """Returns a network's Output in eval mode, without gradients; its mode is restored.

    Raises InputError for images that the network cannot process, such as too small ones.
    """
    was_training = model.training
    try:
        return model.eval()(images)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, AssertionError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"images of {images.shape[-1]} pixels do not pass through this network: {reason}"
        ) from error
    finally:
        model.train(was_training)


def blocks(model: nn.Module, image_size: int) -> list[Block]:
    """Returns the name and shape of each tap for images of image_size x image_size pixels."""
    device = next(model.parameters()).device
    feats = example_output(model, torch.zeros(2, 3, image_size, image_size, device=device)).feats
    return [
        Block(name, tuple(feat.shape[1:]))
        for name, feat in zip(model.block_names, feats, strict=True)
    ]
