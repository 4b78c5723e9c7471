"""What a Dask worker does for a study: it executes the notebook of one run in a process of its own.

A process per run, because notebooks that are executed in one process leak memory.
"""

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from queue import PriorityQueue
from typing import NamedTuple

import torch

from kdnb.errors import InputError
from kdnb.paths import project_root
from kdnb.runs.files import write_atomically
from kdnb.runs.lock import busy_message
from kdnb.runs.run import Run
from kdnb.study.fingerprints import NOTEBOOK, Study

POLL_SECONDS = 1  # between checks of whether the study was stopped, or a folder was unlocked
STOP_SECONDS = 60  # that an interrupted run has to write its checkpoint
KILL_SECONDS = 10  # that it has after a second interrupt
REPORT_SECONDS = 10  # between two reports of a run's epochs


class Outcome(NamedTuple):
    """The result of a task: accuracy in percent and seconds of its run, or why there is none."""

    error: str
    top1: float = 0.0
    seconds: float = 0.0


class EpochReport:
    """Reports the last finished epoch of a run in training, at most once in REPORT_SECONDS.

    Args:
        run: its metrics.csv is read.
        send: called with a message {"run", "epoch", "epochs", "top1"}, top1 in percent.
    """

    def __init__(self, run: Run, send: Callable[[dict], None]):
        self.run = run
        self.send = send
        self.epoch = 0
        self.reported = time.monotonic()

    def __call__(self) -> None:
        if time.monotonic() - self.reported < REPORT_SECONDS:
            return
        self.reported = time.monotonic()
        try:
            row = self.run.metrics.iloc[-1]
        except (InputError, IndexError):  # no epoch is finished
            return
        if row["epoch"] > self.epoch:
            self.epoch = int(row["epoch"])
            facts = {
                "epoch": self.epoch,
                "epochs": self.run.epochs,
                "top1": float(row["test_top1"]),
            }
            self.send({"run": self.run.name, **facts})


def papermill_command(notebook: str, output: Path, parameters: Mapping[str, object]) -> list[str]:
    """The command that executes a notebook of the project and saves it, executed, as `output`."""
    source = project_root() / "notebooks" / notebook
    command = [sys.executable, "-m", "papermill", str(source), str(output)]
    for name, value in parameters.items():
        command += ["-p", name, str(value)]
    return [*command, "--log-output", "--no-progress-bar"]


def execute(
    command: list[str],
    log: Path,
    env: Mapping[str, str],
    is_stopped: Callable[[], bool] = lambda: False,
) -> str:
    """Run a command to its end; returns "", or the error that ended it as a sentence.

    The command is killed when this process ends. Once `is_stopped()`, its kernel is interrupted.

    Args:
        command: its words.
        log: file for what it prints; it is deleted if the command succeeds.
        env: environment variables on top of this process's.
        is_stopped: is called once in POLL_SECONDS.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    log.unlink(missing_ok=True)  # a process that was suspended may still write to it
    watchdog = [sys.executable, "-P", str(Path(__file__).with_name("watchdog.py"))]
    with (
        open(log, "xb") as file,
        subprocess.Popen(
            [*watchdog, *command],
            stdin=subprocess.PIPE,
            stdout=file,
            stderr=file,
            bufsize=0,
            cwd=project_root(),
            env=os.environ | env,
            start_new_session=True,  # Ctrl-C reaches it only through this process
        ) as process,
    ):
        while process.poll() is None and not is_stopped():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(POLL_SECONDS)
        # Interrupted twice, because a kernel between two cells ignores an interrupt.
        for seconds in (STOP_SECONDS, KILL_SECONDS):
            with contextlib.suppress(subprocess.TimeoutExpired, BrokenPipeError):
                if process.poll() is None:
                    process.stdin.write(b"\n")
                    process.wait(seconds)
    if process.returncode:
        last_line = log.read_text(errors="replace").strip().split("\n")[-1]
        if process.returncode < 0:  # the watchdog, and the command with it
            last_line = f"killed by signal {-process.returncode}"
        return f"{last_line or f'it ended with status {process.returncode}'} (see {log})"
    log.unlink(missing_ok=True)
    return ""


def make_run(run: Run, study: Study, *teachers: Outcome) -> Outcome:
    """Train a run that is not finished; the task that a Dask worker executes.

    If another process is training it, wait until that process finishes it or unlocks its folder.

    Args:
        run: what to train.
        study: the study that it belongs to.
        teachers: the outcomes of the tasks that it depends on.
    """
    from dask.distributed import Event, get_worker

    def is_stopped() -> bool:
        with contextlib.suppress(Exception):
            return Event(study.name).is_set()
        return True  # the scheduler is gone

    if any(teacher.error for teacher in teachers):
        return Outcome("not started: its teacher failed")
    if mismatch := study.mismatch():
        return Outcome(f"not started: {mismatch}")
    error = ""
    with allocate(run, study.per_gpu) as env:
        run = refresh(run)
        while not run.done:
            if is_stopped():
                return Outcome(error or "stopped before it began")
            if busy_message(run.folder):
                error = ""
                time.sleep(POLL_SECONDS)
                continue
            if error:
                return Outcome(error)
            message = {"run": run.name, "waits_passively": "OMP_WAIT_POLICY" in env}
            send = partial(get_worker().log_event, study.name)
            send(message)
            report = EpochReport(run, send)
            error = execute_notebook(run, env, lambda report=report: report() or is_stopped())
            run = refresh(run)
            if not (error or run.done):
                return Outcome(f"its notebook made another run, not {run.name}")
    return Outcome("", run.result["top1"], run.result["total_seconds"])


def refresh(run: Run) -> Run:
    """The run with the hash of its data as they are now: they may have been downloaded."""
    return replace(run, data_hash="")


def execute_notebook(run: Run, env: Mapping[str, str], is_stopped: Callable[[], bool]) -> str:
    """Execute the notebook of a run; returns "", or the error that ended it as a sentence.

    The executed notebook is written to the run's folder, unless another process has locked it.
    """
    # All of them, also those with their defaults: the notebook's own cell may set others.
    parameters = {name: getattr(run, name) for name in Run.parameters()}
    with tempfile.TemporaryDirectory(prefix="kdnb-") as folder:
        output = Path(folder) / "notebook.ipynb"
        command = papermill_command(NOTEBOOK, output, parameters)
        error = execute(command, run.folder / "notebook.log", env, is_stopped)
        run = refresh(run)
        if output.is_file() and not busy_message(run.folder):
            write_atomically(run.folder / output.name, output.read_bytes())
    return error


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    count = torch.cuda.device_count()
    names = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(count)))
    return names.split(",")[:count]


@cache
def gpu_slots(per_gpu: int) -> PriorityQueue:
    """The free slots of this worker's GPUs, `per_gpu` on each: (round, order, name of the GPU).

    The first slot of each GPU comes before the second of any.
    """
    slots = PriorityQueue()
    for round_ in range(per_gpu):
        for order, name in enumerate(visible_gpus()):
            slots.put((round_, order, name))
    return slots


@contextlib.contextmanager
def allocate(run: Run, per_gpu: int) -> Iterator[dict[str, str]]:
    """Environment variables that give a run its share of the cores and a free slot of a GPU.

    A run whose device is not "auto" or "cuda" gets no slot. The context waits for a free one.
    """
    from dask.distributed import get_client, get_worker
    from dask.system import CPU_COUNT

    workers = get_client().scheduler_info(n_workers=-1)["workers"]
    address = get_worker().address
    host = workers[address]["host"]
    # The worker of a batch job may have cores of its own, which no other worker of its host uses.
    has_own_cores = (os.cpu_count() or 1) > CPU_COUNT and not address.startswith("inproc:")
    if has_own_cores:
        runs = workers[address]["nthreads"]
    else:
        runs = sum(worker["nthreads"] for worker in workers.values() if worker["host"] == host)
    env = {"OMP_NUM_THREADS": str(max(1, CPU_COUNT // runs))}
    if runs > 1:
        env["OMP_WAIT_POLICY"] = "PASSIVE"  # threads that spin slow down other runs
    if not visible_gpus() or run.device not in ("auto", "cuda"):
        yield env
        return
    slots = gpu_slots(per_gpu)
    slot = slots.get()
    try:
        yield env | {"CUDA_VISIBLE_DEVICES": slot[-1]}
    finally:
        slots.put(slot)
