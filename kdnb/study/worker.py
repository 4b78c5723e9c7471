"""A run's notebook in a process of its own, on whichever machine a task of Dask's is: what a worker does."""

import contextlib
import hashlib
import os
import platform
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from queue import PriorityQueue
from typing import NamedTuple

import torch

from kdnb.data import DATASETS
from kdnb.paths import project_root
from kdnb.runs.files import write_atomically
from kdnb.runs.lock import busy_message
from kdnb.runs.run import Run

NOTEBOOK = "train.ipynb"  # what makes one run
STOP_SECONDS = 60  # that a stopped run has to write its checkpoint
MARK = ".study"  # a file in the folder of runs, whose text no other has
LOOK_SECONDS = (
    1  # between looks at whether the study was stopped, or another process has let go of a run
)


class Outcome(NamedTuple):
    """What became of a run: why there is none, or its accuracy in percent and the seconds it took."""

    why: str
    top1: float = 0.0
    seconds: float = 0.0


class Study(NamedTuple):
    """What the tasks of one study share."""

    name: str  # of Dask's event that stops it, and of the topic under which starts are told
    per_gpu: int  # runs side by side on a GPU
    runs: Path  # their folder
    data: dict[str, str]  # {data set: its folder}
    alike: dict[str, str] = {}  # noqa: RUF012  what `surroundings` were where it was planned

    @classmethod
    def begin(cls, per_gpu: int, runs: Path, data: dict[str, str]) -> "Study":
        """A new one, whose folder of runs has a file by which workers know it."""
        study = cls(f"kdnb-{uuid.uuid4().hex[:8]}", per_gpu, runs, data)
        if not (runs / MARK).is_file():
            write_atomically(runs / MARK, study.name)
        return study._replace(alike=study.surroundings())

    def surroundings(self) -> dict[str, str]:
        """What has to be the same wherever runs are made; "" where there is nothing to compare."""
        files = (
            *sorted(Path(__file__).parents[1].rglob("*.py")),
            project_root() / "notebooks" / NOTEBOOK,
        )
        code = b"".join(path.read_bytes() for path in files)
        mark, found = self.runs / MARK, {"kdnb's code": hashlib.sha256(code).hexdigest()[:12]}
        found[f"the folder {self.runs}"] = mark.read_text() if mark.is_file() else ""
        for name, root in self.data.items():
            found[f"the folder {root}"] = "there" if Path(root).is_dir() else ""
            found[f"the data of {name} in {root}"] = DATASETS[name].digest(Path(root))
        return found

    def differs(self) -> str:
        """What is not the same here, in a sentence, or ""."""
        now, host = self.surroundings(), platform.node()
        told = ((what, now[what] or "not there", was) for what, was in self.alike.items() if was)
        return next(
            (f"{what} is {own} on {host}, and {was} here" for what, own, was in told if own != was),
            "",
        )


def papermill(notebook: str, written: Path, parameters: Mapping[str, object]) -> list[str]:
    """The command that executes a notebook into `written`."""
    words = [word for name, value in parameters.items() for word in ("-p", name, str(value))]
    source = [str(project_root() / "notebooks" / notebook), str(written)]
    return [sys.executable, "-m", "papermill", *source, *words, "--log-output", "--no-progress-bar"]


def execute(
    words: list[str], log: Path, env: Mapping[str, str], stopped: Callable[[], bool] = lambda: False
) -> str:
    """Run a command to its end; "" or the sentence of the error that ended it, from what is kept in `log`.

    It ends with this process, and is interrupted, as JupyterLab's stop button does it, once it is `stopped`.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    log.unlink(missing_ok=True)  # a process that hung may still write to it
    how = {"stdin": subprocess.PIPE, "cwd": project_root(), "env": os.environ | env, "bufsize": 0}
    how["start_new_session"] = True  # Ctrl-C reaches it once, from here
    words = [sys.executable, "-P", str(Path(__file__).with_name("watchdog.py")), *words]
    with open(log, "xb") as file, subprocess.Popen(words, stdout=file, stderr=file, **how) as child:
        while child.poll() is None and not stopped():
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(LOOK_SECONDS)
        for seconds in (STOP_SECONDS, 10):  # twice: a kernel between two cells does not listen
            with contextlib.suppress(subprocess.TimeoutExpired, BrokenPipeError):
                if child.poll() is None:
                    child.stdin.write(b"\n")
                    child.wait(seconds)
    if child.returncode:
        return f"{log.read_text(errors='replace').strip().rpartition(chr(10))[2]} (see {log})"
    log.unlink(missing_ok=True)
    return ""


def make(run: Run, study: Study, *teachers: Outcome) -> Outcome:
    """Make a run, unless it is there; if another process is at it, wait until that has made it or let go of it.

    teachers: what this returned of the runs that it needs.
    """
    from dask.distributed import Event, get_worker

    def stopped() -> bool:
        with contextlib.suppress(Exception):
            return Event(study.name).is_set()
        return True  # the scheduler is gone

    why = "its teacher failed" if any(teacher.why for teacher in teachers) else study.differs()
    if why:
        return Outcome(f"not started: {why}")
    with share(run, study.per_gpu) as env:
        run = replace(run, data_hash="")  # a digest of what is there by now
        while not run.done:
            if stopped():
                return Outcome(why or "stopped before it began")
            if busy_message(run.folder):
                why = ""
                time.sleep(LOOK_SECONDS)
            elif why:
                return Outcome(why)
            else:
                get_worker().log_event(study.name, run.name)
                why = notebook(run, env, stopped)
                run = replace(run, data_hash="")  # its data may just have been downloaded
                if not (why or run.done):
                    return Outcome(f"its notebook made another run, not {run.name}")
    return Outcome("", run.result["top1"], run.result["total_seconds"])


def notebook(run: Run, env: Mapping[str, str], stopped: Callable[[], bool]) -> str:
    """Execute the notebook of a run, which comes to its folder whole, and only if no other process is at it."""
    with tempfile.TemporaryDirectory(prefix="kdnb-") as folder:
        written = Path(folder) / "notebook.ipynb"
        said = {
            name: getattr(run, name) for name in Run.parameters()
        }  # whatever the notebook's own cell says by now
        why = execute(papermill(NOTEBOOK, written, said), run.folder / "notebook.log", env, stopped)
        run = replace(run, data_hash="")
        if written.is_file() and not busy_message(run.folder):
            write_atomically(run.folder / written.name, written.read_bytes())
    return why


def gpus() -> list[str]:
    """The GPUs that this process sees, as CUDA_VISIBLE_DEVICES names them."""
    count = torch.cuda.device_count()
    return (os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(count)))).split(",")[
        :count
    ]


@cache
def places(per_gpu: int) -> PriorityQueue:
    """Where this worker has room for runs, `per_gpu` of them on a GPU, one on each GPU first."""
    found = PriorityQueue()
    for place in (
        (turn, order, name) for turn in range(per_gpu) for order, name in enumerate(gpus())
    ):
        found.put(place)
    return found


@contextlib.contextmanager
def share(run: Run, per_gpu: int) -> Iterator[dict[str, str]]:
    """The environment that gives a run its part of the machine's cores and, if it may choose, a GPU with room."""
    from dask.distributed import get_client, get_worker
    from dask.system import CPU_COUNT

    workers = get_client().scheduler_info(n_workers=-1)["workers"]  # all
    own, here = (
        workers[get_worker().address],
        get_worker().address.startswith("inproc:"),
    )  # all of them in this process
    apart = not here and (os.cpu_count() or 1) > CPU_COUNT  # a batch job may have cores of its own
    beside = [own] if apart else workers.values()
    runs = sum(worker["nthreads"] for worker in beside if worker["host"] == own["host"])
    env = {"OMP_NUM_THREADS": str(max(1, CPU_COUNT // runs))} | (
        {"OMP_WAIT_POLICY": "PASSIVE"} if runs > 1 else {}
    )
    if not gpus() or run.device not in ("auto", "cuda"):
        yield env
        return
    place = places(per_gpu).get()
    try:
        yield env | {"CUDA_VISIBLE_DEVICES": place[-1]}
    finally:
        places(per_gpu).put(place)
