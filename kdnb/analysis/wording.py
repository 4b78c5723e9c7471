"""The fixed words of `kdnb.analysis.findings`."""

from collections.abc import Sequence

import numpy as np
from scipy import stats


def versus(
    name: str, other: str, gain: float, low: float, high: float, unit: str, digits: int = 1
) -> str:
    """Whether a value of `name` is above or below that of `other`, by its 95 % interval."""
    ends = f"[{low:+.{digits}f}, {high:+.{digits}f}]"
    if low <= 0 <= high or np.isnan(low):
        return (
            f"no difference between {name} and {other} can be seen: {gain:+.{digits}f} {unit}, "
            f"interval {ends}"
        )
    word = "above" if gain > 0 else "below"
    return f"{name} is {word} {other} by {abs(gain):.{digits}f} {unit}, interval {ends}"


def mean_interval(values: np.ndarray) -> tuple[float, float, float]:
    """The mean of values and the ends of its 95 % interval (Student's t)."""
    mean = float(np.mean(values))
    half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    return mean, float(mean - half), float(mean + half)


def sentence(text: str) -> str:
    """The text with a full stop, and a capital unless it begins with the name of a method."""
    if text.startswith(("the ", "no ")):
        text = text[0].upper() + text[1:]
    return f"{text}."


def plural(noun: str, names: Sequence[str]) -> str:
    return f"{noun}{'s' * (len(names) > 1)} {', '.join(names)}"
