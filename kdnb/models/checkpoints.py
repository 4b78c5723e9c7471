"""Weights files: reading them, torchvision's ImageNet weights, and what tells two sets of weights apart."""

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


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors or torch checkpoint, without the wrappings that trainers put around them.

    Nothing in the file is executed: torch files are read with `weights_only=True`; NumPy scalars, which some trainers
    store beside the weights, are data and let through. Half precision comes as float32. Raises InputError.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no weights file at {path}")
    numpy_scalars = [
        np._core.multiarray.scalar,
        np.dtype,
        *(type(np.dtype(t)) for t in ("f4", "f8", "i4", "i8")),
    ]
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            with torch.serialization.safe_globals(numpy_scalars):
                state = torch.load(path, map_location="cpu", weights_only=True)
    except (
        SafetensorError,
        pickle.UnpicklingError,
        RuntimeError,
        EOFError,
        KeyError,
        ValueError,
        OSError,
    ) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        wanted = "safetensors, or torch's with tensors alone"
        raise InputError(f"{path} is not a readable weights file ({wanted}): {reason}") from None
    while isinstance(state, dict) and not any(
        isinstance(v, Tensor) and v.ndim for v in state.values()
    ):
        wrappings = ("model", "state_dict", "net", "student", "teacher")
        inner = [state[k] for k in wrappings if isinstance(state.get(k), dict)]
        if not inner:
            raise InputError(
                f"{path} holds no weights: expected a state dict, or one under 'model' or 'state_dict'"
            )
        state = inner[0]
    if not isinstance(state, dict):
        raise InputError(f"{path} holds a {type(state).__name__}, not a state dict")
    tensors = {
        current_key(str(k).removeprefix("module.")): v
        for k, v in state.items()
        if isinstance(v, Tensor)
    }
    return {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}


def current_key(key: str) -> str:
    """The key as torchvision writes it today: its files of DenseNets are older ("denselayer1.norm.1.weight")."""
    return re.sub(r"(denselayer\d+\.(?:norm|conv))\.(\d)", r"\1\2", key)


def read_metadata(path: str | Path) -> dict:
    """What kdnb keeps beside the tensors of a .safetensors file, such as its classes; {} for files of others."""
    if Path(path).suffix != ".safetensors":
        return {}
    try:
        with safe_open(path, framework="pt") as file:
            found = json.loads((file.metadata() or {}).get("kdnb", "{}"))
    except (SafetensorError, OSError, ValueError):
        return {}  # reading the weights will say what is wrong
    return found if isinstance(found, dict) else {}


def load_weights(name: str, path: str | Path) -> nn.Module:
    """The model `name` with the weights in `path`; the number of classes is read from the file.

    Raises InputError if the file is of another network.
    """
    state = read_state_dict(path)
    with torch.device(
        "meta"
    ):  # without memory or random draws: only to learn how its classifier is called
        classifier = f"{create_model(name, 2).classifier_name}.weight"
    if classifier not in state or state[classifier].ndim != 2:
        raise InputError(f"{path} has no classifier {classifier!r}: is it a {model_name(name)}?")
    model = create_model(name, num_classes=len(state[classifier]))
    expected = {k: v.shape for k, v in model.state_dict().items()}
    # Old checkpoints lack batch norm's counters.
    wrong = [
        f"{k} is missing"
        for k in expected
        if k not in state and not k.endswith("num_batches_tracked")
    ]
    shapes = [
        (k, tuple(state[k].shape), tuple(s))
        for k, s in expected.items()
        if k in state and state[k].shape != s
    ]
    wrong = [f"{k} is {has}, not {wanted}" for k, has, wanted in shapes] + wrong
    wrong += [f"{k} has no place" for k in state if k not in expected]
    if wrong:
        raise InputError(
            f"{path} does not fit {model_name(name)}: {wrong[0]} ({len(wrong)} differences in all)"
        )
    model.load_state_dict(state, strict=False)
    return model


def has_imagenet_weights(name: str) -> bool:
    """Whether torchvision offers weights of this network that were trained on ImageNet."""
    return name in list_models(module=torchvision.models)


def imagenet_model(name: str) -> tuple[nn.Module, list[str]]:
    """The network with torchvision's ImageNet weights, from its cache or the net, and the names of their classes.

    Raises InputError that says where to put the file.
    """
    known = get_model_weights(name)
    weights = getattr(known, "IMAGENET1K_V1", known.DEFAULT)
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    try:
        state = weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except (URLError, OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise InputError(
            f"no ImageNet weights for {name} ({error}): put {weights.url} into {folder}, or give a file with trained "
            "weights in place of 'imagenet', or 'none': then it is trained from scratch"
        ) from None
    classes = list(weights.meta["categories"])
    model = create_model(name, len(classes))
    model.load_state_dict({current_key(key): value for key, value in state.items()})
    return model, classes


def fingerprint(model: nn.Module) -> str:
    """The first 16 hex digits of the SHA-256 of all weights: which teacher it was, whatever its file is called."""
    digest = hashlib.sha256()
    for key, value in model.state_dict().items():
        digest.update(key.encode() + value.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
