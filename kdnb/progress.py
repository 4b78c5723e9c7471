"""Whether a person watches, and what is shown then: a bar for a person, lines for a log."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from tqdm.auto import tqdm

__all__ = ["Progress", "watched"]


def watched() -> bool:
    """Whether a person is looking on: a terminal, or a notebook that was opened in JupyterLab and not by papermill."""
    if "JPY_PARENT_PID" in os.environ:  # a Jupyter kernel; only a server with a page to show names the session
        return "JPY_SESSION_NAME" in os.environ or "VSCODE_PID" in os.environ
    return sys.stderr.isatty()


class Progress:
    """A bar over the steps of a run when a person watches, and a line per epoch: bars make a mess of a log."""

    def __init__(self, name: str, epochs: int, steps: int, say: Callable[[str], None]):
        self.name, self.epochs, self.steps, self.say = name, epochs, steps, say
        self.bar = tqdm(total=epochs * steps, desc=name, unit="step", leave=False, disable=not watched())

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_) -> None:
        self.bar.close()

    def begin(self, epoch: int, step: int) -> None:
        self.bar.n = self.bar.last_print_n = epoch * self.steps + step
        self.bar.set_description(f"{self.name}, epoch {epoch + 1}/{self.epochs}")

    def step(self) -> None:
        self.bar.update()

    def epoch(self, row: dict) -> None:
        """Say the line of a finished epoch; row: what metrics.csv has of it."""
        terms = [name for name in row if name.startswith("train_") and name not in ("train_top1", "train_total")]
        losses = "  ".join(f"{name.removeprefix('train_')} {row[name]:.4g}" for name in terms)
        accuracy = f"train {row['train_top1']:.2f} %  test {row['test_top1']:.2f} %"
        self.say(f"{self.name}  epoch {row['epoch']}/{self.epochs}  {losses}  {accuracy}  {row['seconds']:.1f} s")
