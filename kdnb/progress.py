"""What is shown while something runs: bars for a person, lines for a log, and the stop button.

It depends on where Python runs: in a terminal, in a notebook that a person watches, or headless.
"""

import io
import math
import os
import signal
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import TextIO

BUSY_PERCENT = 20  # load of the CPU by others from which on threads should not spin


def is_interactive() -> bool:
    """Whether a person is watching: a terminal, or a notebook open in JupyterLab or VS Code."""
    if "JPY_PARENT_PID" in os.environ:  # a Jupyter kernel; only a server with a page names sessions
        return "JPY_SESSION_NAME" in os.environ or "VSCODE_PID" in os.environ
    return sys.stderr.isatty()


def wait_passively_if_busy() -> None:
    """Let OpenMP's threads wait without spinning in a notebook whose CPU is busy, and print it.

    Threads that spin are twice as fast on a quiet machine, but up to fifty times slower while
    another process computes (docs/performance.md). OpenMP reads the setting when torch is imported:
    call this before. It takes 0.1 s. A setting of the user's stays; without psutil nothing is
    changed.
    """
    if "ipykernel" not in sys.modules or "OMP_WAIT_POLICY" in os.environ or "torch" in sys.modules:
        return
    with suppress(ImportError):
        import psutil

        if psutil.cpu_percent(0.1) > BUSY_PERCENT:
            os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
            print("The CPU is busy: threads wait without spinning (OMP_WAIT_POLICY=PASSIVE).")


class TolerantStream(io.TextIOBase):
    """A text stream whose reader may go away: what cannot be written is dropped.

    A training does not end because the pipe that its lines go to was closed, or the disk is full.
    """

    def __init__(self, stream: TextIO | None):
        self.stream = stream  # None: it was closed when Python started

    def write(self, text: str) -> int:
        encoding = getattr(self.stream, "encoding", None) or "utf-8"
        # Bytes of a file's name that are not UTF-8 are written as escapes.
        self.attempt("write", text.encode(encoding, "backslashreplace").decode(encoding))
        return len(text)

    def flush(self) -> None:
        self.attempt("flush")

    def attempt(self, action: str, *arguments) -> None:
        try:
            if self.stream is not None:
                getattr(self.stream, action)(*arguments)
        except (OSError, ValueError):
            with suppress(OSError, ValueError):  # so that Python can flush what is left at its end
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self.stream.fileno())
                os.close(nowhere)

    def isatty(self) -> bool:
        return self.stream is not None and self.stream.isatty()

    def fileno(self) -> int:
        if self.stream is None:
            raise io.UnsupportedOperation("fileno")
        return self.stream.fileno()


@contextmanager
def tolerant_output() -> Iterator[None]:
    """A context in which standard output and errors are tolerant streams."""
    with redirect_stdout(TolerantStream(sys.stdout)), redirect_stderr(TolerantStream(sys.stderr)):
        yield


@contextmanager
def bar(total: int, description: str, unit: str) -> Iterator:
    """A tqdm bar that disappears at the end; it is disabled if nobody is watching."""
    from tqdm import tqdm  # here: a deployed network does not need it

    options = {
        "total": total,
        "desc": description,
        "unit": unit,
        "leave": False,
        "disable": not is_interactive(),
    }
    if options["disable"] or "ipykernel" not in sys.modules:
        with tqdm(**options) as progress:
            yield progress
        return
    from IPython.display import display
    from tqdm.notebook import tqdm as notebook_tqdm

    # Displayed through a handle, so that it can be removed: a closed bar that stays in the notebook
    # is a widget without a kernel, an error message to whoever opens the notebook next.
    with notebook_tqdm(**options, display=False) as progress:
        handle = display(progress.container, display_id=True)
        try:
            yield progress
        finally:
            handle.update({}, raw=True)


def skip(progress, count: int) -> None:
    """Advance a bar by what was done before; it does not count for the speed."""
    progress.n += count
    progress.initial = progress.last_print_n = progress.n


def with_progress(items: Iterable, total: int, description: str) -> Iterator:
    """Yield the items, under a bar."""
    with bar(total, description, "batch") as progress:
        for item in items:
            yield item
            progress.update()


def percent(value: float, images: int) -> str:
    """A share of so many images, in percent, with as many decimals as one image makes a difference.

    97.2 of 360 images, 73.28 of 10,000.
    """
    decimals = math.ceil(math.log10(max(images, 1) / 100))
    return f"{value:.{min(max(decimals, 0), 2)}f}"


def count(number: int, noun: str) -> str:
    """A number with its noun: "1 epoch", "3 epochs"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def ignore(line: str) -> None:
    """The log of a training whose lines nobody reads."""


class StopButton:
    """A context that turns the first interrupt into a request to stop between two steps.

    JupyterLab's stop button and Ctrl-C interrupt a process anywhere; in the middle of a step the
    weights are half updated. A second interrupt raises KeyboardInterrupt at once.

    Args:
        deadline: the time.monotonic() from which on the button counts as pressed.
    """

    def __init__(self, deadline: float = math.inf):
        self.deadline = deadline

    @property
    def pressed(self) -> bool:
        """Whether to stop: on request, or because the deadline has passed."""
        return self.requested or time.monotonic() >= self.deadline

    def __enter__(self) -> "StopButton":
        self.requested = False
        self.handler_before = None
        with suppress(ValueError):  # outside the main thread, the only one that receives signals
            self.handler_before = signal.signal(signal.SIGINT, self.press)
        return self

    def press(self, *_) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True

    def __exit__(self, *_) -> None:
        if self.handler_before is not None:
            signal.signal(signal.SIGINT, self.handler_before)
