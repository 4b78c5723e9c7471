"""Whether a person watches, and what is shown then: a bar for a person, lines for a log."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from tqdm import tqdm

__all__ = ["Progress", "bar", "counted", "watched"]


def watched() -> bool:
    """Whether a person is looking on: a terminal, or a notebook that was opened in JupyterLab and not by papermill."""
    if "JPY_PARENT_PID" in os.environ:  # a Jupyter kernel; only a server with a page to show names the session
        return "JPY_SESSION_NAME" in os.environ or "VSCODE_PID" in os.environ
    return sys.stderr.isatty()


@contextmanager
def bar(total: int, description: str, unit: str, wanted: bool = True) -> Iterator[tqdm]:
    """tqdm's bar if a person watches (and it is `wanted`), which leaves nothing behind."""
    shown = wanted and watched()
    if not (shown and "ipykernel" in sys.modules):
        with tqdm(total=total, desc=description, unit=unit, leave=False, disable=not shown) as made:
            yield made
        return
    from IPython.display import display
    from tqdm.notebook import tqdm as notebook_tqdm

    # Shown through a handle, so that it can be taken away again: a closed bar that stays in the notebook is a widget
    # without a kernel, an error message, to whoever opens the notebook next.
    made = notebook_tqdm(total=total, desc=description, unit=unit, leave=False, display=False)
    handle = display(made.container, display_id=True)
    try:
        yield made
    finally:
        made.close()
        handle.update({}, raw=True)


def counted(items: Iterable, total: int, description: str) -> Iterator:
    """The items, under a bar."""
    with bar(total, description, "batch") as shown:
        for item in items:
            yield item
            shown.update()


class Progress:
    """The lines of a run, one per epoch, for whoever reads them now or later; and where its bar stands."""

    def __init__(self, name: str, epochs: int, steps: int, tqdm_bar: tqdm, say: Callable[[str], None]):
        self.epochs, self.steps, self.bar, self.say = epochs, steps, tqdm_bar, say
        say(f"{name}: {epochs} epochs of {steps} steps")

    def begin(self, epoch: int, step: int) -> None:
        self.bar.n = self.bar.last_print_n = epoch * self.steps + step
        self.bar.set_description(f"epoch {epoch + 1}/{self.epochs}")

    def step(self) -> None:
        self.bar.update()

    def epoch(self, row: dict) -> None:
        """Say the line of a finished epoch; row: what metrics.csv has of it."""
        terms = [name for name in row if name.startswith("train_") and name not in ("train_top1", "train_total")]
        losses = "  ".join(f"{name.removeprefix('train_')} {row[name]:.4g}" for name in terms)
        accuracy = f"train {row['train_top1']:.2f} %  test {row['test_top1']:.2f} %"
        self.say(f"epoch {row['epoch']}/{self.epochs}  {losses}  {accuracy}  {row['seconds']:.1f} s")
