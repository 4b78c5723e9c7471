"""Train one run from a shell, without Jupyter.

    python -m kdnb -p dataset cifar100 -p method afd -p seed 3 --minutes 9

    python -m kdnb -p dataset cifar100 -p method afd -p seed "[0, 1, 2, 3, 4]" --together 5

-p sets a parameter of kdnb.Run, as in `papermill train.ipynb out.ipynb -p ...`. A list, "[0, 1,
2]", gives a run for each value. A teacher that has to be trained is trained first. Finished runs
are only read, interrupted ones continue; a run that fails does not stop the others.

--together trains several runs in lockstep, in one process: a GPU makes their steps in parallel.

Exit status: 0 finished; 2 a run failed, or bad arguments; 3 the time is over, and the same command
continues; 130 after Ctrl-C.
"""

import argparse
import math
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from functools import partial

from kdnb.errors import InputError
from kdnb.progress import tolerant_output
from kdnb.runs.parameters import command_parser, count, minutes


def make_parser() -> argparse.ArgumentParser:
    parser = command_parser("python -m kdnb", __doc__)
    parser.add_argument(
        "--minutes",
        type=minutes,
        default=math.inf,
        help="stop after this time with a checkpoint, but not before one step",
    )
    parser.add_argument(
        "--together", default=1, type=count, metavar="K", help="runs that are trained together (1)"
    )
    return parser


def groups(runs: Sequence, together: int) -> list[list]:
    """The runs in groups that are trained together; first those that are finished, one by one."""

    def is_finished(run) -> bool:
        with suppress(InputError):  # which it raises again when it is trained
            return run.done and not run.rerun
        return True

    finished = [[run] for run in runs if is_finished(run)]
    others = [run for run in runs if [run] not in finished]
    starts = range(0, len(others), together)
    return finished + [others[start : start + together] for start in starts]


@tolerant_output()
def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = make_parser()
    options = parser.parse_args(argv)
    # Here: they import torch, which takes seconds, and --help needs none of them.
    from kdnb.runs.grid import grid
    from kdnb.training.loop import Interrupted
    from kdnb.training.train import train_together

    # A shell starts background jobs with SIGINT ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    status = 0
    deadline = time.monotonic() + 60 * options.minutes
    try:
        runs = grid(**{str(name): value for name, value in options.p})
        for group in groups(runs, options.together):
            outcomes = train_together(group, partial(print, flush=True), deadline)
            for run, outcome in zip(group, outcomes, strict=True):
                if isinstance(outcome, Exception) and not isinstance(outcome, Interrupted):
                    if not isinstance(outcome, InputError):  # a bug, which others may not meet
                        traceback.print_exception(outcome)
                    print(f"failed: {run.name}: {outcome}", file=sys.stderr)
                    status = 2
            for outcome in outcomes:
                if isinstance(outcome, Interrupted):
                    raise outcome
    except (Interrupted, KeyboardInterrupt) as stopped:
        message = str(stopped) or "stopped; the same command goes on from here"
        print(message, file=sys.stderr)
        return 3 if time.monotonic() >= deadline else 130
    except InputError as error:
        parser.error(str(error))
    return status


if __name__ == "__main__":
    sys.exit(main())
