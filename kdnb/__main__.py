"""One run from a shell, without Jupyter: for machines that have torch and little else, and clusters.

    python -m kdnb -p dataset cifar100 -p method afd -p seed 3 --minutes 9

A -p is a parameter of kdnb.Run, as in `papermill train.ipynb out.ipynb -p ...`; given a list, "[0, 1, 2]", a run each.
A teacher that has to be trained is trained first. Finished runs are only read, broken-off ones go on; one that cannot
be made does not stop those after it.

Exit status: 0, finished; 3, the time is over, and the same command goes on; 2, a run cannot be; 130 after Ctrl-C.
"""

import argparse
import math
import signal
import sys
import time
import traceback
from functools import partial

from kdnb.errors import InputError
from kdnb.runs.grid import grid
from kdnb.runs.parameters import typed
from kdnb.training.loop import Interrupted, train


def main(argv: list[str] | None = None) -> int:
    """The exit status; see the top of this file."""
    form = {
        "formatter_class": argparse.RawTextHelpFormatter,
        "allow_abbrev": False,
        "usage": "%(prog)s [options]",
    }
    parser = argparse.ArgumentParser("python -m kdnb", description=__doc__, **form)
    add, late = (
        parser.add_argument,
        "stop after so many with a checkpoint, and after one step at least",
    )
    add(
        "-p",
        nargs=2,
        action="append",
        default=[],
        type=typed,
        metavar="",
        help="NAME VALUE of a parameter",
    )
    add("--minutes", type=float, default=math.inf, help=late)
    given = parser.parse_args(argv)
    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # a shell's background job starts with it ignored
    status, until = 0, time.monotonic() + 60 * given.minutes
    try:
        for run in grid(**{str(name): value for name, value in given.p}):
            try:
                train(run, partial(print, flush=True), until)
            except Interrupted:
                raise
            except Exception as error:
                if not isinstance(error, InputError):  # a bug, which the next may not have
                    traceback.print_exc()
                print(f"failed: {run.name}: {error}", file=sys.stderr)
                status = 2
    except (Interrupted, KeyboardInterrupt) as stopped:
        print(str(stopped) or "stopped; the same command goes on from here", file=sys.stderr)
        return 3 if time.monotonic() >= until else 130
    except InputError as error:
        parser.error(str(error))
    return status


if __name__ == "__main__":
    sys.exit(main())
