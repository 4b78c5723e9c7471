"""The checkpoint of a run that is in training, and the one before it."""

import contextlib
import hashlib
import io
import pickle
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from kdnb.errors import InputError
from kdnb.runs.files import read_bytes, write_atomically
from kdnb.runs.stored_names import CHECKPOINT, PREVIOUS

UNREADABLE = (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, AttributeError)
UNREADABLE += (IndexError, TypeError)  # what torch raises for files that hold no state


def save_checkpoint(folder: Path, state: dict) -> None:
    """Save a state, and keep the checkpoint before it as `checkpoint.previous`.

    state: tensors, numbers and strings in dicts and lists. The file starts with its SHA-256.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    payload = buffer.getvalue()
    digest = hashlib.sha256(payload).hexdigest().encode()
    write_atomically(folder / CHECKPOINT, digest + b"\n" + payload, keep=folder / PREVIOUS)


def load_checkpoint(
    folder: Path, identity: dict | None = None, load: Callable[[dict], None] | None = None
) -> dict | None:
    """The newest usable checkpoint of a folder, on the CPU; None without any.

    Warns about a checkpoint that cannot be used.

    Args:
        folder: the folder of a run.
        identity: the run's `identity`. A state has its own under "identity", but for those of older
            versions.
        load: is called with a state. If it raises an exception, the checkpoint before is taken.

    Raises InputError for another run's checkpoint, and for one that cannot be read from the disk.
    """
    for path, state in read_states(folder):
        fallback = "the one before it" if path.name == CHECKPOINT else "the start"
        reason = "its checksum differs"
        if isinstance(state, dict):
            check_identity(path, state, identity or {})
            try:
                if load is not None:
                    load(state)
                return state
            except (InputError, MemoryError, torch.OutOfMemoryError):
                raise
            except Exception as error:  # states of other versions fail in many ways
                first_line = (str(error).splitlines() or [""])[0]
                reason = f"{type(error).__name__}: {first_line}"
        warnings.warn(f"{path} is damaged ({reason}): going on from {fallback}", stacklevel=2)
    return None


def read_states(folder: Path) -> Iterator[tuple[Path, object]]:
    """Yields the path and the state of each checkpoint, the newest first; None if it is damaged."""
    for path in (folder / CHECKPOINT, folder / PREVIOUS):
        if not path.is_file():
            continue
        digest, _, payload = read_bytes(path).partition(b"\n")
        state = None
        if hashlib.sha256(payload).hexdigest().encode() == digest:
            # A checksum is no proof of who wrote the file: weights_only=True executes nothing.
            with contextlib.suppress(*UNREADABLE):
                state = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
        yield path, state


def check_identity(path: Path, state: dict, identity: dict) -> None:
    """Raises InputError if the state in a checkpoint is that of another run."""
    stored = state.get("identity")
    if not isinstance(stored, dict):
        return
    differences = [
        f"{name} is {stored[name]!r} there and {value!r} here"
        for name, value in identity.items()
        if name in stored and stored[name] != value
    ]
    if differences:
        raise InputError(
            f"{path} is the checkpoint of another run ({', '.join(differences)}): move it away"
        )


def drop_checkpoints(folder: Path) -> None:
    """Delete the checkpoints of a finished run."""
    for name in (CHECKPOINT, PREVIOUS):
        (folder / name).unlink(missing_ok=True)
