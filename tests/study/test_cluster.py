"""Studies on real clusters of this machine's processes, which are killed, hang and wake up: no run
is lost or torn."""

import json
import os
import shutil
import subprocess
import sys
import time

import psutil
import pytest
from test_study import ROOT, arguments, planned

from kdnb import load_weights
from kdnb.runs import lock

pytestmark = pytest.mark.slow

STAND_IN = str(ROOT / "tests/study/stand_in.py")
ELSEWHERE = ["unshare", "--uts", "sh", "-c", 'hostname elsewhere && exec "$@"', "-"]
CHANGES = {"teacher_epochs": 3}


def wait_for(condition, what, seconds=240):
    """What `condition` returns, once that is true."""
    for _ in range(seconds * 20):
        if value := condition():
            return value
        time.sleep(0.05)
    raise AssertionError(f"waited in vain until {what}")


def tree(process):
    return [process, *process.children(recursive=True)]


class Cluster:
    """A scheduler and workers, each with its own folder for temporary files.

    A file `hold` in that folder holds a run; see stand_in.py.
    """

    def __init__(self, folder):
        self.folder = folder
        self.file = folder / "scheduler.json"
        self.processes = []

    def start(self, name, *words, before=(), **env):
        temporary = self.folder / name
        temporary.mkdir()
        (temporary / "hold").touch()
        defaults = {"TMPDIR": str(temporary), "PYTHONPATH": str(ROOT)}
        defaults["KDNB_DATA"] = str(self.folder)
        with open(temporary / "out", "wb") as out:
            process = psutil.Popen(
                [*before, sys.executable, *words],
                cwd=ROOT,
                env=os.environ | defaults | env,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        self.processes.append(process)
        return process

    def scheduler(self, **env):
        # It loads kdnb first: while it imports torch, it hears of no worker, and may take it for
        # dead.
        options = ["--host", "tcp://127.0.0.1:0", "--scheduler-file", str(self.file)]
        options += ["--no-dashboard", "--preload", STAND_IN]
        return self.start("scheduler", "-m", "dask", "scheduler", *options, **env)

    def worker(self, name, **more):
        wait_for(self.file.exists, "there is a scheduler")
        options = ["--scheduler-file", str(self.file), "--nthreads", "1", "--no-nanny"]
        options += ["--no-dashboard", "--preload", STAND_IN, "--name", name]
        return self.start(name, "-m", "dask", "worker", *options, **more)

    def study(self, name, *argv):
        argv = arguments(self.folder / "o", "--methods", "teacher", *argv, **CHANGES)
        return self.start(name, STAND_IN, "study", *argv)

    def join(self, name):
        wait_for(self.file.exists, "there is a scheduler")
        return self.study(name, "--scheduler", json.loads(self.file.read_text())["address"])

    def output(self, name, file="out"):
        path = self.folder / name / file
        return path.read_text(errors="replace") if path.exists() else ""

    def release(self, name):
        (self.folder / name / "hold").unlink()


@pytest.fixture
def cluster(tmp_path):
    cluster = Cluster(tmp_path)
    yield cluster
    for started in cluster.processes:
        for process in tree(started) if started.is_running() else ():
            process.kill()
        started.wait()
    for path in sorted(tmp_path.glob("*/out")):
        print(f"{path.parent.name}:\n{path.read_text(errors='replace')}")


@pytest.fixture
def run(cluster):
    """The run of every study here."""
    (run,) = planned(cluster.folder / "o", "teacher", **CHANGES)
    return run


def holder(run):
    """The process that trains a run, once there is a checkpoint."""

    def names():
        leases = [path.name for path in (run.folder / ".lease").glob("*,*")]
        return leases if leases and (run.folder / "checkpoint").exists() else None

    return wait_for(names, "a checkpoint is written")[0]


def new_holder(run, before):
    """The process that trains a run, once it is another one than `before`."""

    def name():
        current = holder(run)
        return current if current != before else None

    return wait_for(name, "another process trains the run")


def has_ended(process):
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def check_finished(run):
    """A run has finished: each of its epochs once, and nothing is left behind."""
    files = {"config.json", "metrics.csv", "result.json", "student.safetensors"}
    assert {path.name for path in run.folder.iterdir()} == files
    assert run.metrics["epoch"].tolist() == list(range(1, run.epochs + 1))
    assert load_weights(run.student, run.weights).fc.out_features == 10


def test_workers_and_the_scheduler_are_killed_and_nothing_is_lost(cluster, run):
    scheduler = cluster.scheduler()
    study = cluster.join("study")
    workers = [cluster.worker(name) for name in ("one", "two")]
    killed = ""
    for kills_scheduler in (False, True):
        killed = new_holder(run, killed)
        notebook = psutil.Process(int(killed.split(",")[2]))
        worker = next(worker for worker in workers if worker in notebook.parents())
        (scheduler if kills_scheduler else worker).kill()
        wait_for(lambda notebook=notebook: has_ended(notebook), "its run ends as well")
    assert study.wait(240) == 1, cluster.output("study")
    lines = cluster.output("study")
    assert "the scheduler is gone; the same command goes on" in lines
    for word, count in {"started": 1, "lost": 1, "retried": 1, "finished": 0}.items():
        assert lines.count(f"\n{word:<9} {run.name}") == count, lines

    again = cluster.study("again")
    cluster.release("again")
    assert again.wait(240) == 0, cluster.output("again")
    assert f"finished  {run.name}: {run.result['top1']:.2f} %" in cluster.output("again")
    check_finished(run)


def test_who_hung_and_wakes_up_writes_nothing_while_another_goes_on(cluster, run):
    cluster.scheduler(DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL="15s")
    study = cluster.join("study")
    worker = cluster.worker("hangs")
    first = holder(run)
    suspended = tree(worker)
    for process in suspended:
        process.suspend()
    has_unshare = shutil.which("unshare") and not subprocess.run([*ELSEWHERE, "true"]).returncode
    cluster.worker("other", before=ELSEWHERE if has_unshare else ())
    wait_for(lambda: "lost " in cluster.output("study"), "the scheduler misses the worker")
    lease = run.folder / ".lease" / first
    long_ago = lease.stat().st_mtime - lock.LEASE_SECONDS
    os.utime(lease, (long_ago, long_ago))
    second = new_holder(run, first)
    assert second.startswith("elsewhere," if has_unshare else lock.platform.node())

    # The second process may still be writing its line of config.json.
    left_out = {".log", ".json"}
    files = [
        path for path in run.folder.iterdir() if path.is_file() and path.suffix not in left_out
    ]
    contents = {path: path.read_bytes() for path in files}
    cluster.release("hangs")
    for process in suspended:
        process.resume()
    error = wait_for(lambda: cluster.output("hangs", "error"), "the one that hung notices")
    assert f"{run.folder} is no longer locked by this process" in error
    assert {path: path.read_bytes() for path in files} == contents
    assert holder(run) == second
    cluster.release("other")
    assert study.wait(240) == 0, cluster.output("study")
    check_finished(run)
