"""The checkpoint of a run that is in training, and the one before it."""

import contextlib
import hashlib
import io
import pickle
import warnings
from pathlib import Path

import torch

from kdnb.runs.files import write_atomically

CHECKPOINT = "checkpoint"
PREVIOUS = "checkpoint.previous"


def save_checkpoint(folder: Path, state: dict) -> None:
    """Save a state, and keep the checkpoint before it as `checkpoint.previous`.

    state: tensors, numbers and strings in dicts and lists. The file starts with its SHA-256.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    payload = buffer.getvalue()
    digest = hashlib.sha256(payload).hexdigest().encode()
    write_atomically(folder / CHECKPOINT, digest + b"\n" + payload, keep=folder / PREVIOUS)


def load_checkpoint(folder: Path) -> dict | None:
    """The newest intact checkpoint of a folder, on the CPU; None without any.

    Warns about a damaged checkpoint.
    """
    for name, fallback in ((CHECKPOINT, "the one before it"), (PREVIOUS, "the start")):
        path = folder / name
        if not path.is_file():
            continue
        digest, _, payload = path.read_bytes().partition(b"\n")
        if hashlib.sha256(payload).hexdigest().encode() == digest:
            # A checksum is no proof of who wrote the file: weights_only=True executes nothing.
            with contextlib.suppress(pickle.UnpicklingError, RuntimeError):
                return torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
        warnings.warn(
            f"{path} is damaged (its checksum differs): going on from {fallback}", stacklevel=2
        )
    return None


def drop_checkpoints(folder: Path) -> None:
    """Delete the checkpoints of a finished run."""
    for name in (CHECKPOINT, PREVIOUS):
        (folder / name).unlink(missing_ok=True)
