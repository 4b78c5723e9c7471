"""The exception for bad input: one sentence that names it and says what is allowed."""

import math
import re
from collections.abc import Collection

CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


class InputError(ValueError):
    """Bad input: a parameter, a file, or something missing on this machine.

    Notebooks and papermill show the sentence without a traceback; Python shows both. It is one line
    that can be printed: control characters, and bytes of a file's name that are not UTF-8, are
    written as escapes.
    """

    def __init__(self, message: str = ""):
        line = re.sub(r"\s*[\r\n]\s*", " ", str(message).strip())
        line = CONTROL.sub(lambda match: repr(match[0])[1:-1], line)
        super().__init__(line.encode(errors="backslashreplace").decode())

    def _render_traceback_(self) -> list[str]:  # IPython calls it in place of its own traceback
        return [f"{type(self).__name__}: {self}"]


def choose(what: str, name: str, known: Collection[str]) -> str:
    """Return `name` if it is among the known ones; else raise an InputError that lists them."""
    if name not in known:
        raise InputError(f"unknown {what} {quote(name)}: choose one of {', '.join(sorted(known))}")
    return name


NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
SMALLEST = 5e-324  # of the floats above 0
WHOLE_NUMBER = re.compile(r"[+-]?\d{1,20}", re.ASCII)


def to_number(text: str, kind: type[int] | type[float] = float) -> int | float:
    """Return the finite number that a text spells: float("٣") and int("1_0") would be numbers, too.

    Raises ValueError for another text, and for a number that a float cannot hold.
    """
    pattern = WHOLE_NUMBER if kind is int else NUMBER
    if not pattern.fullmatch(text.strip()) or not math.isfinite(float(text)):
        raise ValueError(f"{quote(text)} is not a number")
    if underflows(text):
        raise ValueError(f"{quote(text)} is too near to 0 ({SMALLEST} is the smallest number)")
    return kind(text)


def underflows(text: str) -> bool:
    """Return whether a text spells a number that is not 0, but is 0 as a float, such as 1e-400."""
    return not float(text) and re.search("[1-9]", re.split("[eE]", text)[0]) is not None


def shorten(text: str, most: int = 200) -> str:
    """Return a text with its middle left out if it is longer than `most` characters."""
    half = most // 2
    return text if len(text) <= most else f"{text[:half]}…{text[-half:]}"


def quote(value: object) -> str:
    """Return a value as a sentence quotes it: its repr, shortened."""
    try:
        return shorten(repr(value))
    except ValueError:  # Python writes no whole number of more than 4,300 digits
        return "a number of thousands of digits"
