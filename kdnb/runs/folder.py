"""What a run leaves on disk: atomic files, a checkpoint and the one before it; and how it is read again.

Every file is written to a temporary name, flushed to disk and renamed, so that a reader sees the old or the new one
and never half of either. The checkpoint carries its SHA-256 and the one before it is kept. Nothing that is read here is
executed; what cannot be read is named in one sentence.
"""

import contextlib
import hashlib
import io
import json
import os
import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from kdnb.errors import InputError
from kdnb.runs.lock import HELD, LEASE_SECONDS

CHECKPOINT = "checkpoint"


def write_atomically(path: Path, data: bytes | str, keep: Path | None = None) -> None:
    """Write all of `data` to `path` or leave what is there; what it replaces becomes `keep`. Raises InputError.

    In a folder that is `locked` it goes through the lease: a process that has lost it moves nothing any more.
    """
    data = data.encode() if isinstance(data, str) else data
    place = HELD.get(path.parent, path.parent)
    part = place / f"{path.name}.{os.getpid()}.part"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if keep is not None and path.exists():
            os.replace(path, place / keep.name)
            os.replace(place / keep.name, keep)
        os.replace(part, path)
        if (
            os.name == "posix"
        ):  # the names, too, have to reach the disk; some network disks know no such wish
            folder = os.open(path.parent, os.O_RDONLY)
            with contextlib.suppress(OSError):
                os.fsync(folder)
            os.close(folder)
    except OSError as error:
        if path.parent in HELD and not place.is_dir():
            lost = f"it gave no sign of life for {LEASE_SECONDS} s, and another has gone on with the run"
            raise InputError(
                f"{path.parent} is no longer this process's to write to: {lost}"
            ) from None
        raise InputError(
            f"cannot write {path}: {error.strerror}; what was there before is kept"
        ) from None
    finally:
        with contextlib.suppress(OSError):  # an interrupt leaves nothing half-written either
            part.unlink(missing_ok=True)


# Readers: data or one sentence


def existing(path: Path) -> Path:
    if not path.is_file():
        why = (
            "it is finished without"
            if (path.parent / "result.json").is_file()
            else "it has not come so far"
        )
        raise InputError(f"{path.parent} has no {path.name}: {why}")
    return path


def damaged(path: Path, why: object) -> InputError:
    first = (str(why).splitlines() or ["it is empty"])[0]
    return InputError(f"{path} is damaged ({first}): delete the folder of its run")


def read_json(path: Path) -> dict:
    """The dictionary in a JSON file. Raises InputError if it is missing or damaged."""
    data = existing(path).read_bytes()
    try:
        found = json.loads(data)
    except ValueError as error:
        raise damaged(path, error) from None
    if not isinstance(found, dict):
        raise damaged(path, f"it holds a {type(found).__name__}, not a dictionary")
    return found


def read_columns(path: Path, required: tuple[str, ...], others: bool = False) -> dict:
    """{name: array} of the required columns of a CSV file of numbers, or of all.

    Raises InputError if it is missing, damaged or lacks a column. pandas would take several milliseconds, and there are
    thousands of runs.
    """
    text = re.sub(r",(?=,|\n|$)", ",nan", existing(path).read_text(errors="replace").strip())
    header, *lines = (line.split(",") for line in text.split("\n"))
    try:
        cells = dict(zip(header, zip(*lines, strict=True), strict=True))
        table = {
            n: np.array([*map(float, column)])
            for n, column in cells.items()
            if others or n in required
        }
    except ValueError as error:
        raise damaged(path, error) from None
    if missing := [name for name in required if name not in table]:
        raise damaged(path, f"it has no column {missing[0]}")
    return table | {"epoch": table["epoch"].astype(int)}


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an npz file. Raises InputError if it is missing or damaged."""
    data = existing(path).read_bytes()
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        if len(arrays) != int.from_bytes(
            data[-12:-10], "little"
        ):  # as many as the archive says at its end
            raise ValueError("an array is missing")
        return arrays
    except Exception as error:  # NumPy raises nearly anything for files that are no archives
        raise damaged(path, error) from None


class RunFolder:
    """What the `folder` of a run holds, read when it is asked for. Raises InputError for what is missing or damaged."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

    @property
    def done(self) -> bool:
        return (self.folder / "result.json").is_file()

    @property
    def config(self) -> dict:
        """What was asked for, and on which machines and commits it was computed; written when training started."""
        return read_json(self.folder / "config.json")

    @property
    def result(self) -> dict:
        """What was measured: accuracies in percent after the last and the best epoch, seconds, parameter counts."""
        path = self.folder / "result.json"
        result = read_json(path)
        try:
            accuracies = [
                float(value) for value in (result["top1"], result["top5"], result["best"]["top1"])
            ]
        except (KeyError, TypeError, ValueError) as error:
            raise damaged(path, f"no number: {error}") from None
        if not all(0 <= value <= 100.001 for value in accuracies):
            raise damaged(path, "an accuracy is not between 0 and 100 %")
        return result

    @property
    def metrics(self):
        """A pandas DataFrame, one row per finished epoch."""
        import pandas as pd

        required = ("epoch", "train_top1", "test_top1", "seconds")
        return pd.DataFrame(read_columns(self.folder / "metrics.csv", required, others=True))

    @property
    def history(self) -> dict[str, np.ndarray]:
        """The losses' means by epoch, such as "afd.links" (epochs, T, S); names and shapes of the networks' blocks."""
        return read_arrays(self.folder / "history.npz")

    @property
    def links(self) -> tuple[np.ndarray, list, list] | None:
        """Which block taught which: means (epochs, T, S) over each epoch's training images, the teacher's and the
        student's blocks; None without any."""
        history, axes = (
            self.history if (self.folder / "history.npz").is_file() else {},
            ("blocks", "shapes"),
        )
        try:
            blocks = (
                [*zip(*(history[f"{role}.{a}"] for a in axes), strict=True)]
                for role in ("teacher", "student")
            )
            return next(
                ((means, *blocks) for name, means in history.items() if name.endswith(".links")),
                None,
            )
        except KeyError as error:
            raise damaged(self.folder / "history.npz", error) from None

    @property
    def weights(self) -> Path:
        """The trained network of the last epoch."""
        return existing(self.folder / "student.safetensors")

    @property
    def loss_weights(self) -> Path:
        """The losses' own parameters after the last epoch, such as AFD's."""
        return existing(self.folder / "losses.safetensors")


def write_history(folder: Path, rows: list[dict], means: Mapping[str, np.ndarray]) -> None:
    """metrics.csv and history.npz are those of a checkpoint: no line is missing or doubled after a resume."""
    import pandas as pd

    if rows:
        write_atomically(
            folder / "metrics.csv", pd.DataFrame(rows).to_csv(index=False, lineterminator="\n")
        )
    if means:
        data = io.BytesIO()
        np.savez_compressed(data, **means)
        write_atomically(folder / "history.npz", data.getvalue())


def save_checkpoint(folder: Path, state: dict) -> None:
    """Keep a state (tensors, numbers and text in dicts and lists), and the one before it."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    payload = buffer.getvalue()
    digest = hashlib.sha256(payload).hexdigest().encode()
    write_atomically(
        folder / CHECKPOINT, digest + b"\n" + payload, keep=folder / f"{CHECKPOINT}.previous"
    )


def load_checkpoint(folder: Path) -> dict | None:
    """The newest checkpoint that is whole, or None. Warns if one is not."""
    for path, then in (
        (folder / CHECKPOINT, "the one before it"),
        (folder / f"{CHECKPOINT}.previous", "the start"),
    ):
        if not path.is_file():
            continue
        digest, _, payload = path.read_bytes().partition(b"\n")
        if hashlib.sha256(payload).hexdigest().encode() == digest:
            with contextlib.suppress(
                pickle.UnpicklingError, RuntimeError
            ):  # a checksum is no proof of who wrote it
                return torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
        warnings.warn(
            f"{path} is damaged (its checksum differs): going on from {then}", stacklevel=2
        )
    return None


def drop_checkpoints(folder: Path) -> None:
    for name in (CHECKPOINT, f"{CHECKPOINT}.previous"):
        (folder / name).unlink(missing_ok=True)
