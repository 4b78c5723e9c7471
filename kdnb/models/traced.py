"""Networks written elsewhere, torchvision's or one's own: torch.fx finds in their code the maps that Output has."""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
import torchvision
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torchvision.models import get_model, list_models

from kdnb.errors import InputError
from kdnb.models import resnet
from kdnb.models.base import Output, register

NAMES = [name for name in list_models(module=torchvision.models) if name not in resnet.LAYERS]
Forwards = dict[
    bool, Callable[[nn.Module, Tensor], tuple]
]  # what makes an Output, by whether in train mode
SIZE = 224  # pixels a side of ImageNet's images


class Tapped(nn.Module):
    """A network that returns Output, made by `tapped`. Its layers are those of `module`, under the same keys."""

    def __init__(
        self, module: nn.Module, forwards: Forwards, block_names: Sequence[str], classifier: str
    ):
        super().__init__()
        self.__dict__.update(vars(module))  # not a child, whose name would be in front of every key
        self._version = module._version  # of its state dict
        self.forwards, self.block_names, self.classifier_name = (
            forwards,
            list(block_names),
            classifier,
        )

    def forward(self, x: Tensor) -> Output:
        """Images (batch, 3, height, width), normalised -> Output."""
        return Output(*self.forwards[self.training](self, x))


def tapped(module: nn.Module, taps: Sequence[str], classifier: str) -> nn.Module:
    """Any network, returning Output, with its own layers and keys; what follows the classifier is left out.

    taps: layers, shallow to deep, by the names of `module.named_modules()`; what each returns last, maps (batch,
    channels, height, width), are the feats and the stages. classifier: its last linear layer, whose input is pooled.
    Raises InputError for names that are no such layers and for code that torch.fx cannot trace.
    """
    linear = dict(module.named_modules()).get(classifier)
    if not isinstance(linear, nn.Linear):
        raise InputError(
            f"classifier {classifier!r} of {type(module).__name__} is no torch.nn.Linear"
        )
    return Tapped(module, forwards(module, trace(module), taps, classifier), taps, classifier)


def forwards(
    module: nn.Module,
    graphs: dict[bool, fx.Graph],
    taps: Sequence[str],
    classifier: str,
    channels_last: Sequence[str] = (),
) -> Forwards:
    """The traced forward passes, cut off at the classifier; channels_last: taps whose channels are last."""
    found = {}
    for mode, graph in graphs.items():
        logits, nodes = last_node(graph, classifier), {tap: last_node(graph, tap) for tap in taps}
        graph.erase_node(graph.output_node())
        nodes |= {
            tap: graph.call_method("permute", (nodes[tap], 0, 3, 1, 2)) for tap in channels_last
        }
        maps = tuple(nodes.values())
        graph.output(
            (logits, maps, maps, logits.all_input_nodes[0])
        )  # plain: torch 2.11's code does not know Output
        made = fx.GraphModule(module, graph)
        graph.eliminate_dead_code()
        made.recompile()
        found[mode] = type(made).forward
    return found


def trace(module: nn.Module) -> dict[bool, fx.Graph]:
    """The operations of a network, by whether in train mode. Raises InputError if they cannot be told."""
    was, graphs = module.training, {}
    try:
        for mode in (True, False):
            graphs[mode] = fx.Tracer(autowrap_modules=(math, torchvision.ops)).trace(
                module.train(mode)
            )
    except Exception as error:  # of any kind: its own code runs on what is no tensor
        raise InputError(f"{type(module).__name__} cannot be traced by torch.fx: {error}") from None
    finally:
        module.train(was)
    if any(
        node.op == "get_attr" and "_tensor_constant" in node.target for node in graphs[False].nodes
    ):
        raise InputError(
            f"{type(module).__name__} makes tensors in its forward pass: they have to be its buffers"
        )
    return graphs


def layers(node: fx.Node) -> list[str]:
    """The names of the layers in which an operation takes place, outermost first."""
    return [name for name, _ in node.meta.get("nn_module_stack", {}).values()]


def last_node(graph: fx.Graph, name: str) -> fx.Node:
    """The last operation of a layer; or the one that torch.fx calls so."""
    inside = [node for node in graph.nodes if name == node.name or name in layers(node)]
    if not inside:
        known = dict.fromkeys(layers(node)[0] for node in graph.nodes if layers(node))
        raise InputError(
            f"no layer {name!r} takes part: choose from {', '.join(known)}, or layers within them"
        )
    return inside[-1]


def dominators(graph: fx.Graph, end: fx.Node) -> list[fx.Node]:
    """The operations that every path from the images to `end` passes: no branch, no shortcut goes round them."""
    nodes = list(graph.nodes)
    after, before = {nodes[0]}, {end}
    for node in nodes:
        after |= {node} if after.intersection(node.all_input_nodes) else set()
    for node in reversed(nodes):
        before |= {node} if before.intersection(node.users) else set()
    way = [node for node in nodes if node in after & before]
    place = {node: i for i, node in enumerate(way)}
    found, reach = [], 0  # the furthest that a path has come
    for i, node in enumerate(way):
        found += [node] if reach <= i else []
        reach = max([reach, *(place[user] for user in node.users if user in place)])
    return found


def build_torchvision(name: str, num_classes: int) -> nn.Module:
    try:
        return get_model(name, num_classes=num_classes)
    except NotImplementedError:  # on the meta device: RegNet computes its widths with tensors
        with torch.random.fork_rng([]), torch.device("cpu"):
            return get_model(name, num_classes=num_classes).to("meta")


def side(node: fx.Node) -> tuple[int, bool]:
    """Pixels a side of the square map that an operation made (0: none), and whether its channels are last."""
    shape = getattr(node.meta.get("tensor_meta"), "shape", ())
    if len(shape) != 4:
        return 0, False
    return (shape[2], False) if shape[2] == shape[3] else (shape[1] * (shape[1] == shape[2]), True)


@lru_cache
@torch.no_grad()
def torchvision_taps(name: str) -> tuple[Forwards, list[str], str]:
    """What `Tapped` needs besides one of torchvision's networks itself. Raises InputError for one without maps.

    The taps are the last maps on its trunk of each size that they have with images of 224 pixels.
    """
    with torch.device("meta"):
        module = build_torchvision(name, 2).eval()
        classifier = [
            None,
            *(key for key, layer in module.named_modules() if isinstance(layer, nn.Linear)),
        ][-1]
        graphs = trace(module)
        ends = [graph.output_node().args[0] for graph in graphs.values()]
        if any(getattr(end, "target", "") != classifier for end in ends):
            raise InputError(
                f"{name} does not end in one linear layer: it cannot be told what its features are"
            )
        ShapeProp(fx.GraphModule(module, graphs[False])).propagate(torch.zeros(2, 3, SIZE, SIZE))
        sides = {}  # the last operation of each size
        for node in dominators(graphs[False], ends[1])[1:]:
            pool = node.op == "call_module" and isinstance(
                module.get_submodule(node.target), nn.AdaptiveAvgPool2d
            )
            pixels, is_channels_last = side(node)
            if pixels > 1 and not pool:  # VGG's fits maps of any size to its classifier
                sides[pixels] = node, is_channels_last
        if len(sides) < 2:
            raise InputError(
                f"{name} has no feature maps of several sizes (batch, channels, height, width) to distil"
            )
        nodes = [node for node, _ in sides.values()]
        channels_last = [node.name for node, is_channels_last in sides.values() if is_channels_last]
        made = forwards(module, graphs, [node.name for node in nodes], classifier, channels_last)
    return made, [(layers(node) or [node.name])[-1] for node in nodes], classifier


@register(
    f"({'|'.join(NAMES)})", "{}", "any of torchvision's such as mobilenet_v3_small or convnext_tiny"
)
def build(name: str, num_classes: int) -> Tapped:
    return Tapped(build_torchvision(name, num_classes), *torchvision_taps(name))
