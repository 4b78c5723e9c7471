"""A run is a folder: what was asked, what was measured, and a checkpoint that survives any end.

Every file is written to a temporary name, flushed to disk and renamed, so that a reader sees the old or the new one
and never half of either. The checkpoint carries its SHA-256 and the one before it is kept.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import os
import platform
import subprocess
import warnings
from importlib.metadata import version
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout

from kdnb.errors import InputError

__all__ = ["Run", "environment", "write_atomically"]


class Run:
    """One training in `folder`: config.json, metrics.csv, attention.npz, checkpoint, student.safetensors, result.json.

    `with run:` locks the folder for this process. A run is `finished` once result.json exists.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.name = self.folder.name

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r}, {'finished' if self.finished else 'unfinished'})"

    # What others read

    @property
    def finished(self) -> bool:
        return (self.folder / "result.json").is_file()

    @property
    def config(self) -> dict:
        return self._json("config.json")

    @property
    def result(self) -> dict:
        """Accuracy of the last and the best epoch, times, device, versions. Raises InputError if unfinished."""
        return self._json("result.json")

    @property
    def metrics(self):
        """A pandas DataFrame, one row per finished epoch."""
        import pandas as pd

        return pd.read_csv(self._file("metrics.csv"))

    @property
    def links(self) -> np.ndarray | None:
        """Mean attention over the training images of each epoch: (epochs, T, S), or None if the run has no AFD."""
        path = self.folder / "attention.npz"
        return np.load(path, allow_pickle=False)["links"] if path.is_file() else None

    @property
    def weights(self) -> Path:
        """The trained network of the last epoch."""
        return self._file("student.safetensors")

    @property
    def loss_weights(self) -> Path:
        """The losses' own parameters after the last epoch, such as AFD's. Raises InputError if there are none."""
        return self._file("losses.safetensors")

    def _file(self, name: str) -> Path:
        path = self.folder / name
        if not path.is_file():
            raise InputError(f"{self.folder} has no {name}: the run has not come so far")
        return path

    def _json(self, name: str) -> dict:
        try:
            return json.loads(self._file(name).read_text())
        except json.JSONDecodeError as error:
            raise InputError(f"{self.folder / name} is damaged ({error}): delete it, or the folder") from None

    # What training writes

    def start(self, config: dict) -> Run:
        """Make the folder, or check that its parameters are the same. Raises InputError naming what differs."""
        config = json.loads(json.dumps(config))  # as it will be read back: tuples are lists
        if (self.folder / "config.json").is_file():
            was, now = flat(self.config), flat(config)
            differ = [k for k in was | now if was.get(k) != now.get(k)]
            if differ:
                changes = ", ".join(f"{k} was {was.get(k)!r} and is now {now.get(k)!r}" for k in differ)
                raise InputError(
                    f"{self.folder} holds a run with other parameters: {changes}; move it away or change back"
                )
        else:
            write_atomically(self.folder / "config.json", json.dumps(config, indent=2))
        return self

    def __enter__(self) -> Run:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(self.folder / ".lock", timeout=0)
            self._lock.acquire()
        except Timeout:
            raise InputError(f"{self.folder} is being trained by another process: wait for it, or stop it") from None
        except OSError as error:
            raise InputError(f"cannot write to {self.folder}: {error.strerror}") from None
        for part in self.folder.glob("*.part"):  # of a process that was killed while writing
            part.unlink()
        return self

    def __exit__(self, *_) -> None:
        self._lock.release()

    def save(self, state: dict) -> None:
        """Keep a checkpoint (tensors, numbers and text in dicts and lists), then the files that are read out of it."""
        import torch

        buffer = io.BytesIO()
        torch.save(state, buffer)
        payload = buffer.getvalue()
        newest, older = self.folder / "checkpoint", self.folder / "checkpoint.previous"
        digest = hashlib.sha256(payload).hexdigest().encode()
        write_atomically(newest, digest + b"\n" + payload, keep=older)
        self.write_history(state["history"], state["links"])

    def write_history(self, history: list[dict], links: list) -> None:
        """metrics.csv and attention.npz are those of a checkpoint: no line is missing or doubled after a resume."""
        if history:
            text = io.StringIO()
            writer = csv.DictWriter(text, history[-1].keys(), lineterminator="\n")
            writer.writeheader()
            writer.writerows(history)
            write_atomically(self.folder / "metrics.csv", text.getvalue())
        if links:
            data = io.BytesIO()
            np.savez_compressed(data, links=np.stack([np.asarray(link) for link in links]).astype(np.float32))
            write_atomically(self.folder / "attention.npz", data.getvalue())

    def load(self) -> dict | None:
        """The newest checkpoint that is whole, or None. Warns if one is not."""
        import torch

        for path in (self.folder / "checkpoint", self.folder / "checkpoint.previous"):
            if not path.is_file():
                continue
            digest, _, payload = path.read_bytes().partition(b"\n")
            if hashlib.sha256(payload).hexdigest().encode() == digest:
                return torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
            warnings.warn(f"{path} is damaged (its checksum differs): going on from the one before it", stacklevel=2)
        return None

    def finish(self, result: dict, weights: dict[str, dict]) -> None:
        """Keep what was trained, then the result, which marks the run as finished and ends its checkpoints.

        weights: {file name: state dict}, such as {"student": ..., "losses": ...}; an empty one makes no file.
        """
        from safetensors.torch import save

        for name, state in weights.items():
            if state:
                tensors = {k: v.cpu().contiguous() for k, v in state.items()}
                write_atomically(self.folder / f"{name}.safetensors", save(tensors))
        write_atomically(self.folder / "result.json", json.dumps(result, indent=2))
        for name in ("checkpoint", "checkpoint.previous"):
            (self.folder / name).unlink(missing_ok=True)


def write_atomically(path: Path, data: bytes | str, keep: Path | None = None) -> None:
    """Write all of `data` to `path` or leave what is there; what it replaces becomes `keep`. Raises InputError."""
    data = data.encode() if isinstance(data, str) else data
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if keep is not None and path.exists():
            os.replace(path, keep)
        os.replace(part, path)
        if os.name == "posix":  # the names, too, have to reach the disk
            folder = os.open(path.parent, os.O_RDONLY)
            os.fsync(folder)
            os.close(folder)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise InputError(f"cannot write {path}: {error.strerror}; what was there before is kept") from None
    except BaseException:  # an interrupt leaves nothing half-written either
        part.unlink(missing_ok=True)
        raise


def flat(nested: dict, prefix: str = "") -> dict:
    """{"recipe": {"lr": 1}} -> {"recipe.lr": 1}."""
    out = {}
    for key, value in nested.items():
        out |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return out


def environment(device: str) -> dict:
    """Device, library versions and commit: what stands beside every number."""
    return {
        "device": device_name(device),
        "versions": {"python": platform.python_version(), **{n: version(n) for n in ("torch", "torchvision", "numpy")}},
        "commit": commit(),
    }


def device_name(device: str) -> str:
    if device.startswith("cuda"):
        import torch

        return torch.cuda.get_device_name(device)
    cpu = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), cpu)
    return f"{cpu}, {os.cpu_count()} cores" + ("" if device == "cpu" else f", {device}")


def commit() -> str:
    """The commit of the code that runs, with "+changes" if files differ from it; "" outside a checkout."""
    here = Path(__file__).parent

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".")
        return git("rev-parse", "--short=12", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return ""
