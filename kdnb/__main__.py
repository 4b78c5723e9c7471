"""Train one run from a shell, without Jupyter.

    python -m kdnb -p dataset cifar100 -p method afd -p seed 3 --minutes 9

-p sets a parameter of kdnb.Run, as in `papermill train.ipynb out.ipynb -p ...`. A list, "[0, 1,
2]", gives a run for each value. A teacher that has to be trained is trained first. Finished runs
are only read, interrupted ones continue; a run that fails does not stop those after it.

Exit status: 0 finished; 2 a run failed, or bad arguments; 3 the time is over, and the same command
continues; 130 after Ctrl-C.
"""

import argparse
import math
import signal
import sys
import time
import traceback
from functools import partial

from kdnb.errors import InputError
from kdnb.progress import tolerant_output
from kdnb.runs.parameters import command_parser, minutes


def make_parser() -> argparse.ArgumentParser:
    parser = command_parser("python -m kdnb", __doc__)
    parser.add_argument(
        "--minutes",
        type=minutes,
        default=math.inf,
        help="stop after this time with a checkpoint, but not before one step",
    )
    return parser


@tolerant_output()
def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = make_parser()
    options = parser.parse_args(argv)
    # Here: they import torch, which takes seconds, and --help needs none of them.
    from kdnb.runs.grid import grid
    from kdnb.training.loop import Interrupted
    from kdnb.training.train import train

    # A shell starts background jobs with SIGINT ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    status = 0
    deadline = time.monotonic() + 60 * options.minutes
    try:
        for run in grid(**{str(name): value for name, value in options.p}):
            try:
                train(run, partial(print, flush=True), deadline)
            except Interrupted:
                raise
            except Exception as error:
                if not isinstance(error, InputError):  # a bug, which the next run may not meet
                    traceback.print_exc()
                print(f"failed: {run.name}: {error}", file=sys.stderr)
                status = 2
    except (Interrupted, KeyboardInterrupt) as stopped:
        message = str(stopped) or "stopped; the same command goes on from here"
        print(message, file=sys.stderr)
        return 3 if time.monotonic() >= deadline else 130
    except InputError as error:
        parser.error(str(error))
    return status


if __name__ == "__main__":
    sys.exit(main())
