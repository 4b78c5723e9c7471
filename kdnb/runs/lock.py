"""A lock on the folder of a run: one process writes to it, on one machine or on many.

The lock is a lease, the folder `.lease/HOLDER` inside the run's folder, whose time a thread renews.
When its process is gone, or nothing renewed it for LEASE_SECONDS, another process may rename it to
its own. Only one process can do that; and a process that wakes up after that finds its lease gone,
with every file that it was about to rename.
"""

import contextlib
import os
import platform
import re
import shutil
import tempfile
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

from kdnb.errors import InputError

LEASE_SECONDS = 180  # until a lease expires; network folders show times that are up to 60 s old
# The name of a lease, see `new_holder`.
HOLDER = re.compile(r"(.+),(\d{1,19}),(\d{1,9}),([0-9a-f]{8})")
HELD: dict[Path, Path] = {}  # {folder that this process has locked: its lease}


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Create a folder if it is missing, and lock it within the context.

    Raises InputError if another process holds it, or if it cannot be written.
    """
    lease = folder / ".lease" / new_holder()
    try:
        acquire(lease)
    except OSError as error:
        raise InputError(f"cannot write to {folder}: {error.strerror}") from None
    HELD[folder] = lease
    released = threading.Event()
    threading.Thread(target=keep_alive, args=(lease, released), daemon=True).start()
    try:
        yield
    finally:
        released.set()
        del HELD[folder]
        with contextlib.suppress(OSError):  # another process has taken it over
            empty(lease)
            lease.rmdir()
            lease.parent.rmdir()


def busy_message(folder: Path) -> str:
    """A sentence that names the process that holds the lock of a folder; "" if none does."""
    active = [lease for lease in leases(folder) if not has_expired(lease)]
    if HELD.get(folder) in active:
        return f"{folder} is being trained by this process already"
    holders = [HOLDER.fullmatch(lease.name).groups() for lease in active]
    if not holders:
        return ""
    names = "".join(f" ({pid} on {host})" for host, _, pid, _ in holders)
    return f"{folder} is being trained by another process{names}: wait for it, or stop it"


def new_holder() -> str:
    """A name for a lease of this process: host, process namespace, process number, a random number.

    Two containers on one host have the same host name and process numbers, but different
    namespaces.
    """
    namespace = os.stat("/proc/self/ns/pid").st_ino if os.path.exists("/proc/self/ns/pid") else 0
    return f"{platform.node()},{namespace},{os.getpid()},{uuid.uuid4().hex[:8]}"


def leases(folder: Path) -> list[Path]:
    """The lease of a folder: one or none. What file managers and network disks add is none."""
    found = (folder / ".lease").glob("*,*")
    return [path for path in found if HOLDER.fullmatch(path.name) and path.is_dir()]


def acquire(lease: Path) -> None:
    """Create a lease, or take over one that has expired.

    Raises InputError if another process holds it.
    """
    folder = lease.parents[1]
    temporary = folder / f".{lease.name}"
    (temporary / lease.name).mkdir(parents=True)
    try:
        with contextlib.suppress(OSError):
            os.rename(temporary, lease.parent)  # fails if there is one that is not empty
            return
        if not leases(folder) and acquire_next_to_foreign_entries(lease):
            return
        for expired in filter(has_expired, leases(folder)):
            with contextlib.suppress(FileNotFoundError):  # another process was faster
                os.rename(expired, lease)
                os.utime(lease)
                empty(lease)
                return
        raise InputError(
            busy_message(folder) or f"{folder} was released by another process just now: try again"
        )
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def acquire_next_to_foreign_entries(lease: Path) -> bool:
    """Create a lease in a folder of leases that holds something else; returns whether it is ours.

    Of two processes that do so at once, the later one finds the other's lease and gives way; it may
    be that both do.
    """
    lease.mkdir()
    if leases(lease.parents[1]) == [lease]:
        return True
    lease.rmdir()
    return False


def has_expired(lease: Path) -> bool:
    """Whether the holder of a lease is gone, as far as this process can tell."""
    # The time of the disk, which all machines share: their own clocks may differ.
    with tempfile.TemporaryDirectory(prefix=".", dir=lease.parents[1]) as clock:
        now = os.stat(clock).st_mtime
    try:
        # A time in the future is that of a disk whose clock was wrong: nothing renews it either.
        if abs(now - lease.stat().st_mtime) > LEASE_SECONDS:
            return True
    except FileNotFoundError:
        return True
    host, namespace, pid, _ = HOLDER.fullmatch(lease.name).groups()
    is_local = [host, namespace] == new_holder().split(",")[:2]
    return is_local and process_is_gone(int(pid))


def process_is_gone(pid: int) -> bool:
    """Whether a process of this machine has ended; False without psutil, where only time tells."""
    try:
        import psutil
    except ImportError:
        return False
    if not psutil.pid_exists(pid):
        return True
    with contextlib.suppress(psutil.Error):  # it is another user's, or has ended just now
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    return False


def keep_alive(lease: Path, released: threading.Event) -> None:
    """Renew a lease until it is released."""
    while not released.wait(LEASE_SECONDS / 6):
        with contextlib.suppress(OSError):
            os.utime(lease)


def empty(lease: Path) -> None:
    """Clear up after the last holder: delete half-written files, finish a rename.

    What file managers and network disks add, folders and hidden files, is deleted if it can be.
    """
    for path in lease.iterdir():
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif path.suffix == ".part" or path.name[0] == ".":
            with contextlib.suppress(OSError):
                path.unlink()
        else:
            os.replace(path, lease.parents[1] / path.name)
