"""What a Dask worker does for a study: it trains a run, or several together, in another process.

A process per notebook, because notebooks that are executed in one process leak memory.
"""

import contextlib
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from kdnb.errors import InputError
from kdnb.runs.files import write_atomically
from kdnb.runs.lock import busy_message
from kdnb.runs.run import Run
from kdnb.study.commands import POLL_SECONDS, execute, papermill_command, train_command
from kdnb.study.fingerprints import NOTEBOOK, Study
from kdnb.study.gpus import allocate

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


def make_run(
    run: Run, study: Study, teachers: Sequence[Outcome] = (), group_error: str | None = None
) -> Outcome:
    """Train a run that is not finished; the task that a Dask worker executes.

    If another process is training it, wait until that process finishes it or unlocks its folder.

    Args:
        run: what to train.
        study: the study that it belongs to.
        teachers: the outcomes of the runs of its teachers.
        group_error: what `train_group` returned for a group with this run; None without a group.
    """
    if any(teacher.error for teacher in teachers):
        return Outcome("not started: its teacher failed")
    if mismatch := study.mismatch():
        return Outcome(f"not started: {mismatch}")
    run = refresh(run)
    if run.done and group_error is not None:  # its notebook only reads it, which needs no GPU
        with allocate(run, study.per_gpu, slots=0) as env:
            execute_notebook(run, env, partial(is_stopped, study))
        return Outcome("", run.result["top1"], run.result["total_seconds"])
    error = ""
    with allocate(run, study.per_gpu) as env:
        run = refresh(run)
        while not run.done:
            if is_stopped(study):
                return Outcome(error or "stopped before it began")
            if busy_message(run.folder):
                error = ""
                time.sleep(POLL_SECONDS)
                continue
            if error:
                return Outcome(error)
            reason = f"by itself; its group: {group_error}" if group_error else ""
            report = begin(run, study, env, reason)
            error = execute_notebook(run, env, lambda report=report: report() or is_stopped(study))
            run = refresh(run)
            if not (error or run.done):
                return Outcome(f"its notebook made another run, not {run.name}")
    return Outcome("", run.result["top1"], run.result["total_seconds"])


def train_group(runs: Sequence[Run], study: Study, teachers: Sequence[Outcome] = ()) -> str:
    """Train runs that differ in their seed alone in one process; returns "", or what went wrong.

    It is a task of its own, before the `make_run` of each of its runs. Runs that are finished or
    that other processes are training are left out. What it leaves unfinished, `make_run` trains
    alone and reports: one run that fails does not take the others along.

    Args:
        runs: at most `study.per_gpu` of them; they get as many slots of one GPU.
        study: the study that they belong to.
        teachers: the outcomes of the runs of their teachers.
    """
    if any(teacher.error for teacher in teachers) or study.mismatch():
        return ""
    try:
        with allocate(runs[0], study.per_gpu, slots=len(runs)) as env:
            runs = [
                run for run in map(refresh, runs) if not run.done and not busy_message(run.folder)
            ]
            if len(runs) < 2 or is_stopped(study):
                return ""
            reports = [begin(run, study, env) for run in runs]

            def report_and_check() -> bool:
                for report in reports:
                    report()
                return is_stopped(study)

            command = [sys.executable, *train_command(runs)[1:]]
            return execute(command, runs[0].folder / "group.log", env, report_and_check, "command")
    except Exception as error:  # Dask would not start what depends on a task that raises
        return f"{type(error).__name__}: {error}"


def is_stopped(study: Study) -> bool:
    """Whether a study was stopped, or its scheduler is gone."""
    from dask.distributed import Event

    with contextlib.suppress(Exception):
        return Event(study.name).is_set()
    return True


def begin(run: Run, study: Study, env: Mapping[str, str], reason: str = "") -> EpochReport:
    """Report that a run is started, and why it is once more; returns the report of its epochs."""
    from dask.distributed import get_worker

    send = partial(get_worker().log_event, study.name)
    passive = "OMP_WAIT_POLICY" in env
    send({"run": run.name, "waits_passively": passive, "reason": reason})
    return EpochReport(run, send)


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
