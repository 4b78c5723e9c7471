"""Whether the files in a folder are those of its run: the digests in its result.json.

`result["files"]` is {name: {"sha256": ..., "bytes": ...}}. The digest of config.json is that of its
content, because a record leaves out where things were. Runs of older versions have no digests.
"""

import hashlib
import os
from functools import lru_cache
from pathlib import Path

from kdnb.errors import InputError
from kdnb.runs.files import damaged, is_finished, json_digest, read_json

SMALL = ("config.json", "metrics.csv", "history.npz")  # of a record, too
WEIGHTS = ("student.safetensors", "losses.safetensors", "student_last.safetensors")


def file_digest(path: Path) -> str:
    """The SHA-256 of a file in hex digits, read again only if it changed."""
    status = path.stat()
    # The time of the last change of the inode, too: others can be set back.
    return _file_digest(path, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


@lru_cache(maxsize=4096)
def _file_digest(path: Path, *status: int) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None


def digest(path: Path) -> str:
    """The digest of one of a run's files."""
    return json_digest(read_json(path)) if path.name == "config.json" else file_digest(path)


def digests(folder: Path) -> dict[str, dict]:
    """What result.json says of the other files of a run that is being finished."""
    paths = (folder / name for name in (*SMALL, *WEIGHTS))
    return {
        path.name: {"sha256": digest(path), "bytes": path.stat().st_size}
        for path in paths
        if path.is_file()
    }


def check_files(folder: Path, result: dict) -> None:
    """Check the small files of a finished run, and the sizes of its weights.

    Files that are not there are not checked. Raises InputError for one that is another run's or
    damaged.
    """
    for name in SMALL:
        check_file(folder / name, result)
    for path in (folder / name for name in WEIGHTS):
        if os.path.isfile(path) and "files" in result:
            _check(path, "bytes", path.stat().st_size, result)


def check_file(path: Path, result: dict | None = None) -> Path:
    """The path of a run's file, if it is the one that the run wrote, as far as result.json says.

    A file outside of a finished run is not checked. Raises InputError for a file that is another
    run's or damaged.

    Args:
        path: the file.
        result: the content of result.json; None: it is read.
    """
    if os.path.isfile(path) and is_finished(path.parent):
        result = read_json(path.with_name("result.json")) if result is None else result
        if "files" in result:
            try:
                _check(path, "sha256", digest(path), result)
            except OSError as error:
                raise InputError(f"cannot read {path}: {error.strerror}") from None
    return path


def _check(path: Path, name: str, value: object, result: dict) -> None:
    try:
        expected = result["files"].get(path.name, {}).get(name)
    except AttributeError as error:
        raise damaged(path.with_name("result.json"), error) from None
    if value != expected:
        what = "checksum" if name == "sha256" else "size"
        raise damaged(path, f"its {what} is not the one in its run's result.json")
