"""The exception for bad input: one sentence that names it and says what is allowed."""

from collections.abc import Collection


class InputError(ValueError):
    """Bad input: a parameter, a file, or something missing on this machine.

    Notebooks and papermill show the sentence without a traceback; Python shows both.
    """

    def _render_traceback_(self) -> list[str]:  # IPython calls it in place of its own traceback
        return [f"{type(self).__name__}: {self}"]


def choose(what: str, name: str, known: Collection[str]) -> str:
    """Return `name` if it is among the known ones; else raise an InputError that lists them."""
    if name not in known:
        raise InputError(f"unknown {what} {name!r}: choose one of {', '.join(sorted(known))}")
    return name
