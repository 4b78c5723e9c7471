"""kdnb.runs.lock: one process writes to a folder, whichever of them dies, hangs or wakes up."""

import contextlib
import os
import subprocess
import sys
import threading
import time

import pytest
import torch

from kdnb import InputError
from kdnb.runs import lock
from kdnb.runs.checkpoint import load_checkpoint, save_checkpoint
from kdnb.runs.files import write_atomically
from kdnb.runs.lock import locked

HOLD = """
import sys, time
from pathlib import Path
from kdnb.runs.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def files(folder):
    return {path.name for path in folder.iterdir()}


def take_over(folder):
    """The lease of this process becomes another machine's; returns its new path."""
    lease = lock.HELD[folder]
    return lease.rename(lease.with_name("elsewhere,7,42,0123abcd"))


def make_older(lease, seconds=lock.LEASE_SECONDS + 60):
    time = lease.stat().st_mtime - seconds
    os.utime(lease, (time, time))


def test_another_process_is_turned_away_until_it_is_gone(tmp_path):
    folder = tmp_path / "r"
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True
    )
    assert other.stdout.readline() == "held\n"
    holder = rf"another process \({other.pid} on {lock.platform.node()}\): wait for it, or stop it"
    with pytest.raises(InputError, match=f"r is being trained by {holder}"), locked(folder):
        raise AssertionError
    other.kill()  # not even waited for: a process that has ended is gone, though its number is not
    os.waitid(os.P_PID, other.pid, os.WEXITED | os.WNOWAIT)
    held = next((folder / ".lease").iterdir())
    (held / "checkpoint.123.part").write_bytes(b"half")
    (held / "checkpoint.previous").write_bytes(b"whole")  # between its two renames
    with locked(folder):
        assert files(folder) == {".lease", "checkpoint.previous"}
        assert not files(lock.HELD[folder])
    assert files(folder) == {"checkpoint.previous"}
    assert other.wait()


@pytest.mark.parametrize(
    "name", ["elsewhere,7,42,0123abcd", f"{lock.platform.node()},7,99999999,0123abcd"]
)
def test_on_another_machine_or_in_another_container_only_time_tells(tmp_path, name):
    held = tmp_path / ".lease" / name
    held.mkdir(parents=True)
    with pytest.raises(InputError, match="being trained by another process"), locked(tmp_path):
        raise AssertionError
    make_older(held)
    with locked(tmp_path):
        assert not held.exists()
    assert not files(tmp_path)


def test_a_process_that_lost_its_lease_writes_nothing(tmp_path):
    with locked(tmp_path):
        save_checkpoint(tmp_path, {"epoch": 1})
        take_over(tmp_path)
        for _ in range(2):
            with pytest.raises(
                InputError, match=r"no longer locked by this process: it gave no sign of life"
            ):
                save_checkpoint(tmp_path, {"epoch": 2})
    assert files(tmp_path) == {"checkpoint", ".lease"}
    assert load_checkpoint(tmp_path) == {"epoch": 1}


@pytest.mark.parametrize("call", range(4))
def test_losing_the_lease_between_any_two_steps_of_a_write_loses_no_checkpoint(
    tmp_path, monkeypatch, call
):
    """The steps of a second checkpoint: it is written, the first is moved into the lease, then to
    its new name, then the second is moved to its place."""
    steps = []

    def losing_lease(function):
        def step(*args, **more):
            steps.append(args)
            if len(steps) == 1 + call:
                make_older(take_over(tmp_path))
            return function(*args, **more)

        return step

    with locked(tmp_path):
        save_checkpoint(tmp_path, {"epoch": 1, "weights": torch.ones(3)})
        monkeypatch.setattr(os, "replace", losing_lease(os.replace))
        monkeypatch.setattr(os, "fsync", losing_lease(os.fsync))
        with pytest.raises(InputError, match="no longer locked by this process"):
            save_checkpoint(tmp_path, {"epoch": 2, "weights": torch.ones(3)})
        monkeypatch.undo()
    with locked(tmp_path):
        assert load_checkpoint(tmp_path)["epoch"] == 1
        assert len(files(tmp_path) - {".lease"}) == 1
        assert not files(lock.HELD[tmp_path])


def test_one_of_many_processes_gets_an_expired_lease(tmp_path):
    expired = tmp_path / ".lease" / "elsewhere,7,42,0123abcd"
    expired.mkdir(parents=True)
    make_older(expired)
    start = threading.Barrier(8)
    holders = []

    def acquire(number):
        start.wait()
        with contextlib.suppress(InputError):
            lock.acquire(tmp_path / ".lease" / f"here,7,{number},0123abcd")
            holders.append(number)

    threads = [threading.Thread(target=acquire, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert files(tmp_path) == {".lease"}
    (name,) = files(tmp_path / ".lease")
    assert holders == [int(name.split(",")[2])]


def test_the_lease_is_kept_alive(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "LEASE_SECONDS", 0.06)
    with locked(tmp_path):
        held = lock.HELD[tmp_path]
        make_older(held)
        was = held.stat().st_mtime
        for _ in range(1000):
            if held.stat().st_mtime > was:
                break
            threading.Event().wait(0.01)
        assert held.stat().st_mtime > was


class Clock:
    """An Event that is set at the tenth wait, and records the length of each."""

    def __init__(self):
        self.waits = []

    def wait(self, seconds):
        self.waits.append(seconds)
        return len(self.waits) == 10


def test_a_lease_has_several_signs_of_life_before_it_is_over(tmp_path):
    """Network folders show a time up to a minute late, and one sign may be lost."""
    clock = Clock()
    lock.keep_alive(tmp_path, clock)
    assert len(clock.waits) == 10
    assert 0 < max(clock.waits) <= (lock.LEASE_SECONDS - 60) / 2


@pytest.mark.parametrize("ahead", [-3600, 3600])
def test_the_age_of_a_lease_is_told_by_the_clock_of_the_disk(tmp_path, monkeypatch, ahead):
    """Machines that share a disk may disagree about the time."""
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + ahead)
    held = tmp_path / ".lease" / "elsewhere,7,42,0123abcd"
    held.mkdir(parents=True)
    assert not lock.has_expired(held)
    make_older(held)
    assert lock.has_expired(held)


def test_an_unwritable_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(InputError, match=r"cannot write to .*file"),
        locked(tmp_path / "file" / "run"),
    ):
        raise AssertionError
    with locked(tmp_path / "run"):
        write_atomically(tmp_path / "run" / "a", "one")
    assert files(tmp_path / "run") == {"a"}


def test_what_a_file_manager_adds_blocks_nobody(tmp_path):
    (tmp_path / ".lease" / "@eaDir").mkdir(parents=True)
    (tmp_path / ".lease" / ".DS_Store").write_text("")
    (tmp_path / ".lease" / "link,1,1,0123abcd").symlink_to("/nowhere")
    (tmp_path / ".lease" / f"elsewhere,1,{10**30},0123abcd").mkdir()
    for _ in range(2):
        with locked(tmp_path):
            (lock.HELD[tmp_path] / ".DS_Store").write_text("")
            with pytest.raises(InputError, match="being trained by this"), locked(tmp_path):
                raise AssertionError
    assert {"@eaDir", ".DS_Store"} < files(tmp_path / ".lease") and len(lock.leases(tmp_path)) == 0


def test_a_lease_of_the_future_ends_like_any_other(tmp_path):
    held = tmp_path / ".lease" / "elsewhere,7,42,0123abcd"
    held.mkdir(parents=True)
    make_older(held, -lock.LEASE_SECONDS - 60)
    with locked(tmp_path):
        assert not held.exists()
