"""Whether a person watches, and what is shown then: a bar for a person, lines for a log."""

import math
import os
import signal
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

from tqdm import tqdm


def is_interactive() -> bool:
    """Whether a person is looking on: a terminal, or a notebook that was opened in JupyterLab and not by papermill."""
    if (
        "JPY_PARENT_PID" in os.environ
    ):  # a Jupyter kernel; only a server with a page to show names the session
        return "JPY_SESSION_NAME" in os.environ or "VSCODE_PID" in os.environ
    return sys.stderr.isatty()


@contextmanager
def bar(total: int, description: str, unit: str) -> Iterator[tqdm]:
    """tqdm's bar if a person watches, which leaves nothing behind."""
    look = {
        "total": total,
        "desc": description,
        "unit": unit,
        "leave": False,
        "disable": not is_interactive(),
    }
    if look["disable"] or "ipykernel" not in sys.modules:
        with tqdm(**look) as made:
            yield made
        return
    from IPython.display import display
    from tqdm.notebook import tqdm as notebook_tqdm

    # Shown through a handle, so that it can be taken away again: a closed bar that stays in the notebook is a widget
    # without a kernel, an error message, to whoever opens the notebook next.
    with notebook_tqdm(**look, display=False) as made:
        handle = display(made.container, display_id=True)
        try:
            yield made
        finally:
            handle.update({}, raw=True)


def with_progress(items: Iterable, total: int, description: str) -> Iterator:
    """The items, under a bar."""
    with bar(total, description, "batch") as shown:
        for item in items:
            yield item
            shown.update()


def epoch_line(row: dict, epochs: int) -> str:
    """A finished epoch in a line, for whoever reads it now or later; row: what metrics.csv has of it."""
    terms = [
        name
        for name in row
        if name.startswith("train_") and name not in ("train_top1", "train_total")
    ]
    losses = "  ".join(f"{name.removeprefix('train_')} {row[name]:.4g}" for name in terms)
    accuracy = f"train {row['train_top1']:.2f} %  test {row['test_top1']:.2f} %"
    return f"epoch {row['epoch']}/{epochs}  {losses}  {accuracy}  {row['seconds']:.1f} s"


class StopButton:
    """Turns the first interrupt (JupyterLab's stop button, Ctrl-C) into a wish that is met between two steps.

    In the middle of a step the weights are half updated and not worth keeping. A second interrupt stops at once.
    until: when it presses itself, by the clock of time.monotonic().
    """

    def __init__(self, until: float = math.inf):
        self.until = until

    @property
    def pressed(self) -> bool:
        return self.requested or time.monotonic() >= self.until

    def __enter__(self) -> "StopButton":
        self.requested, self.before = False, None
        with suppress(ValueError):  # outside the main thread, which alone hears signals
            self.before = signal.signal(signal.SIGINT, self.press)
        return self

    def press(self, *_) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True

    def __exit__(self, *_) -> None:
        if self.before is not None:
            signal.signal(signal.SIGINT, self.before)
