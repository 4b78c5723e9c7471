"""Reading checkpoints and torchvision's ImageNet weights, and a fingerprint of weights."""

import hashlib
import json
import pickle
import re
from collections.abc import Mapping
from pathlib import Path

import torch
import torchvision
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torchvision.models import get_model_weights, list_models

from kdnb.device import system_errors
from kdnb.errors import InputError, shorten
from kdnb.models.base import create_model, model_name
from kdnb.models.preprocessing import Preprocessing
from kdnb.models.state_dicts import Entry, entries, find_network, largest_dictionary, plain
from kdnb.models.timm_networks import timm_name
from kdnb.models.weights_file import read_file, refused


@system_errors()
def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Returns the tensors of a .safetensors or torch checkpoint by their keys, on the CPU.

    Of dictionaries in dictionaries, as trainers save them, that with most tensors is read. A
    wrapper that all keys begin with, such as "module.", is removed. Half precision becomes
    float32. No code in the file is executed; plain containers and NumPy's numbers are allowed.

    Raises InputError for a file that is missing, cannot be read or holds no weights, and for
    weights that are not finite.
    """
    path = Path(path)
    return plain(largest_dictionary(read_entries(path)), path)


def read_entries(path: Path) -> list[Entry]:
    """Returns all tensors of a file, with the keys of today. Raises InputError if it has none."""
    content = read_file(path)
    found = entries(content)
    if not any(entry.tensor.dim() for entry in found):
        what = "" if isinstance(content, Mapping) else f"but a {type(content).__name__}, "
        raise InputError(f"{path} holds no weights, {what}where a state dict is expected")
    if nested := [entry.key for entry in found if entry.tensor.is_nested]:
        raise InputError(f"{path}: {nested[0]} is a nested tensor, which no network here has")
    return [entry._replace(key=current_key(entry.key)) for entry in found]


def current_key(key: str) -> str:
    """Returns a key as torchvision writes it today.

    Its files of DenseNets are older: they say "denselayer1.norm.1" where it is "denselayer1.norm1".
    """
    return re.sub(r"(denselayer\d+\.(?:norm|conv))\.(\d)", r"\1\2", key)


def stored_precision(path: str | Path) -> str:
    """Returns the type of the largest tensor of a checkpoint, such as "float16"."""
    tensors = (entry.tensor for entry in read_entries(Path(path)))
    return str(max(tensors, key=Tensor.numel).dtype).removeprefix("torch.")


def read_metadata(path: str | Path) -> dict:
    """Returns what kdnb saved with the weights in a .safetensors file, such as the class names.

    Other files, and files that cannot be read, give {}. What is of another type than kdnb writes is
    left out.
    """
    if Path(path).suffix != ".safetensors":
        return {}
    try:
        with safe_open(path, framework="pt") as file:
            metadata = json.loads((file.metadata() or {}).get("kdnb", "{}"))
    except (SafetensorError, OSError, ValueError, RecursionError):
        return {}  # read_state_dict reports what is wrong with the file
    if not isinstance(metadata, dict):
        return {}
    checks = {name: check for name, check in METADATA.items() if name in metadata}
    wrong = {name for name, check in checks.items() if not check(metadata[name])}
    return {name: value for name, value in metadata.items() if name not in wrong}


def is_text(value: object) -> bool:
    return isinstance(value, str)


def are_pairs(value: object) -> bool:
    """Returns whether a value is {field: [value, default]}, as a run's overrides are."""
    pairs = value.values() if isinstance(value, dict) else [None]
    return all(isinstance(pair, list) and len(pair) == 2 for pair in pairs)


# Whether a part of the metadata is what kdnb writes. "changes" are the overrides of older files.
METADATA = dict.fromkeys(("network", "dataset", "method", "teacher", "run", "commit"), is_text)
METADATA |= dict.fromkeys(("overrides", "changes"), are_pairs)
METADATA |= {"classes": lambda value: isinstance(value, list) and all(map(is_text, value))}
METADATA |= {"top1": lambda value: isinstance(value, float) and 0 <= value <= 100.001}


@system_errors()
def load_weights(
    name: str, path: str | Path, image_size: int = 0, role: str = "", network_alone: bool = False
) -> nn.Module:
    """Returns the network `name` with the weights of a checkpoint.

    They are found wherever a trainer put them: in dictionaries of any name, with prefixes of the
    keys. The number of classes is read from the checkpoint. One of timm's networks may lack a
    classifier.

    Args:
        name: name of the network.
        path: the checkpoint.
        image_size: side of the images in pixels, for a network that is built for one size, see
            `create_model`. The positions in the checkpoint may be of another size: then they are
            resampled. 0: the size in the file's metadata, or else the network's own.
        role: "student" or "teacher": which of several networks in the file is meant.
        network_alone: whether to load the network of a student whose method changed how it
            predicts, such as SimKD's, without what changed it.

    Raises InputError for a file that cannot be read, for weights of another network, for weights
    that are not finite, and for a student that does not predict by its network alone.
    """
    path = Path(path)
    found = read_entries(path)
    if "predictor" in read_metadata(path):
        if not network_alone:
            raise InputError(
                f"{path} holds a student that does not predict by its network alone: load it by "
                "kdnb.load"
            )
        found = [entry for entry in found if not entry.key.startswith("predictor.")]
    with torch.device("meta"):  # only for keys and shapes: no memory, no random numbers
        example = create_model(name, 2)
    state = find_network(found, example.state_dict(), role, path)
    classifier = f"{example.classifier_name}.weight"
    has_classifier = classifier in state and state[classifier].ndim == 2
    has_classifier &= has_classifier and len(state[classifier]) > 0
    if not has_classifier and not timm_name(model_name(name)):
        keys = ", ".join(shorten(entry.key, 60) for entry in found[:3])
        raise InputError(
            f"{path} has no classifier {classifier!r}: is it a {model_name(name)}? "
            f"It begins with {keys}"
        )
    preprocessing = Preprocessing.from_metadata(read_metadata(path))
    if not image_size and preprocessing:
        image_size = preprocessing.image_size
    state = plain(state, path, example.state_dict())
    model = create_model(name, len(state[classifier]) if has_classifier else 0, image_size)
    expected = model.state_dict()
    if timm_name(model_name(name)) and state.keys() == expected.keys():  # only shapes may differ
        state = model.resampled(state) if compare_keys(state, expected) else state
    if differences := compare_keys(state, expected):
        raise InputError(
            f"{path} does not fit {model_name(name)}: {differences[0]} "
            f"({len(differences)} differences in all)"
        )
    model.load_state_dict(state, strict=False)
    return model


def compare_keys(state: dict[str, Tensor], expected: dict[str, Tensor]) -> list[str]:
    """Returns how a state dict differs from the expected one: shapes, then missing and extra keys.

    The counters of batch norm may be missing, as in old checkpoints.
    """
    shapes, missing = [], []
    for key, value in expected.items():
        if key in state and state[key].shape != value.shape:
            shapes.append(f"{key} is {tuple(state[key].shape)}, not {tuple(value.shape)}")
        if key not in state and not key.endswith("num_batches_tracked"):
            missing.append(f"{key} is missing")
        if key in state and value.is_floating_point() > state[key].is_floating_point():
            shapes.append(f"{key} is of {state[key].dtype}, not of {value.dtype}")
    extra = [f"{key} is not in the network" for key in state if key not in expected]
    return shapes + missing + extra


def has_imagenet_weights(name: str) -> bool:
    """Returns whether torchvision has ImageNet weights for a network, by its canonical name."""
    return name in list_models(module=torchvision.models)


def imagenet_model(name: str) -> tuple[nn.Module, list[str]]:
    """Returns a network with torchvision's ImageNet weights, and the names of its 1,000 classes.

    The weights are read from torch's cache, or downloaded. If neither is possible, an InputError
    says which file is needed where.
    """
    versions = get_model_weights(name)
    weights = getattr(versions, "IMAGENET1K_V1", versions.DEFAULT)
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    try:
        state = weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except Exception as error:  # networks, proxies and files fail in many ways
        is_of_file = isinstance(error, pickle.UnpicklingError | RuntimeError)
        reason = refused(error) if is_of_file else error
        raise InputError(
            f"no ImageNet weights for {name} ({reason}): put {weights.url} into {folder}, or give "
            "a file with trained weights in place of 'imagenet', or 'none': then it is trained "
            "from scratch"
        ) from None
    classes = list(weights.meta["categories"])
    model = create_model(name, len(classes))
    model.load_state_dict({current_key(key): value for key, value in state.items()})
    return model, classes


def imagenet_preprocessing(name: str) -> Preprocessing:
    """Returns how images are prepared for torchvision's ImageNet weights of a network."""
    versions = get_model_weights(name)
    images = getattr(versions, "IMAGENET1K_V1", versions.DEFAULT).transforms()
    (size,), (resized,) = images.crop_size, images.resize_size
    return Preprocessing(tuple(images.mean), tuple(images.std), size, size / resized)


def fingerprint(model: nn.Module) -> str:
    """Returns 16 hex digits that identify a network's weights: the start of their SHA-256."""
    digest = hashlib.sha256()
    for key, value in model.state_dict().items():
        digest.update(key.encode() + value.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
