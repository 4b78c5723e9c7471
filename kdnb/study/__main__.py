"""Train a grid of runs on Dask in processes of their own, then execute results.ipynb.

    python -m kdnb.study --dataset cifar100 --seeds 0-4 -p teacher_weights none
    python -m kdnb.study --dataset digits -p epochs 1 --dry-run    # only list the commands

The methods are none, kd and afd if --methods names no others; teachers are trained first. Finished
runs are skipped, interrupted ones continue, and a run that fails does not stop the others.

Exit status: 0 finished; 1 a run failed; 2 bad arguments; 130 after Ctrl-C.
"""

import argparse
import signal
import sys

from kdnb.errors import InputError, quote, to_number
from kdnb.progress import tolerant_output
from kdnb.runs.parameters import MOST_THINGS, command_parser, count


def parse_seeds(text: str) -> list[int]:
    """ "0-2,7" -> [0, 1, 2, 7]."""
    seeds = []
    for part in text.split(","):
        ends = part.split("-")
        try:
            first, last = to_number(ends[0], int), to_number(ends[-1], int)
        except ValueError:
            first, last = 0, MOST_THINGS
        if len(ends) > 2 or len(seeds) + last - first >= MOST_THINGS:
            raise argparse.ArgumentTypeError(
                f"{quote(text)}: it must be numbers and ranges, such as 0-4 or 0,1,2, and at most "
                f"{MOST_THINGS:,} seeds"
            )
        seeds += range(first, last + 1)
    return seeds


def names(text: str) -> list[str]:
    """The names in a list with commas."""
    from kdnb.losses.mix import split_list  # here: --help does without torch

    return split_list(text)


def make_parser() -> argparse.ArgumentParser:
    parser = command_parser("python -m kdnb.study", __doc__)
    add = parser.add_argument
    add(
        "--dataset",
        default="cifar100",
        type=names,
        help="name of the data set; several with commas (cifar100)",
    )
    add(
        "--methods",
        default="none,kd,afd",
        type=names,
        help="names or mixes (none,kd,afd); teacher: train the teacher alone",
    )
    add("--seeds", default="0", type=parse_seeds, help="of the students: 0-4 or 0,1,2 (0)")
    add(
        "--pair",
        default=[],
        type=names,
        help="teacher-student, of kdnb.models.PAIRS; several with commas, or all",
    )
    add(
        "--jobs",
        type=count,
        help="processes side by side on this machine (1, or as many as its GPUs have room for)",
    )
    add(
        "--per-gpu",
        default=1,
        type=count,
        help="runs side by side on a GPU (1); those that differ in their seed alone share a "
        "process",
    )
    add(
        "--scheduler",
        default="",
        metavar="ADDRESS",
        help="of a running Dask cluster whose workers see the same folders",
    )
    add(
        "--dry-run",
        action="store_true",
        help="only list the finished runs, and the commands of the others",
    )
    add("--outputs", default="", help="folder of runs, tables and figures (outputs/)")
    return parser


@tolerant_output()
def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = make_parser()
    # A shell starts background jobs with SIGINT ignored.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    options = parser.parse_args(argv)
    # Here: they import torch, which takes seconds, and --help needs none of them.
    from kdnb.study.plan import run_study

    try:
        return run_study(options)
    except InputError as error:
        parser.error(str(error))
    except ConnectionError as error:
        print(f"{error}; the same command goes on from here", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
