"""timm's networks by their names there, as timm/NAME; their maps are those that timm returns.

timm is imported when such a name is first used.
"""

import difflib
import importlib
import sys
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from types import ModuleType

from torch import Tensor, nn

from kdnb.errors import InputError
from kdnb.models.base import Output, register
from kdnb.models.preprocessing import Preprocessing

PREFIX = "timm/"
STAGES = 4  # of a network whose maps have one size


def timm_name(name: str) -> str:
    """Returns timm's name of a network, without "timm/"; "" for a network that is not timm's."""
    return name.removeprefix(PREFIX) if name.startswith(PREFIX) else ""


def import_timm() -> ModuleType:
    try:
        return importlib.import_module("timm")
    except ImportError:
        raise InputError(
            f"networks named {PREFIX}NAME come from timm, which is not installed: "
            "pip install 'kdnb[timm]', or pip install timm"
        ) from None


def config(name: str):
    """Returns timm's PretrainedCfg of a network, by its name in timm, with or without a tag.

    Raises InputError for an unknown name.
    """
    timm = import_timm()
    with suppress(RuntimeError):  # an unknown tag
        if timm.is_model(name):
            return timm.models.get_pretrained_cfg(name)
    known = [*timm.list_models(), *timm.list_pretrained()]
    similar = ", ".join(difflib.get_close_matches(name, known, 5))
    hint = f"similar are {similar}" if similar else "timm.list_models() lists the names"
    raise InputError(f"timm has no network {name!r}: {hint}")


class TimmNetwork:
    """Makes one of timm's networks return Output: the first base class of those built here.

    The feats are the maps of timm's `forward_intermediates`. The stages are the last map of each
    size. If all maps have one size, as those of a ViT, they are the last of each quarter of the
    network. A network built for 0 classes has no logits, (batch, 0).

    Attributes:
        block_names: timm's name of the layer behind each map; empty for a network without maps.
        classifier_name: name of the classifier; "" for a network built for 0 classes.
    """

    block_names: list[str]
    classifier_name: str

    def forward(self, x: Tensor) -> Output:
        """Returns the Output of normalised images, (batch, 3, height, width)."""
        if self.block_names:
            x, maps = self.forward_intermediates(x, output_fmt="NCHW")
        else:
            x, maps = self.forward_features(x), []
        pooled = self.forward_head(x, pre_logits=True)
        logits = self.get_classifier()(pooled) if self.classifier_name else pooled[:, :0]
        return Output(logits, tuple(maps), stages(maps), pooled)

    def resampled(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Returns a state dict with positions for the image size of this network, by timm's code.

        state: of the same network, possibly built for another image size.
        """
        module = sys.modules[type(self).__bases__[1].__module__]
        convert = getattr(module, "checkpoint_filter_fn", None)
        return convert(dict(state), self) if convert else state

    def __reduce__(self) -> tuple:
        """Pickles the network by timm's class: pickle does not find a class made at run time."""
        return empty_network, (type(self).__bases__[1],), self.__dict__


def stages(maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
    by_size = {feat.shape[2]: feat for feat in maps}  # the last of each size
    if len(by_size) != 1:
        return tuple(by_size.values())
    last = {len(maps) * quarter // STAGES for quarter in range(1, STAGES + 1)} - {0}
    return tuple(maps[count - 1] for count in sorted(last))


@lru_cache
def adapted(network_class: type) -> type:
    """Returns the subclass of one of timm's classes whose forward pass returns Output."""
    return type(network_class.__name__, (TimmNetwork, network_class), {})


def empty_network(network_class: type) -> nn.Module:
    """Returns an adapted network without its attributes, for unpickling."""
    created = adapted(network_class)
    return created.__new__(created)


def adapt(network: nn.Module) -> nn.Module:
    """Makes a network of timm's return Output, in place.

    Raises InputError if it does not end in one linear layer.
    """
    classifier = network.get_classifier() if network.num_classes else None
    names = [name for name, module in network.named_modules() if module is classifier]
    if network.num_classes and not isinstance(classifier, nn.Linear):
        raise InputError(
            f"{type(network).__name__} of timm does not end in one linear layer, but in "
            f"{type(classifier).__name__}: choose another network"
        )
    network.__class__ = adapted(type(network))
    infos = getattr(network, "feature_info", [])
    has_maps = hasattr(network, "forward_intermediates")
    network.block_names = [info["module"] for info in infos] if has_maps else []
    network.classifier_name = names[0] if names else ""
    return network


def input_size(name: str) -> int:
    """Returns the side in pixels of the images that a network is built for; 0 for any size.

    Such as that of a ViT, whose positions are fixed. Only timm's networks have one.
    """
    if not timm_name(name):
        return 0
    found = config(timm_name(name))
    return found.input_size[-1] if found.fixed_input_size else 0


@register(r"timm/([\w.\-]+)", PREFIX + "{}", PREFIX + "NAME")
def build(name: str, num_classes: int, image_size: int = 0, **options) -> nn.Module:
    """Builds one of timm's networks.

    Args:
        name: its name in timm.
        num_classes: outputs of its classifier; 0 for a network without.
        image_size: side of its images in pixels, for a network that is built for one size; 0: the
            size that timm's own weights have.
        options: further arguments of `timm.create_model`.

    Raises InputError for an unknown name, a size that the network does not fit, and a network that
    does not end in one linear layer.
    """
    if config(name).fixed_input_size and image_size:
        options["img_size"] = image_size
    if options.get("pretrained"):  # what fails then is reported by `timm_model`
        return adapt(import_timm().create_model(name, num_classes=num_classes, **options))
    try:
        network = import_timm().create_model(name, num_classes=num_classes, **options)
    except Exception as error:  # of any type: timm's code gets a size that it may not foresee
        size = f" for images of {image_size} pixels" if image_size else ""
        raise InputError(f"timm cannot build {name}{size}: {error}") from error
    return adapt(network)


def has_timm_weights(name: str) -> bool:
    """Returns whether timm has weights of its own for a network, by its canonical name."""
    return bool(timm_name(name) and config(timm_name(name)).has_weights)


def timm_preprocessing(name: str) -> Preprocessing:
    """Returns how images are prepared for timm's own weights of a network."""
    found = config(timm_name(name))
    return Preprocessing(
        tuple(found.mean), tuple(found.std), found.input_size[-1], found.crop_pct or 1.0
    )


def timm_model(name: str, image_size: int = 0) -> nn.Module:
    """Returns a network with timm's own weights, from its cache or the Hugging Face hub.

    Args:
        name: its canonical name.
        image_size: see `build`. Positions of another size are resampled.

    Raises InputError if the weights are neither in the cache nor can be downloaded.
    """
    found = config(timm_name(name))
    try:
        return build(timm_name(name), found.num_classes, image_size, pretrained=True)
    except InputError:
        raise
    except Exception as error:  # networks, proxies and files fail in many ways
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"timm's weights for {name} are not in its cache and cannot be downloaded "
            f"({first_line}): fetch {found.hf_hub_id or found.url} on a machine "
            "with a network and copy the cache, or give a file with timm's keys in place of "
            "'pretrained', or 'none': then it is trained from scratch"
        ) from None
