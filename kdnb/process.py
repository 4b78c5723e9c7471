"""A run's notebook in a process of its own, and how it is stopped without losing the run.

Apart from study.py, for Dask would give its workers copies of what a program's own file defines.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil

from kdnb.paths import data_folder, project_root
from kdnb.run import Run

STOP_SECONDS = 60  # that a stopped run has to write its checkpoint
CHILDREN: list[subprocess.Popen] = []  # the notebooks that are running
STOPPING = threading.Event()  # none is started any more


def papermill(notebook: str, written: Path, parameters: dict[str, object]) -> list[str]:
    """The command that executes a notebook into `written`."""
    words = [word for name, value in parameters.items() for word in ("-p", name, str(value))]
    source = [str(project_root() / "notebooks" / notebook), str(written)]
    return [sys.executable, "-m", "papermill", *source, *words, "--log-output", "--no-progress-bar"]


def command(run: Run) -> list[str]:
    """The command that makes a run; every parameter is said, so that it is the same run wherever it is made."""
    said = {n: getattr(run, n) for n, default in Run.parameters().items() if getattr(run, n) != default}
    said["data_root"] = str(data_folder(run.data_root).absolute())  # a process may have another folder
    return papermill("train.ipynb", run.folder / "notebook.ipynb", said)


def execute(words: list[str], log: Path, env: dict[str, str]) -> str:
    """Run a command to its end; "" or the sentence of the error that ended it, from what is kept in `log`."""
    if STOPPING.is_set():
        return "stopped before it began"
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "wb") as file:  # a session of its own, so that Ctrl-C reaches it once, from here
        own = {"stdin": subprocess.DEVNULL, "stdout": file, "stderr": file, "start_new_session": True}
        child = subprocess.Popen(words, cwd=project_root(), env=os.environ | env, **own)
    CHILDREN.append(child)
    code = child.wait()
    CHILDREN.remove(child)
    if code:
        return f"{log.read_text(errors='replace').strip().rpartition(chr(10))[2]} (see {log})"
    log.unlink()
    return ""


def stop_children() -> None:
    """Interrupt each, as JupyterLab's stop button does, wait for their checkpoints, and end those that go on.

    papermill, interrupted, gives its kernel 5 seconds; a step of a large network may take longer. So the kernel itself
    is interrupted: its notebook then ends with the sentence that it was stopped, and papermill with it.
    """
    STOPPING.set()
    children = list(CHILDREN)
    for seconds in (STOP_SECONDS, 10):  # twice: a kernel between two cells does not listen
        until = time.monotonic() + seconds
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):  # it has just ended
                for kernel in psutil.Process(child.pid).children() or [child]:
                    kernel.send_signal(signal.SIGINT)
        for child in children:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(max(0, until - time.monotonic()))
    for child in children:
        child.kill()  # of what has ended, nothing


def make(run: Run, env: dict[str, str], *teachers: str) -> str:
    """Execute the notebook of a run; "" or why it failed. teachers: what this returned of the runs that it needs."""
    failed = any(teachers)
    why = "not started: its teacher failed" if failed else execute(command(run), run.folder / "notebook.log", env)
    print(f"failed    {run.name}: {why}" if why else f"finished  {run.name}", flush=True)
    return why
