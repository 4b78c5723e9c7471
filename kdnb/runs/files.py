"""Files of a run: written atomically, read as data.

Every file is written to a temporary name, flushed to disk and renamed, so that a reader sees the
old or the new one and never half of either. Nothing that is read here is executed; a file that
cannot be read is an InputError.

A JSON file carries its own SHA-256. The result.json of a finished run has the digests of the other
files, see `kdnb.runs.digests`.
"""

import contextlib
import hashlib
import io
import json
import os
import re
from collections.abc import Collection
from pathlib import Path

import numpy as np

from kdnb.errors import InputError
from kdnb.runs.lock import HELD, LEASE_SECONDS
from kdnb.runs.stored_names import CHECKPOINT

# Of a JSON file: its digest, what a record leaves out, and what is set by hand (docs/results.md).
UNSEALED = ("sha256", "where", "shared")


def write_atomically(path: Path, data: bytes | str, keep: Path | None = None) -> None:
    """Write all of `data` to `path`, or leave what is there.

    keep: path to which the replaced file is moved; None: it is lost. In a folder that this process
    has locked, the
    temporary file lies inside its lease: a process that has lost the lease renames nothing any
    more. Raises InputError for a disk that is full, a folder that cannot be written, and a lost
    lease.
    """
    data = data.encode() if isinstance(data, str) else data
    lease = HELD.get(path.parent, path.parent)
    part = lease / f"{path.name}.{os.getpid()}.part"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if keep is not None and path.exists():
            os.replace(path, lease / keep.name)
            os.replace(lease / keep.name, keep)
        os.replace(part, path)
        flush_folder(path.parent)
    except OSError as error:
        if path.parent in HELD and not lease.is_dir():
            raise InputError(
                f"{path.parent} is no longer locked by this process: it gave no sign of life for "
                f"{LEASE_SECONDS} s, and another process has continued the run"
            ) from None
        unchanged = "; the previous file is unchanged" if os.path.isfile(path) else ""
        raise InputError(f"cannot write {path}: {error.strerror}{unchanged}") from None
    finally:
        with contextlib.suppress(OSError):  # an interrupt leaves nothing half-written either
            part.unlink(missing_ok=True)


def flush_folder(folder: Path) -> None:
    """Flush the names in a folder to disk, where the file system can."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    with contextlib.suppress(OSError):  # some network disks do not support it
        os.fsync(descriptor)
    os.close(descriptor)


def is_finished(folder: Path) -> bool:
    """Whether a run is finished: its last file is there."""
    return os.path.isfile(folder / "result.json")


def require_file(path: Path) -> Path:
    """The path of a run's file. Raises InputError if it is missing."""
    if not os.path.isfile(path):
        why = (
            "the run is finished, but did not keep it"
            if is_finished(path.parent)
            else "the run has not written it yet"
        )
        raise InputError(f"{path.parent} has no {path.name}: {why}")
    return path


def read_bytes(path: Path) -> bytes:
    """The content of a run's file. Raises InputError if it is missing or cannot be read."""
    try:
        return require_file(path).read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None


def read_if_there(path: Path) -> bytes | None:
    """The content of a run's file; None if there is none. Raises InputError if it cannot be read.

    Nor can it be in a folder that may not be entered, where `is_file` is false.
    """
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    return read_bytes(path)


def damaged(path: Path, reason: object) -> InputError:
    """The error for a damaged file of a run; it says how to go on without losing the run."""
    first_line = (str(reason).splitlines() or ["it is empty"])[0]
    advice = "move this file away, and the run goes on from its checkpoint"
    if is_finished(path.parent):
        advice = (
            "restore it from a copy, or train the run anew with rerun=True, which moves this "
            "folder away first"
        )
        if (path.parent / CHECKPOINT).is_file():  # it was broken off while it was being finished
            advice = "move result.json away, and the run goes on from its checkpoint"
    return InputError(f"{path} is damaged ({first_line}): {advice}")


def json_digest(content: dict) -> str:
    """The SHA-256 of the content of a JSON file, without what is no part of a record."""
    sealed = {name: value for name, value in content.items() if name not in UNSEALED}
    return hashlib.sha256(json.dumps(sealed, sort_keys=True).encode()).hexdigest()


def write_json(path: Path, content: dict) -> None:
    """Write a JSON file with its own SHA-256. Raises InputError as `write_atomically` does."""
    digest = json_digest(json.loads(json.dumps(content)))  # as it is read back
    write_atomically(path, json.dumps(content | {"sha256": digest}, indent=2))


def read_json(path: Path) -> dict:
    """The dictionary in a JSON file, without its digest.

    Raises InputError if it is missing, damaged, or differs from its digest. Files of older versions
    have none.
    """
    data = read_bytes(path)
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise damaged(path, error) from None
    if not isinstance(content, dict):
        raise damaged(path, f"it holds a {type(content).__name__}, not a dictionary")
    digest = content.pop("sha256", None)
    if digest is not None and digest != json_digest(content):
        raise damaged(path, "its checksum differs")
    return content


def read_columns(path: Path, required: Collection[str], all_columns: bool = False) -> dict:
    """The columns of a CSV file of numbers: {name: array (epochs,)}, NaN for empty cells.

    all_columns: all columns, not only the required ones. Raises InputError if the file is missing,
    damaged or lacks a required column. Studies have thousands of runs, and pandas would take
    milliseconds for each.
    """
    text = read_bytes(path).decode(errors="replace").strip()
    text = re.sub(r",(?=,|\n|$)", ",nan", text)
    header, *rows = (line.split(",") for line in text.split("\n"))
    try:
        cells = dict(zip(header, zip(*rows, strict=True), strict=True))
        columns = {
            name: np.array([float(cell) for cell in column])
            for name, column in cells.items()
            if all_columns or name in required
        }
    except ValueError as error:
        raise damaged(path, error) from None
    if missing := [name for name in required if name not in columns]:
        raise damaged(path, f"it has no column {missing[0]}")
    epochs = columns["epoch"]
    if (epochs != np.arange(1, len(epochs) + 1)).any():
        raise damaged(path, "its epochs are not 1, 2, 3 ...")
    return columns | {"epoch": epochs.astype(int)}


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an npz file by name. Raises InputError if it is missing or damaged."""
    data = read_bytes(path)
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        # NumPy overlooks members whose headers are damaged; the archive states their number at its
        # end.
        if len(arrays) != int.from_bytes(data[-12:-10], "little"):
            raise ValueError("an array is missing")
        return arrays
    except Exception as error:  # NumPy raises nearly anything for files that are no archives
        raise damaged(path, error) from None
