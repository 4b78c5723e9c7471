"""Networks that return no features: torch.fx traces them, and their forward pass returns Output."""

import importlib
import math
from collections.abc import Sequence
from types import ModuleType

import torchvision
from torch import Tensor, fx, nn

from kdnb.errors import InputError
from kdnb.models.base import Output


class TracedForward:
    """A forward pass that torch.fx generated, `forward(network, images)`; pickled as source code.

    Args:
        source: Python code that defines a function `forward`.
        variables: the global variables of that code, by name.
    """

    def __init__(self, source: str, variables: dict[str, object]):
        self.source = source
        self.variables = variables
        namespace = dict(variables)
        exec(source, namespace)
        self.forward = namespace["forward"]

    @classmethod
    def of_graph(cls, graph: fx.Graph) -> "TracedForward":
        code = graph.python_code("self")
        used = {name: value for name, value in code.globals.items() if name in code.src}
        return cls(code.src, used)

    @classmethod
    def load(cls, source: str, variables: dict, modules: dict[str, str]) -> "TracedForward":
        imported = {name: importlib.import_module(path) for name, path in modules.items()}
        return cls(source, variables | imported)

    def __reduce__(self) -> tuple:
        """Pickles modules by their names: pickle itself cannot."""
        modules, others = {}, {}
        for name, value in self.variables.items():
            if isinstance(value, ModuleType):
                modules[name] = value.__name__
            else:
                others[name] = value
        return type(self).load, (self.source, others, modules)

    def __deepcopy__(self, memo: dict) -> "TracedForward":
        return self  # it holds no weights and does not change


Forwards = dict[bool, TracedForward]  # by `training`: True for train mode, False for eval mode


class Tapped(nn.Module):
    """A network that returns Output, made of the layers of another; see `tapped`.

    It shares the layers, parameters and attributes of the other network, so that its state dict has
    the same keys. It can be copied and pickled as a whole.

    Args:
        module: the network whose layers it takes.
        forwards: the forward passes, which return the fields of an Output.
        block_names: the name of each tap, shallow to deep.
        classifier: name of the classifier in `module.named_modules()`.
    """

    def __init__(
        self, module: nn.Module, forwards: Forwards, block_names: Sequence[str], classifier: str
    ):
        super().__init__()
        # As a child module it would put its name in front of every key of the state dict.
        self.__dict__.update(vars(module))
        self._version = module._version  # a class attribute: the version of the state dict
        self.forwards = forwards
        self.block_names = list(block_names)
        self.classifier_name = classifier

    def forward(self, x: Tensor) -> Output:
        """Returns the Output of normalised images, (batch, 3, height, width)."""
        logits, maps, pooled = self.forwards[self.training].forward(self, x)
        named = zip(self.block_names, maps, strict=True)
        feats = tuple(as_map(name, values) for name, values in named)
        return Output(logits, feats, feats, pooled)


def as_map(name: str, values: Tensor) -> Tensor:
    """Returns what a layer computes as maps, (batch, channels, height, width).

    Tokens, (batch, n, channels), are laid out as a square if n is a square number; a class token in
    front of them is left out.

    Raises InputError, with the name of the layer, for what is neither.
    """
    if values.ndim == 4:
        return values
    if values.ndim == 3:
        for tokens in (values, values[:, 1:]):
            side = math.isqrt(tokens.shape[1])
            if side and side**2 == tokens.shape[1]:
                return tokens.mT.unflatten(2, (side, side))
    raise InputError(
        f"layer {name!r} returns {tuple(values.shape)}: a tap needs maps (batch, channels, height, "
        "width), or tokens (batch, n, channels) whose number is a square, a class token aside"
    )


def tapped(module: nn.Module, taps: Sequence[str], classifier: str) -> nn.Module:
    """Returns a network that computes what `module` does up to its classifier, and returns Output.

    It shares the layers of `module`, under the same keys. What follows the classifier is left out.

    Args:
        module: any network whose forward pass torch.fx can trace.
        taps: names of layers in `module.named_modules()`, shallow to deep. Each has to return maps,
            (batch, channels, height, width), or tokens that form a square, see `as_map`. These
            become the feats and stages. Of a layer that is called several times, it is the last
            call.
        classifier: name of the last linear layer. Its input becomes `pooled`.

    Raises InputError for names that are not such layers, and for code that cannot be traced.
    """
    if not isinstance(dict(module.named_modules()).get(classifier), nn.Linear):
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
    """Returns forward passes that end at the classifier: they return logits, maps, pooled.

    Args:
        module: the traced network.
        graphs: its graphs, from `trace`. They are changed in place.
        taps: names of layers or of operations, see `last_node`.
        classifier: name of the classifier.
        channels_last: those of the taps whose maps are (batch, height, width, channels).
    """
    compiled = {}
    for mode, graph in graphs.items():
        logits = last_node(graph, classifier)
        nodes = {tap: last_node(graph, tap) for tap in taps}
        graph.erase_node(graph.output_node())
        for tap in channels_last:
            nodes[tap] = graph.call_method("permute", (nodes[tap], 0, 3, 1, 2))
        maps = tuple(nodes.values())
        # A plain tuple: the code that torch 2.11 generates cannot name the class Output.
        graph.output((logits, maps, logits.all_input_nodes[0]))
        graph_module = fx.GraphModule(module, graph)
        graph_module.graph.eliminate_dead_code()
        compiled[mode] = TracedForward.of_graph(graph_module.graph)
    return compiled


def trace(module: nn.Module) -> dict[bool, fx.Graph]:
    """Returns the graphs of a network, {True: in train mode, False: in eval mode}.

    Raises InputError if torch.fx cannot trace it, or if it creates tensors in its forward pass:
    they would be constants in the graph, which do not move to another device.
    """
    was_training = module.training
    graphs = {}
    try:
        for mode in (True, False):
            tracer = fx.Tracer(autowrap_modules=(math, torchvision.ops))
            graphs[mode] = tracer.trace(module.train(mode))
    except Exception as error:  # of any type: the network's own code runs on proxies
        raise InputError(f"{type(module).__name__} cannot be traced by torch.fx: {error}") from None
    finally:
        module.train(was_training)
    for node in graphs[False].nodes:
        if node.op == "get_attr" and "_tensor_constant" in node.target:
            raise InputError(
                f"{type(module).__name__} makes tensors in its forward pass: they have to be its "
                "buffers"
            )
    return graphs


def layers_of(node: fx.Node) -> list[str]:
    """Returns the names of the layers that an operation is part of, outermost first."""
    return [name for name, _ in node.meta.get("nn_module_stack", {}).values()]


def last_node(graph: fx.Graph, name: str) -> fx.Node:
    """Returns the last operation of a layer, or the operation that has this name in the graph.

    Raises InputError, with the outermost layers, if there is none.
    """
    matches = [node for node in graph.nodes if name == node.name or name in layers_of(node)]
    if not matches:
        outermost = dict.fromkeys(layers_of(node)[0] for node in graph.nodes if layers_of(node))
        raise InputError(
            f"no layer {name!r} takes part: choose from {', '.join(outermost)}, or layers within "
            "them"
        )
    return matches[-1]
