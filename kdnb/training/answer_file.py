"""Files with a teacher's answers, one row per image and variant, filled in any order.

Each row ends with a checksum of its content, its number and what the file is for. A row that was
never written, only half written, damaged or made for something else has a wrong checksum, and
counts as unknown. So several processes may read and write one file at the same time, and one that
is killed leaves nothing wrong. Nothing that is read is executed.
"""

import os
import shutil
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kdnb.errors import InputError
from kdnb.runs.disk import allocated

CHECKSUM = 8  # bytes at the end of each row
MOST_BYTES = 10e9  # that files take unless the user allows more, and at most half of what is free


class AnswerFile:
    """A file of answers; it is made if it is missing, and lengthened if it is too short.

    The file is sparse: on most file systems, rows that were not written take no space.

    Args:
        path: the file.
        key: what the file is for, up to 64 bytes; rows that were written with another key are
            unknown.
        rows: number of rows.
        width: numbers in a row.
        dtype: their type.

    Attributes:
        damaged: how often a row was read that is not as it was written.

    Raises OSError if the file cannot be opened or made.
    """

    def __init__(self, path: Path, key: bytes, rows: int, width: int, dtype: torch.dtype):
        self.path = path
        self.key = key
        self.dtype = dtype
        self.stride = row_bytes(width, dtype)
        self.nbytes = rows * self.stride
        self.damaged = 0
        # Several processes may do so at once: the length is the same, and nothing is erased.
        with open(path, "ab") as file:
            if file.tell() < self.nbytes:
                file.truncate(self.nbytes)
        os.utime(path)  # when it was last used
        self.map = np.memmap(path, np.uint8, "r", shape=(rows, self.stride))

    def read(self, rows: np.ndarray) -> tuple[Tensor, np.ndarray]:
        """The answers of some rows, (n, width), and whether each is known, bool (n,).

        What is not known has any value.
        """
        stored = self.map[rows]  # a copy
        data = np.ascontiguousarray(stored[:, :-CHECKSUM])
        checksums = (checksum.tobytes() for checksum in stored[:, -CHECKSUM:])
        each = zip(rows, data, checksums, strict=True)
        known = np.array([self.checksum(row, answer) == found for row, answer, found in each], bool)
        self.damaged += int(stored[~known].any(1).sum())
        return torch.from_numpy(data).view(self.dtype), known

    def write(self, rows: np.ndarray, answers: Tensor) -> None:
        """Write the answers, (n, width), of some rows. Raises OSError, such as for a full disk."""
        # Not through the map: on a full disk that would kill the process.
        data = answers.contiguous().view(torch.uint8).numpy()
        with open(self.path, "r+b", buffering=0) as file:
            for row, answer in zip(rows, data, strict=True):
                file.seek(int(row) * self.stride)
                file.write(answer.tobytes() + self.checksum(row, answer))

    def checksum(self, row: int, answer: np.ndarray) -> bytes:
        """The checksum at the end of a row; answer: its bytes."""
        number = int(row).to_bytes(8, "little")
        return blake2b(number + answer.tobytes(), digest_size=CHECKSUM, key=self.key).digest()


def row_bytes(width: int, dtype: torch.dtype) -> int:
    """The bytes of a row of so many numbers."""
    return width * dtype.itemsize + CHECKSUM


def open_files(
    paths: Mapping[str, Path],
    keys: Mapping[str, bytes],
    rows: int,
    examples: Mapping[str, Tensor],
    any_size: bool = False,
) -> dict[str, AnswerFile]:
    """Open a file for each kind of answers; the mappings have the same kinds.

    Args:
        paths: the files, in one folder, which is created.
        keys: what the files are for.
        rows: number of rows of each.
        examples: some answers, (n, width), of the type of all.
        any_size: whether they may take all space that is free.

    Raises InputError if the files do not fit, and OSError if they cannot be opened.
    """
    sizes = {kind: rows * row_bytes(x.shape[1], x.dtype) for kind, x in examples.items()}
    nbytes = sum(sizes.values())
    taken = sum(allocated(path) for path in paths.values())
    folder = next(iter(paths.values())).parent
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if not any_size and nbytes > MOST_BYTES:
        raise InputError(f"they would take {nbytes / 1e9:.1f} GB; teacher_cache on allows it")
    if nbytes - taken > (free if any_size else free / 2):
        raise InputError(
            f"they would take {nbytes / 1e9:.1f} GB, and {folder} has {free / 1e9:.1f} GB free: "
            "make room, or set KDNB_CACHE to another folder"
        )
    return {
        kind: AnswerFile(paths[kind], keys[kind], rows, example.shape[1], example.dtype)
        for kind, example in examples.items()
    }
