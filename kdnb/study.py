"""The whole study from a shell: a grid of runs through papermill, then results.ipynb.

    python -m kdnb.study --dataset cifar100 --seeds 0-4            # teacher, plain, kd, afd; results
    python -m kdnb.study --dataset digits --epochs 1 --dry-run     # what would run, and the commands

A process a run, because notebooks executed in one process leak memory. Finished runs are skipped, broken-off ones go
on, a failure does not stop the others. Nothing here imports torch: the processes do.
Exit status: 0, 1 if a run failed, 2 for bad arguments, 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil

from kdnb import grid
from kdnb.errors import InputError, choose
from kdnb.grid import METHODS, ROOT, Task, finished, notebook_parameters, plan, typed
from kdnb.recipes import RECIPES

STOP_SECONDS = 60  # that a stopped run has to write its checkpoint


def papermill(notebook: str, written: Path, parameters: dict[str, object]) -> list[str]:
    """The command that executes a notebook into `written`."""
    words = [word for name, value in parameters.items() for word in ("-p", name, str(value))]
    source = [str(grid.NOTEBOOKS / notebook), str(written)]
    return [sys.executable, "-m", "papermill", *source, *words, "--log-output", "--no-progress-bar"]


# Processes


class Child:
    """A running command. It has a session of its own, so that Ctrl-C reaches it once, from here."""

    def __init__(self, label: str, command: list[str], written: Path, env: dict[str, str]):
        self.label, self.written, self.log = label, written, written.with_suffix(".log")
        self.since = time.monotonic()
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def why(self) -> str:
        """The sentence of the error that ended it, from its log."""
        text = self.log.read_text(errors="replace").strip().splitlines() or ["it left no word"]
        errors = [line for line in text if re.match(r"[\w.]*(Error|Exception|Interrupted|Interrupt)\b", line)]
        return (errors or text)[-1]


def stop(children: list[Child]) -> None:
    """Interrupt each, as JupyterLab's stop button does, and wait for their checkpoints; then end them.

    papermill, interrupted, gives its kernel 5 seconds; a step of a large network may take longer. So the kernel itself
    is interrupted first: its notebook then ends with the sentence that it was stopped, and papermill with it.
    """
    for how, seconds in ((interrupt_kernel, STOP_SECONDS), (lambda process: process.send_signal(signal.SIGINT), 10)):
        for child in children:
            how(child.process)
        until = time.monotonic() + seconds
        while time.monotonic() < until and any(child.process.poll() is None for child in children):
            time.sleep(0.1)
    for child in children:
        child.process.kill()  # of what has ended, nothing


def interrupt_kernel(process: subprocess.Popen) -> None:
    try:
        for kernel in psutil.Process(process.pid).children() or [process]:
            kernel.send_signal(signal.SIGINT)
    except psutil.NoSuchProcess:
        pass  # it has just ended


def run_all(tasks: list[Task], jobs: int, outputs: Path) -> dict[str, str]:
    """Run what is not finished, `jobs` side by side; {label: why} of what failed. Raises KeyboardInterrupt, stopped."""
    aside = outputs / "runs" / ".study"  # notebooks and logs until their run folder is known
    aside.mkdir(parents=True, exist_ok=True)
    env = dict(os.environ)
    if env.get("KDNB_DATA"):  # the processes run in another folder
        env["KDNB_DATA"] = os.path.abspath(os.path.expanduser(env["KDNB_DATA"]))
    if jobs > 1:  # else every process starts as many threads as there are cores
        env.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // jobs)))
    failed: dict[str, str] = {}
    running: dict[str, tuple[Task, Child]] = {}
    waiting = [task for task in tasks if not finished(outputs, task)]
    try:
        while waiting or running:
            for task in list(waiting):
                if task.needs in failed:
                    failed[task.label] = f"not started: {task.needs} failed"
                    waiting.remove(task)
                elif len(running) < jobs and task.needs not in {t.label for t in waiting} | set(running):
                    waiting.remove(task)
                    written = aside / f"{task.label}.ipynb"
                    child = Child(task.label, papermill(METHODS[task.method], written, task.parameters), written, env)
                    running[task.label] = task, child
                    print(f"started   {task.label}   (tail -f {child.log})", flush=True)
            time.sleep(0.1)
            for label, (task, child) in list(running.items()):
                if child.process.poll() is not None:
                    del running[label]
                    if why := settle(task, child, outputs):
                        failed[label] = why
    except KeyboardInterrupt:
        print(f"stopping {len(running)} runs: each keeps a checkpoint, and goes on from it next time", flush=True)
        stop([child for _, child in running.values()])
        raise
    return failed


def settle(task: Task, child: Child, outputs: Path) -> str:
    """Lay the executed notebook into its run's folder; "" or why the run failed."""
    run = finished(outputs, task) if child.process.returncode == 0 else None
    if run is None:
        why = "its notebook ran, but no finished run is as asked" if child.process.returncode == 0 else child.why()
        print(f"failed    {task.label}: {why}", flush=True)
        return f"{why} (see {child.log})"
    os.replace(child.written, run.folder / "notebook.ipynb")
    child.log.unlink()
    seconds = time.monotonic() - child.since
    print(f"finished  {task.label}: top-1 {run.result['top1']:.2f} %, {seconds:.0f} s", flush=True)
    return ""


def execute(label: str, command: list[str], made: Path, target: Path) -> str:
    """Run a command that writes `made`, and put that at `target`; "" or why it failed."""
    child = Child(label, command, made, dict(os.environ))
    try:
        child.process.wait()
    except KeyboardInterrupt:
        stop([child])
        raise
    if child.process.returncode:
        return f"{child.why()} (see {child.log})"
    os.replace(made, target)
    child.log.unlink()
    print(target, flush=True)
    return ""


def to_html(notebook: Path, aside: Path) -> str:
    """nbconvert's HTML beside an executed notebook; "" or why there is none."""
    made, target = aside / f"{notebook.parent.name}.html", notebook.with_suffix(".html")
    if target.is_file() and target.stat().st_mtime >= notebook.stat().st_mtime:
        return ""
    command = [sys.executable, "-m", "nbconvert", "--to", "html", str(notebook), "--output-dir", str(aside)]
    return execute(made.stem, [*command, "--output", made.stem], made, target)


# The command line


class Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise InputError(message)


def numbers(text: str) -> list[int]:
    """ "0-2,7" -> [0, 1, 2, 7]. Raises InputError."""
    out: dict[int, None] = {}
    for part in text.split(","):
        ends = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        if not ends or int(ends[2] or ends[1]) < int(ends[1]):
            raise InputError(f"--seeds {text}: it must be like 0-4 or 0,1,2")
        out |= dict.fromkeys(range(int(ends[1]), int(ends[2] or ends[1]) + 1))
    return list(out)


def parsed(argv: list[str] | None) -> argparse.Namespace:
    """The arguments, checked. Raises InputError."""
    text = argparse.RawTextHelpFormatter
    parser = Parser("python -m kdnb.study", description=__doc__, formatter_class=text, allow_abbrev=False)
    add = parser.add_argument
    add("--dataset", action="append", help=f"of {', '.join(RECIPES)}; several: repeated or with commas (cifar100)")
    add("--methods", default="plain,kd,afd", help=f"of {', '.join(METHODS)}; the teacher is added where needed")
    add("--seeds", default="0", help="of the students, such as 0-4 or 0,1,2 (0)")
    add("--epochs", type=int, default=0, help="0: the recipe's (0)")
    add("--jobs", type=int, default=1, help="runs side by side (1)")
    add("--dry-run", action="store_true", help="only list what would run, what is finished, and the commands")
    add("--html", action="store_true", help="an HTML page of each executed notebook")
    add("--outputs", default="", help="folder under which runs are kept (outputs/ in the project)")
    add("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help="a parameter of the notebooks")
    a = parser.parse_args(argv)
    a.dataset = [d.strip() for text in a.dataset or ["cifar100"] for d in text.split(",")]
    a.methods = [m.strip() for m in a.methods.split(",")]
    for what, names, known in (("dataset", a.dataset, RECIPES), ("method", a.methods, METHODS)):
        for name in names:
            choose(what, name, known)
    for name, least in (("epochs", 0), ("jobs", 1)):
        if getattr(a, name) < least:
            raise InputError(f"--{name} is {getattr(a, name)}: it must be {least} or more")
    a.seeds = numbers(a.seeds)
    a.outputs = Path(a.outputs).expanduser().resolve() if a.outputs else ROOT / "outputs"
    a.extra = typed(a.p, notebook_parameters("distill.ipynb")) | ({"epochs": a.epochs} if a.epochs else {})
    if "afd" in a.methods and a.extra.get("beta") == 0:
        raise InputError("-p beta 0 leaves no AFD: use --methods kd")
    return a


def dry_run(tasks: list[Task], outputs: Path) -> None:
    """Say what is finished, and the command of what is not."""
    for task in tasks:
        if run := finished(outputs, task):
            print(f"finished  {task.label}: top-1 {run.result['top1']:.2f} % in {run.folder}")
        else:
            print(f"to run    {task.label}" + (f", after {task.needs}" if task.needs else ""))
            written = outputs / "runs" / ".study" / f"{task.label}.ipynb"
            print(f"          {shlex.join(papermill(METHODS[task.method], written, task.parameters))}")


def study(tasks: list[Task], a: argparse.Namespace) -> dict[str, str]:
    """The runs, then results.ipynb and the HTML pages; {what: why} of everything that failed."""
    aside = a.outputs / "runs" / ".study"
    failed = run_all(tasks, a.jobs, a.outputs)
    made, target = aside / "results.ipynb", a.outputs / "results.ipynb"
    why = execute("results", papermill("results.ipynb", made, {"outputs": str(a.outputs)}), made, target)
    failed |= {"results.ipynb": why} if why else {}
    if a.html:
        runs = [run for task in tasks if (run := finished(a.outputs, task))]
        for notebook in [*(run.folder / "notebook.ipynb" for run in runs), target]:
            if notebook.is_file() and (why := to_html(notebook, aside)):
                failed[f"HTML of {notebook}"] = why
    return failed


def main(argv: list[str] | None = None) -> int:
    """The exit status; see the top of this file."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job starts with it ignored
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        a = parsed(argv)
        tasks, left_out = plan(a.dataset, a.methods, a.seeds, a.outputs, a.extra)
        for sentence in left_out:
            print(sentence)
        if a.dry_run:
            dry_run(tasks, a.outputs)
            return 0
        skipped = [task for task in tasks if finished(a.outputs, task)]
        print(f"{len(tasks)} to do, {len(skipped)} of them finished before", flush=True)
        failed = study(tasks, a)
    except InputError as error:
        print(f"kdnb.study: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    for what, why in failed.items():
        print(f"failed: {what}: {why}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
