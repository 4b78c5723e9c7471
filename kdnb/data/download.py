"""Downloads of data sets."""

import errno
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from kdnb.errors import InputError

TIMEOUT = 60  # seconds without an answer
WAIT = 5  # seconds until a line says for whom a process waits
STALLED = 600  # seconds without a change after which a process is taken for gone


class LockedElsewhere(InputError):
    """Another process holds a lock, and gives no sign of life."""


@contextmanager
def downloading(
    name: str,
    urls: Sequence[str],
    folder: Path,
    lock: Path | None = None,
    unpack_into: Path | None = None,
) -> Iterator[None]:
    """Context of a download: one process at a time, with a timeout and one kind of error.

    Args:
        name: name of the data set, for the error.
        urls: the archives, for the error.
        folder: where the data are.
        lock: the lock file; None: next to the folder.
        unpack_into: where the archives have to be unpacked by hand, for the error; None: the
            folder itself, which they do not contain.

    Raises InputError in place of any exception within the context.
    """
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)  # torchvision sets none, and would wait for ever
    try:
        lock = lock or folder.parent / f".{folder.name}.lock"
        lock.parent.mkdir(parents=True, exist_ok=True)
        with one_process(lock, folder.parent):
            yield
    except LockedElsewhere:
        raise
    except Exception as error:  # networks and archives fail in many ways
        raise InputError(
            f"{name} is not complete in {folder} and the download failed ({error}): unpack "
            f"{shorten_list(urls)} into {unpack_into or folder} by hand, or run again with a "
            "network"
        ) from error
    finally:
        socket.setdefaulttimeout(timeout)


@contextmanager
def one_process(lock: Path, watched: Path) -> Iterator[None]:
    """Context of work that one process does at a time; it waits for another, and prints for whom.

    Args:
        lock: the lock file.
        watched: a file or folder in which the other process writes.

    Raises InputError if the other process writes nothing for STALLED seconds. It may have ended on
    another machine: where a file system has no locks, the lock is a file that stays.
    """
    holder = FileLock(lock)
    progress, since = None, time.monotonic()
    is_announced = False
    while True:
        try:
            holder.acquire(timeout=WAIT)
            break
        except NotImplementedError as error:  # of filelock before it had such files
            raise OSError(errno.ENOSYS, "the file system has no locks", str(lock)) from error
        except Timeout:
            by = read_holder(lock)
        if not is_announced:
            print(f"waiting for another process{by}, which holds {lock}", flush=True)
            is_announced = True
        if last_change(watched) != progress:
            progress, since = last_change(watched), time.monotonic()
        if time.monotonic() - since > STALLED:
            raise LockedElsewhere(
                f"{lock} is held by another process{by}, which has written nothing for "
                f"{STALLED} s: delete this file if the process is gone"
            )
    try:
        yield
    finally:
        holder.release()


def read_holder(lock: Path) -> str:
    """Returns process and machine of a lock that is a file, as filelock writes them, or ""."""
    with suppress(OSError, ValueError):
        pid, host, *_ = lock.read_text().split()
        return f" ({pid} on {host})"
    return ""


def last_change(path: Path) -> float:
    """Returns the time of the latest change of a file, or of a folder and two levels below it."""
    times = [0.0]
    for each in (path, *path.glob("*"), *path.glob("*/*")):
        with suppress(OSError):
            times.append(each.stat().st_mtime)
    return max(times)


def shorten_list(names: Sequence[str], most: int = 10) -> str:
    """Returns the first `most` names, separated by commas, and how many more there are."""
    text = ", ".join(names[:most]).encode(errors="backslashreplace").decode()  # names of files
    if len(names) > most:
        text += f" and {len(names) - most:,} more"
    return text
