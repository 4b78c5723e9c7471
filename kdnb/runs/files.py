"""Files of a run: written atomically, read as data.

Every file is written to a temporary name, flushed to disk and renamed, so that a reader sees the
old or the new one and never half of either. Nothing that is read here is executed; a file that
cannot be read is an InputError.
"""

import contextlib
import io
import json
import os
import re
from collections.abc import Collection
from pathlib import Path

import numpy as np

from kdnb.errors import InputError
from kdnb.runs.lock import HELD, LEASE_SECONDS


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
        raise InputError(
            f"cannot write {path}: {error.strerror}; the previous file is unchanged"
        ) from None
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


def require_file(path: Path) -> Path:
    """The path of a run's file. Raises InputError if it is missing."""
    if not path.is_file():
        finished = (path.parent / "result.json").is_file()
        why = (
            "the run is finished, but did not keep it"
            if finished
            else "the run has not written it yet"
        )
        raise InputError(f"{path.parent} has no {path.name}: {why}")
    return path


def damaged(path: Path, reason: object) -> InputError:
    """The error for a file of a run that cannot be read."""
    first_line = (str(reason).splitlines() or ["it is empty"])[0]
    return InputError(f"{path} is damaged ({first_line}): delete the folder of its run")


def read_json(path: Path) -> dict:
    """The dictionary in a JSON file. Raises InputError if it is missing or damaged."""
    data = require_file(path).read_bytes()
    try:
        content = json.loads(data)
    except ValueError as error:
        raise damaged(path, error) from None
    if not isinstance(content, dict):
        raise damaged(path, f"it holds a {type(content).__name__}, not a dictionary")
    return content


def read_columns(path: Path, required: Collection[str], all_columns: bool = False) -> dict:
    """The columns of a CSV file of numbers: {name: array (epochs,)}, NaN for empty cells.

    all_columns: all columns, not only the required ones. Raises InputError if the file is missing,
    damaged or lacks a required column. Studies have thousands of runs, and pandas would take
    milliseconds for each.
    """
    text = require_file(path).read_text(errors="replace").strip()
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
    return columns | {"epoch": columns["epoch"].astype(int)}


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an npz file by name. Raises InputError if it is missing or damaged."""
    data = require_file(path).read_bytes()
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
