"""Who may write to the folder of a run: one process at a time, on one machine or on many that share a disk."""

import contextlib
import os
import platform
import shutil
import tempfile
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

from kdnb.errors import InputError

LEASE_SECONDS = (
    180  # without a sign of life until others go on; network folders show a time up to 60 s late
)
HELD: dict[Path, Path] = {}  # folders that this process alone may write to, and its leases in them


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Within it, `folder` is there and is this process's alone to write to. Raises InputError if it is another's.

    What is held is a lease: the folder `.lease/HOLDER`, which a thread touches. When its process is gone, or nothing
    has touched it for LEASE_SECONDS, another process may rename it to its own: only one of them can, and whatever the
    one before was about to rename out of it, having hung meanwhile, is no longer there.
    """
    lease = folder / ".lease" / this_process()
    try:
        take(lease)
    except OSError as error:
        raise InputError(f"cannot write to {folder}: {error.strerror}") from None
    HELD[folder], released = lease, threading.Event()
    threading.Thread(target=keep_alive, args=(lease, released), daemon=True).start()
    try:
        yield
    finally:
        released.set()
        del HELD[folder]
        with contextlib.suppress(OSError):  # it is another's now
            clear(lease)
            lease.rmdir()
            lease.parent.rmdir()


def busy(folder: Path) -> str:
    """Who else may write to the folder of a run, in a sentence; "" if nobody."""
    others = [other.name.split(",") for other in holders(folder) if not over(other)]
    told = "".join(f" ({pid} on {host})" for host, _, pid, _ in others)
    return told and f"{folder} is being trained by another process{told}: wait for it, or stop it"


def this_process() -> str:
    """Host, process namespace (two containers of one name have two), number, and which of its leases."""
    space = os.stat("/proc/self/ns/pid").st_ino if os.path.exists("/proc/self/ns/pid") else 0
    return f"{platform.node()},{space},{os.getpid()},{uuid.uuid4().hex[:8]}"


def holders(folder: Path) -> list[Path]:
    """The lease of a folder: one or none."""
    return list((folder / ".lease").glob("*,*"))


def take(lease: Path) -> None:
    """Make a lease, or rename one that is over. Raises InputError."""
    folder = lease.parents[1]
    new = folder / f".{lease.name}"
    (new / lease.name).mkdir(parents=True)
    try:
        with contextlib.suppress(OSError):
            os.rename(new, lease.parent)  # unless there is one that is not empty
            return
        for other in filter(over, holders(folder)):
            with contextlib.suppress(FileNotFoundError):  # another process was faster
                os.rename(other, lease)
                os.utime(lease)
                return clear(lease)
        raise InputError(
            busy(folder) or f"{folder} has just been let go by another process: try again"
        )
    finally:
        shutil.rmtree(new, ignore_errors=True)


def over(other: Path) -> bool:
    """Whether the holder of a lease is gone, as far as this process can see."""
    with tempfile.TemporaryDirectory(
        prefix=".", dir=other.parents[1]
    ) as clock:  # the disk's, which all machines share
        now = os.stat(clock).st_mtime
    with contextlib.suppress(FileNotFoundError):
        gone = now - other.stat().st_mtime > LEASE_SECONDS
        *there, pid, _ = other.name.split(",")
        if there == this_process().split(",")[:2]:
            with contextlib.suppress(ImportError):  # without it, time alone tells
                import psutil

                gone = gone or not psutil.pid_exists(int(pid))
                with contextlib.suppress(psutil.Error):  # it is another person's, or has just ended
                    gone = gone or psutil.Process(int(pid)).status() == psutil.STATUS_ZOMBIE
        return gone
    return True


def keep_alive(lease: Path, released: threading.Event) -> None:
    while not released.wait(LEASE_SECONDS / 6):
        with contextlib.suppress(OSError):
            os.utime(lease)


def clear(lease: Path) -> None:
    """Out of a lease: halves of files go, a file that was on its way to another name goes there."""
    for left in lease.iterdir():
        left.unlink() if left.suffix == ".part" else os.replace(left, lease.parents[1] / left.name)
