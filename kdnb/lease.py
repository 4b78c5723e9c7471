"""Who may write to the folder of a run: one process at a time, on one machine or on many that share a disk."""

import contextlib
import os
import platform
import shutil
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

from kdnb.errors import InputError

LEASE_SECONDS = 180  # without a sign of life until others go on; network folders show a time up to 60 s late
HELD: dict[Path, Path] = {}  # folders that this process alone may write to, and its leases in them


class Busy(InputError):
    """Another process may write to the folder of a run."""


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Within it, `folder` is there and is this process's alone to write to. Raises Busy if it is another's.

    What is held is a lease: the folder `.lease/HOLDER`, which a thread touches. When its process is gone, or nothing
    has touched it for LEASE_SECONDS, another process may rename it to its own: only one of them can, and whatever the
    one before was about to rename out of it, having hung meanwhile, is no longer there.
    """
    space = os.stat("/proc/self/ns/pid").st_ino if os.path.exists("/proc/self/ns/pid") else 0  # two containers' differ
    lease = folder / ".lease" / f"{platform.node()},{space},{os.getpid()},{uuid.uuid4().hex[:8]}"
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


def take(lease: Path) -> None:
    """Make a lease, or rename one whose holder is gone. Raises Busy."""
    new = lease.parents[1] / f".{lease.name}"
    (new / lease.name).mkdir(parents=True)
    now = new.stat().st_mtime  # on the clock of the disk, which all machines share
    try:
        with contextlib.suppress(OSError):
            os.rename(new, lease.parent)  # unless there is one that is not empty
            return
        for other in lease.parent.iterdir():
            if over(other, lease, now):
                os.rename(other, lease)
                os.utime(lease)
                return clear(lease)
        raise busy(lease)
    except FileNotFoundError:  # another process was faster
        raise busy(lease) from None
    finally:
        shutil.rmtree(new, ignore_errors=True)


def over(other: Path, lease: Path, now: float) -> bool:
    """Whether the holder of the `other` lease is gone, as far as can be seen from where `lease` is."""
    *there, pid, _ = other.name.split(",")
    gone = now - other.stat().st_mtime > LEASE_SECONDS
    if there != lease.name.split(",")[:2]:
        return gone
    with contextlib.suppress(ImportError):  # without it, time alone tells
        import psutil

        gone = gone or not psutil.pid_exists(int(pid))
        with contextlib.suppress(psutil.Error):  # it is another person's, or has just ended
            gone = gone or psutil.Process(int(pid)).status() == psutil.STATUS_ZOMBIE
    return gone


def keep_alive(lease: Path, released: threading.Event) -> None:
    while not released.wait(LEASE_SECONDS / 6):
        with contextlib.suppress(OSError):
            os.utime(lease)


def clear(lease: Path) -> None:
    """Out of a lease: halves of files go, a file that was on its way to another name goes there."""
    for left in lease.iterdir():
        left.unlink() if left.suffix == ".part" else os.replace(left, lease.parents[1] / left.name)


def busy(lease: Path) -> Busy:
    others = (other.name.split(",") for other in lease.parent.glob("*,*"))
    who = "".join(f" ({pid} on {host})" for host, _, pid, _ in others)
    return Busy(f"{lease.parents[1]} is being trained by another process{who}: wait for it, or stop it")
