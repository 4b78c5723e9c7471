"""Studies on real clusters of this machine's processes, which are killed, hang and wake up: no run
is lost or torn."""

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace

import psutil
import pytest
from helpers import quiet
from test_study import ROOT, arguments, planned

from kdnb import train
from kdnb.runs import lock as lease

STAND_IN = str(ROOT / "tests/study/stand_in.py")
ELSEWHERE = ["unshare", "--uts", "sh", "-c", 'hostname elsewhere && exec "$@"', "-"]
CHANGES = {"teacher_epochs": 3}


def until(met, what, seconds=240):
    for _ in range(seconds * 20):
        if found := met():
            return found
        time.sleep(0.05)
    raise AssertionError(f"waited in vain until {what}")


def tree(process):
    return [process, *process.children(recursive=True)]


class Cluster:
    """A scheduler, and workers with folders for temporary files of their own, in which `hold` holds
    a run."""

    def __init__(self, folder):
        self.folder, self.started, self.file = folder, [], folder / "scheduler.json"

    def start(self, name, *words, before=(), **env):
        temporary = self.folder / name
        temporary.mkdir()
        (temporary / "hold").touch()
        env = (
            os.environ
            | {"TMPDIR": str(temporary), "PYTHONPATH": str(ROOT), "KDNB_DATA": str(self.folder)}
            | env
        )
        with open(temporary / "out", "wb") as out:
            how = {"cwd": ROOT, "env": env, "stdout": out, "stderr": out, "start_new_session": True}
            self.started.append(psutil.Popen([*before, sys.executable, *words], **how))
        return self.started[-1]

    def scheduler(self, **env):
        address = "tcp://127.0.0.1:0"
        # It loads kdnb first: while it imports torch, it hears of no worker, and may take it for
        # dead.
        file = ["--scheduler-file", str(self.file), "--no-dashboard", "--preload", STAND_IN]
        return self.start("scheduler", "-m", "dask", "scheduler", "--host", address, *file, **env)

    def worker(self, name, **more):
        until(self.file.exists, "there is a scheduler")
        how = [
            "--nthreads",
            "1",
            "--no-nanny",
            "--no-dashboard",
            "--preload",
            STAND_IN,
            "--name",
            name,
        ]
        return self.start(
            name, "-m", "dask", "worker", "--scheduler-file", str(self.file), *how, **more
        )

    def study(self, name, *argv):
        return self.start(
            name,
            STAND_IN,
            "study",
            *arguments(self.folder / "o", "--methods", "teacher", *argv, **CHANGES),
        )

    def join(self, name):
        until(self.file.exists, "there is a scheduler")
        return self.study(name, "--scheduler", json.loads(self.file.read_text())["address"])

    def said(self, name, file="out"):
        path = self.folder / name / file
        return path.read_text(errors="replace") if path.exists() else ""

    def release(self, name):
        (self.folder / name / "hold").unlink()


@pytest.fixture
def cluster(tmp_path):
    made = Cluster(tmp_path)
    yield made
    for process in made.started:
        for one in tree(process) if process.is_running() else ():
            one.kill()
        process.wait()
    for path in sorted(tmp_path.glob("*/out")):
        print(f"{path.parent.name}:\n{path.read_text(errors='replace')}")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return train(
        planned(tmp_path_factory.mktemp("undisturbed"), "teacher", **CHANGES)[0], log=quiet
    )


def holder(run):
    """The process that trains a run, once it has come to a checkpoint."""

    def found():
        held = [path.name for path in (run.folder / ".lease").glob("*,*")]
        return held if held and (run.folder / "checkpoint").exists() else None

    return until(found, "a checkpoint is written")[0]


def whole(run, undisturbed):
    """Whether a run is finished, bit for bit as it would have been, and leaves nothing else behind."""
    names = {path.name for path in run.folder.iterdir()}
    assert names == {path.name for path in undisturbed.folder.iterdir()}
    assert run.metrics.drop(columns="seconds").equals(undisturbed.metrics.drop(columns="seconds"))
    return run.weights.read_bytes() == undisturbed.weights.read_bytes()


def test_workers_and_the_scheduler_are_killed_and_nothing_is_lost(cluster, undisturbed):
    run = replace(undisturbed, outputs=str(cluster.folder / "o"))
    scheduler, killed = cluster.scheduler(), ""
    study, workers = cluster.join("study"), [cluster.worker(name) for name in ("one", "two")]
    for turn in range(2):
        killed = until(
            lambda was=killed: (who := holder(run)) != was and who, "a worker has the run"
        )
        notebook = psutil.Process(int(killed.split(",")[2]))
        worker = next(worker for worker in workers if worker in notebook.parents())
        (scheduler if turn else worker).kill()
        until(
            lambda one=notebook: not one.is_running() or one.status() == psutil.STATUS_ZOMBIE,
            "it ends as well",
        )
    assert study.wait(240) == 1, cluster.said("study")
    told = cluster.said("study")
    assert "the scheduler is gone; the same command goes on from here" in told
    for word, count in {"started": 1, "lost": 1, "retried": 1, "finished": 0}.items():
        assert told.count(f"\n{word:<9} {run.name}") == count, told

    again = cluster.study("again")
    cluster.release("again")
    assert again.wait(240) == 0, cluster.said("again")
    assert f"finished  {run.name}: {run.result['top1']:.2f} %" in cluster.said("again") and whole(
        run, undisturbed
    )


def test_who_hung_and_wakes_up_writes_nothing_while_another_goes_on(cluster, undisturbed):
    run = replace(undisturbed, outputs=str(cluster.folder / "o"))
    cluster.scheduler(DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL="15s")
    study, worker = cluster.join("study"), cluster.worker("hangs")
    first = holder(run)
    stopped = tree(worker)
    for process in stopped:
        process.suspend()
    possible = (
        shutil.which("unshare")
        and subprocess.run([*ELSEWHERE, "true"], capture_output=True).returncode == 0
    )
    cluster.worker("other", before=ELSEWHERE if possible else ())
    until(lambda: "lost " in cluster.said("study"), "the scheduler misses the worker")
    held = run.folder / ".lease" / first
    long_ago = held.stat().st_mtime - lease.LEASE_SECONDS
    os.utime(held, (long_ago, long_ago))
    second = until(lambda: (who := holder(run)) != first and who, "the other worker takes over")
    assert second.startswith("elsewhere," if possible else lease.platform.node())

    kept = {
        path.name: path.read_bytes()
        for path in run.folder.iterdir()
        if path.is_file() and path.suffix != ".log"
    }
    cluster.release("hangs")
    for process in stopped:
        process.resume()
    said = until(lambda: cluster.said("hangs", "said"), "the one that hung notices")
    assert said.startswith(
        f"{run.folder} is no longer this process's to write to: it gave no sign of life"
    )
    assert {name: (run.folder / name).read_bytes() for name in kept} == kept and holder(
        run
    ) == second
    cluster.release("other")
    assert study.wait(240) == 0, cluster.said("study")
    assert whole(run, undisturbed)
