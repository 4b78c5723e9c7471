"""Reading checkpoints and torchvision's ImageNet weights, and a fingerprint of weights."""

import hashlib
import json
import pickle
import re
from pathlib import Path
from urllib.error import URLError

import numpy as np
import torch
import torchvision
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models import get_model_weights, list_models

from kdnb.errors import InputError
from kdnb.models.base import create_model, model_name
from kdnb.models.preprocessing import Preprocessing
from kdnb.models.timm_networks import timm_name

READ_ERRORS = (
    SafetensorError,
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    KeyError,
    ValueError,
    OSError,
)
WRAPPERS = ("model", "state_dict", "net", "student", "teacher")  # keys that state dicts are under


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Returns the tensors of a .safetensors or torch checkpoint by their keys, on the CPU.

    A dictionary around the state dict, as trainers save it, and the prefix "module." are removed.
    Half precision becomes float32. No code in the file is executed: torch files are read with
    `weights_only=True`, NumPy scalars in them are allowed.

    Raises InputError for a file that is missing, cannot be read or holds no weights.
    """
    path = Path(path)
    state = unwrap(read_file(path), path)
    tensors = {
        current_key(str(key).removeprefix("module.")): value
        for key, value in state.items()
        if isinstance(value, Tensor)
    }
    return {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}


def read_file(path: Path) -> object:
    if not path.is_file():
        raise InputError(f"no weights file at {path}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        # Harmless types, which some trainers save with the weights.
        scalars = [type(np.dtype(name)) for name in ("f4", "f8", "i4", "i8")]
        with torch.serialization.safe_globals([np._core.multiarray.scalar, np.dtype, *scalars]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except READ_ERRORS as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"{path} is not a readable weights file (safetensors, or torch's with nothing but "
            f"tensors): {reason}"
        ) from None


def unwrap(state: object, path: Path) -> dict:
    """Returns the state dict within the dictionaries that a trainer saved around it."""
    while isinstance(state, dict) and not any(
        isinstance(value, Tensor) and value.ndim for value in state.values()
    ):
        wrapped = [state[key] for key in WRAPPERS if isinstance(state.get(key), dict)]
        if not wrapped:
            raise InputError(
                f"{path} holds no weights: expected a state dict, or one under 'model' or "
                "'state_dict'"
            )
        state = wrapped[0]
    if not isinstance(state, dict):
        raise InputError(f"{path} holds a {type(state).__name__}, not a state dict")
    return state


def current_key(key: str) -> str:
    """Returns a key as torchvision writes it today.

    Its files of DenseNets are older: they say "denselayer1.norm.1" where it is "denselayer1.norm1".
    """
    return re.sub(r"(denselayer\d+\.(?:norm|conv))\.(\d)", r"\1\2", key)


def read_metadata(path: str | Path) -> dict:
    """Returns what kdnb saved with the weights in a .safetensors file, such as the class names.

    Other files, and files that cannot be read, give {}.
    """
    if Path(path).suffix != ".safetensors":
        return {}
    try:
        with safe_open(path, framework="pt") as file:
            metadata = json.loads((file.metadata() or {}).get("kdnb", "{}"))
    except (SafetensorError, OSError, ValueError):
        return {}  # read_state_dict reports what is wrong with the file
    return metadata if isinstance(metadata, dict) else {}


def load_weights(name: str, path: str | Path, image_size: int = 0) -> nn.Module:
    """Returns the network `name` with the weights of a checkpoint.

    The number of classes is read from the checkpoint. One of timm's networks may lack a classifier.

    Args:
        name: name of the network.
        path: the checkpoint.
        image_size: side of the images in pixels, for a network that is built for one size, see
            `create_model`. The positions in the checkpoint may be of another size: then they are
            resampled. 0: the size in the file's metadata, or else the network's own.

    Raises InputError for a file that `read_state_dict` cannot read, and for weights of another
    network.
    """
    state = read_state_dict(path)
    with torch.device("meta"):  # only to get the classifier's name: no memory, no random numbers
        classifier = f"{create_model(name, 2).classifier_name}.weight"
    has_classifier = classifier in state and state[classifier].ndim == 2
    if not has_classifier and not timm_name(model_name(name)):
        raise InputError(f"{path} has no classifier {classifier!r}: is it a {model_name(name)}?")
    preprocessing = Preprocessing.from_metadata(read_metadata(path))
    if not image_size and preprocessing:
        image_size = preprocessing.image_size
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
    except (URLError, OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise InputError(
            f"no ImageNet weights for {name} ({error}): put {weights.url} into {folder}, or give a "
            "file with trained weights in place of 'imagenet', or 'none': then it is trained from "
            "scratch"
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
