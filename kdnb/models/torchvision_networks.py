"""torchvision's networks by their names there; their taps are found by tracing."""

from functools import lru_cache

import torch
import torchvision
from torch import fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torchvision.models import get_model, list_models

from kdnb.errors import InputError
from kdnb.models import resnet
from kdnb.models.base import register
from kdnb.models.traced import Forwards, Tapped, forwards, layers_of, trace

NAMES = [name for name in list_models(module=torchvision.models) if name not in resnet.LAYERS]
SIZE = 224  # side of ImageNet's images in pixels


def build_torchvision(name: str, num_classes: int) -> nn.Module:
    try:
        return get_model(name, num_classes=num_classes)
    except NotImplementedError:  # on the meta device: RegNet computes its widths with tensors
        with torch.random.fork_rng([]), torch.device("cpu"):
            return get_model(name, num_classes=num_classes).to("meta")


def dominators(graph: fx.Graph, end: fx.Node) -> list[fx.Node]:
    """Returns the operations on every path from the input to `end`, in order.

    No branch and no shortcut bypasses them.
    """
    nodes = list(graph.nodes)
    after_input = {nodes[0]}
    for node in nodes:
        if after_input.intersection(node.all_input_nodes):
            after_input.add(node)
    before_end = {end}
    for node in reversed(nodes):
        if before_end.intersection(node.users):
            before_end.add(node)
    path_nodes = [node for node in nodes if node in after_input and node in before_end]
    position = {node: i for i, node in enumerate(path_nodes)}
    unbypassed = []
    furthest = 0  # position of the furthest operation that reads the result of an earlier one
    for i, node in enumerate(path_nodes):
        if furthest <= i:
            unbypassed.append(node)
        readers = [position[user] for user in node.users if user in position]
        furthest = max([furthest, *readers])
    return unbypassed


def map_size(node: fx.Node) -> tuple[int, bool]:
    """Returns the side in pixels of an operation's square map, and whether its channels are last.

    The side is 0 if the result is no square map.
    """
    shape = getattr(node.meta.get("tensor_meta"), "shape", ())
    if len(shape) != 4:
        return 0, False
    if shape[2] == shape[3]:
        return shape[2], False
    if shape[1] == shape[2]:
        return shape[1], True
    return 0, True


def find_classifier(module: nn.Module) -> str | None:
    """Returns the name of the last linear layer; None if there is none."""
    names = [name for name, layer in module.named_modules() if isinstance(layer, nn.Linear)]
    return names[-1] if names else None


def last_maps(module: nn.Module, graph: fx.Graph) -> list[tuple[fx.Node, bool]]:
    """Returns, for each size of map, the last dominator with a map of it, large to small.

    The sizes are those for images of 224 pixels; maps of one pixel are left out. Each comes with
    whether its channels are last.
    """
    ShapeProp(fx.GraphModule(module, graph)).propagate(torch.zeros(2, 3, SIZE, SIZE))
    by_size = {}
    for node in dominators(graph, graph.output_node().args[0])[1:]:
        # VGG's adaptive pooling only fits maps of any size to its classifier.
        is_pooling = node.op == "call_module" and isinstance(
            module.get_submodule(node.target), nn.AdaptiveAvgPool2d
        )
        size, is_channels_last = map_size(node)
        if size > 1 and not is_pooling:
            by_size[size] = node, is_channels_last
    return list(by_size.values())


@lru_cache
@torch.no_grad()
def torchvision_taps(name: str) -> tuple[Forwards, list[str], str]:
    """Returns the arguments of Tapped for one of torchvision's networks, but for the network.

    The taps are the last maps of each size that no branch or shortcut bypasses.

    Raises InputError for a network without maps of several sizes or without a linear classifier.
    """
    with torch.device("meta"):
        module = build_torchvision(name, 2).eval()
        classifier = find_classifier(module)
        graphs = trace(module)
        results = [graph.output_node().args[0] for graph in graphs.values()]
        if any(getattr(result, "target", "") != classifier for result in results):
            raise InputError(
                f"{name} does not end in one linear layer: so its features are unknown"
            )
        maps = last_maps(module, graphs[False])
        if len(maps) < 2:
            raise InputError(
                f"{name} has no feature maps of several sizes (batch, channels, height, width) to "
                "distil"
            )
        nodes = [node for node, _ in maps]
        channels_last = [node.name for node, is_channels_last in maps if is_channels_last]
        taps = [node.name for node in nodes]
        compiled = forwards(module, graphs, taps, classifier, channels_last)
    names = [(layers_of(node) or [node.name])[-1] for node in nodes]
    return compiled, names, classifier


@register(
    f"({'|'.join(NAMES)})", "{}", "any of torchvision's such as mobilenet_v3_small or convnext_tiny"
)
def build(name: str, num_classes: int) -> Tapped:
    return Tapped(build_torchvision(name, num_classes), *torchvision_taps(name))
