"""The study from a shell: a grid of runs on Dask, a papermill process each, then results.ipynb.

    python -m kdnb.study --dataset cifar100 --seeds 0-4 -p teacher_weights none    # teacher, none, kd, afd; results
    python -m kdnb.study --dataset digits -p epochs 1 --dry-run                    # what would run, and the commands

A process a run, because notebooks executed in one process leak memory. Finished runs are skipped, broken-off ones go
on, a failure does not stop the others. Exit status: 0, 1 for failures, 2 for bad arguments, 130 after Ctrl-C.
"""

import argparse
import shlex
import signal
import sys

from kdnb.data import DATASETS
from kdnb.errors import InputError
from kdnb.losses.mix import split_list
from kdnb.paths import data_folder, output_folder
from kdnb.runs.grid import parse_pairs, plan_study
from kdnb.runs.parameters import check, parse_value
from kdnb.runs.run import Run
from kdnb.study.cluster import cluster, make_all
from kdnb.study.worker import Study, execute, gpus, papermill


def seeds(text: str) -> list[int]:
    """ "0-2,7" -> [0, 1, 2, 7]."""
    ends = [part.split("-") for part in text.split(",")]
    if not all(len(end) <= 2 and all(word.strip().isdigit() for word in end) for end in ends):
        raise argparse.ArgumentTypeError(
            f"{text!r}: it must be numbers and ranges, such as 0-4 or 0,1,2"
        )
    return [seed for end in ends for seed in range(int(end[0]), int(end[-1]) + 1)]


def study(a: argparse.Namespace) -> int:
    """Plan, make, sum up; the exit status. Raises InputError for bad arguments."""
    outputs, own = output_folder(a.outputs).absolute(), {str(name): value for name, value in a.p}
    if (
        twice := ({"dataset", "method", "seed", "outputs"} | set(parse_pairs(a.pair)[0]))
        & own.keys()
    ):
        raise InputError(f"-p {min(twice)}: it has an option of its own")
    jobs = max(1, a.per_gpu * len(gpus())) if a.jobs is None else a.jobs
    if least := [
        name for name, value in {"--jobs": jobs, "--per-gpu": a.per_gpu}.items() if value < 1
    ]:
        raise InputError(f"{least[0]} is {min(jobs, a.per_gpu)}: it must be 1 or more")
    root = check("data_root", own.get("data_root", ""), "")
    own["data_root"] = str(data_folder(root).absolute())  # a worker may have another
    runs = plan_study(
        a.dataset, a.methods, parse_pairs(a.pair), seed=a.seeds, outputs=str(outputs), **own
    )
    for run in runs:
        said = [
            (n, str(getattr(run, n)))
            for n, usual in Run.parameters().items()
            if getattr(run, n) != usual
        ]
        command = shlex.join(
            ["python", "-m", "kdnb", *(word for both in said for word in ("-p", *both))]
        )
        print(f"finished  {run.folder}" if run.done else f"to run    {command}", flush=True)
    if a.dry_run:
        return 0
    failed = {}
    if missing := [run for run in runs if not run.done]:
        with cluster(a.scheduler, jobs) as client:
            planned = Study.begin(
                a.per_gpu, outputs / "runs", dict.fromkeys(a.dataset, own["data_root"])
            )
            failed = make_all(client, missing, planned)
    summary = papermill("results.ipynb", outputs / "results.ipynb", {"outputs": outputs})
    if why := execute(summary, outputs / "results.log", {}):
        failed["results.ipynb"] = why
    for what, why in failed.items():
        print(f"failed: {what}: {why}", file=sys.stderr)
    return 1 if failed else 0


def main(argv: list[str] | None = None) -> int:
    """The exit status; see the top of this file."""
    form = {
        "formatter_class": argparse.RawTextHelpFormatter,
        "allow_abbrev": False,
        "usage": "%(prog)s [options]",
    }
    parser = argparse.ArgumentParser("python -m kdnb.study", description=__doc__, **form)
    add = parser.add_argument
    add(
        "--dataset",
        default="cifar100",
        type=split_list,
        help=f"of {', '.join(DATASETS)}; several with commas (cifar100)",
    )
    add(
        "--methods",
        default="none,kd,afd",
        type=split_list,
        help="names or mixes; 'teacher' alone: only what teaches",
    )
    add("--seeds", default="0", type=seeds, help="of the students, such as 0-4 or 0,1,2 (0)")
    add(
        "--pair",
        default=[],
        type=split_list,
        help="teacher-student, of kdnb.models.PAIRS; several with commas, or all",
    )
    add(
        "--jobs",
        type=int,
        help="runs side by side on this machine (1, or as many as its GPUs have room for)",
    )
    add("--per-gpu", default=1, type=int, help="runs side by side on a GPU (1)")
    add(
        "--scheduler",
        default="",
        metavar="ADDRESS",
        help="of a running Dask cluster that sees the same folders",
    )
    add(
        "--dry-run",
        action="store_true",
        help="only list what would run, what is finished, and the commands",
    )
    add("--outputs", default="", help="folder under which runs are kept (outputs/)")
    add(
        "-p",
        nargs=2,
        action="append",
        default=[],
        type=parse_value,
        metavar="",
        help="NAME VALUE of a notebook's parameter",
    )
    for name in (
        signal.SIGINT,
        signal.SIGTERM,
    ):  # a shell's background job starts with the first ignored
        signal.signal(name, signal.default_int_handler)
    try:
        return study(parser.parse_args(argv))
    except InputError as error:
        parser.error(str(error))
    except (KeyboardInterrupt, ConnectionError) as error:
        print(f"{str(error) or 'stopped'}; the same command goes on from here", file=sys.stderr)
        return 1 if str(error) else 130


if __name__ == "__main__":
    sys.exit(main())
