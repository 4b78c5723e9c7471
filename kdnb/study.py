"""The study from a shell: a grid of runs on Dask, a papermill process each, then results.ipynb.

    python -m kdnb.study --dataset cifar100 --seeds 0-4            # teacher, none, kd, afd; results
    python -m kdnb.study --dataset digits -p epochs 1 --dry-run    # what would run, and the commands

A process a run, because notebooks executed in one process leak memory. Finished runs are skipped, broken-off ones go
on, a failure does not stop the others. Exit status: 0, 1 if a run failed, 2 for bad arguments, 130 after Ctrl-C.
"""

import argparse
import logging
import os
import re
import shlex
import signal
import sys
from dataclasses import replace
from pathlib import Path

from kdnb.data import DATASETS
from kdnb.errors import InputError
from kdnb.methods import parse
from kdnb.parameters import typed
from kdnb.paths import project_root
from kdnb.process import command, execute, make, papermill, stop_children
from kdnb.results import record
from kdnb.run import Run, grid


def make_all(runs: list[Run], jobs: int) -> dict[str, str]:
    """Make each run, `jobs` side by side, a teacher before its students; {run: why} of what failed."""
    from dask.distributed import Client

    threads = str(max(1, (os.cpu_count() or 1) // jobs))
    env = {"OMP_NUM_THREADS": threads, "OMP_WAIT_POLICY": "PASSIVE"} if jobs > 1 else {}
    options = {"processes": False, "threads_per_worker": 1, "dashboard_address": None, "silence_logs": 50}
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # what Dask leaves behind when it is stopped
    with Client(n_workers=jobs, **options) as client:
        tasks = {}
        for run in runs:
            needs = [tasks[run.teacher_run]] if run.teacher_run in tasks else []
            tasks[run] = client.submit(make, run, env, *needs, pure=False)
        try:
            told = [task.result() for task in tasks.values()]
        except KeyboardInterrupt:
            client.cancel(list(tasks.values()))
            stop_children()
            raise
    return {run.name: why for run, why in zip(runs, told, strict=True) if why}


def plan(datasets: list[str], methods: list[str], **own) -> list[Run]:
    """The runs of the grid, teachers first; a method that a data set's teacher cannot serve is said and left out."""
    teachers, students = [], []
    for dataset in datasets:
        for method in methods:
            try:
                runs = grid(dataset=dataset, method="afd" if method == "teacher" else method, **own)
            except InputError as error:
                grid(dataset=dataset, method="afd", **own)  # a wrong parameter is no reason to go on without it,
                parse(method, DATASETS[dataset].preset.methods)  # nor is a misspelt method
                print(f"left out: {dataset}, {method}: {error}")
                continue
            teachers += [run.teacher_run for run in runs if run.teacher_run]
            students += runs if method != "teacher" else []
    if not teachers + students:
        raise InputError("nothing is left to run")
    return list(dict.fromkeys(teachers + students))


def seeds(text: str) -> list[int]:
    """ "0-2,7" -> [0, 1, 2, 7]."""
    ends = [part.split("-") for part in text.split(",")]
    return [seed for end in ends for seed in range(int(end[0]), int(end[-1]) + 1)]


def study(a: argparse.Namespace) -> int:
    """Plan, make, record, sum up; the exit status. Raises InputError for bad arguments."""
    outputs, own = Path(a.outputs).expanduser().absolute(), {str(name): value for name, value in a.p}
    if twice := {"dataset", "method", "seed", "outputs"} & own.keys():
        raise InputError(f"-p {min(twice)}: it has an option of its own")
    if a.jobs < 1:
        raise InputError(f"--jobs is {a.jobs}: it must be 1 or more")
    runs = plan(a.dataset, a.methods, seed=a.seeds, outputs=str(outputs), **own)
    for run in runs:
        print(f"finished  {run.folder}" if run.done else f"to run    {shlex.join(command(run))}", flush=True)
    if a.dry_run:
        return 0
    failed = make_all([run for run in runs if not run.done], a.jobs)
    runs = [replace(run, data_id="") for run in runs]  # a digest of what is there now: it may just have been downloaded
    for run in (run for run in runs if a.record and run.done):
        record(run)
    summary = papermill("results.ipynb", outputs / "results.ipynb", {"outputs": outputs})
    if why := execute(summary, outputs / "results.log", {}):
        failed["results.ipynb"] = why
    for what, why in failed.items():
        print(f"failed: {what}: {why}", file=sys.stderr)
    return 1 if failed else 0


def main(argv: list[str] | None = None) -> int:
    """The exit status; see the top of this file."""
    form = {"formatter_class": argparse.RawTextHelpFormatter, "allow_abbrev": False, "usage": "%(prog)s [options]"}
    parser = argparse.ArgumentParser("python -m kdnb.study", description=__doc__, **form)
    add, commas = parser.add_argument, re.compile(r"\s*,\s*(?![^(]*\))").split
    add("--dataset", default="cifar100", type=commas, help=f"of {', '.join(DATASETS)}; several with commas (cifar100)")
    add("--methods", default="none,kd,afd", type=commas, help="names or mixes; 'teacher' alone: only what teaches")
    add("--seeds", default="0", type=seeds, help="of the students, such as 0-4 or 0,1,2 (0)")
    add("--jobs", default=1, type=int, help="runs side by side (1)")
    add("--dry-run", action="store_true", help="only list what would run, what is finished, and the commands")
    add("--record", action="store_true", help="copy finished runs, but weights, to records/ of the outputs folder")
    add("--outputs", default=str(project_root() / "outputs"), help="folder under which runs are kept (outputs/)")
    add("-p", nargs=2, action="append", default=[], type=typed, metavar="", help="NAME VALUE of a notebook's parameter")
    for name in (signal.SIGINT, signal.SIGTERM):  # a shell's background job starts with the first ignored
        signal.signal(name, signal.default_int_handler)
    try:
        return study(parser.parse_args(argv))
    except InputError as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        stop_children()
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
