"""The commands of a study: one that executes a notebook, one that trains runs, and how they run."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from kdnb.paths import project_root
from kdnb.runs.run import Run

POLL_SECONDS = 1  # between checks of whether the study was stopped, or a folder was unlocked
STOP_SECONDS = 60  # that an interrupted run has to write its checkpoint
KILL_SECONDS = 10  # that it has after a second interrupt


def papermill_command(notebook: str, output: Path, parameters: Mapping[str, object]) -> list[str]:
    """The command that executes a notebook of the project and saves it, executed, as `output`."""
    source = project_root() / "notebooks" / notebook
    command = [sys.executable, "-m", "papermill", str(source), str(output)]
    for name, value in parameters.items():
        command += ["-p", name, str(value)]
    return [*command, "--log-output", "--no-progress-bar"]


def train_command(runs: Sequence[Run]) -> list[str]:
    """The command that trains a run by itself, or several that differ in their seed alone."""
    first, *others = runs
    words = ["python", "-m", "kdnb"]
    for name, default in Run.parameters().items():
        value = getattr(first, name)
        if name == "seed" and others:
            words += ["-p", name, str([run.seed for run in runs])]
        elif value not in (default, first.defaults.get(name)):
            words += ["-p", name, str(value)]
    return [*words, "--together", str(len(runs))] if others else words


def execute(
    command: list[str],
    log: Path,
    env: Mapping[str, str],
    is_stopped: Callable[[], bool] = lambda: False,
    interrupted: Literal["kernel", "command"] = "kernel",
) -> str:
    """Run a command to its end; returns "", or the error that ended it as a sentence.

    The command is killed when this process ends. Once `is_stopped()`, it is interrupted.

    Args:
        command: its words.
        log: file for what it prints; it is deleted if the command succeeds.
        env: environment variables on top of this process's.
        is_stopped: is called once in POLL_SECONDS.
        interrupted: the process that gets the interrupt: papermill's kernel, or the command itself.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    log.unlink(missing_ok=True)  # a process that was suspended may still write to it
    watchdog = [sys.executable, "-P", str(Path(__file__).with_name("watchdog.py")), interrupted]
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
