"""Downloads of data sets."""

import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from kdnb.errors import InputError

TIMEOUT = 60  # seconds without an answer


@contextmanager
def downloading(
    name: str, urls: Sequence[str], folder: Path, lock: Path | None = None
) -> Iterator[None]:
    """Context of a download: one process at a time, with a timeout and one kind of error.

    Args:
        name: name of the data set, for the error.
        urls: the archives, for the error.
        folder: where they are unpacked.
        lock: the lock file; None: next to the folder.

    Raises InputError in place of any exception within the context.
    """
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)  # torchvision sets none, and would wait for ever
    try:
        lock = lock or folder.parent / f".{folder.name}.lock"
        lock.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(lock):
            yield
    except Exception as error:  # networks and archives fail in many ways
        reason = " ".join(str(error).split())  # torchvision's may have several lines
        raise InputError(
            f"{name} is not complete in {folder} and the download failed ({reason}): unpack "
            f"{shorten_list(urls)} there by hand, or run again with a network"
        ) from error
    finally:
        socket.setdefaulttimeout(timeout)


def shorten_list(names: Sequence[str], most: int = 10) -> str:
    """Returns the first `most` names, separated by commas, and how many more there are."""
    text = ", ".join(names[:most]).encode(errors="backslashreplace").decode()  # names of files
    if len(names) > most:
        text += f" and {len(names) - most:,} more"
    return text
