"""Uncertainty of numbers: standard deviations, 95 % intervals, a test."""

import math
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from kdnb.progress import percent


def mean_sd(values: pd.Series) -> str:
    """Mean ± standard deviation of a sample, to two decimals; of one value, the value."""
    spread = f" ± {values.std():.2f}" if len(values) > 1 else ""
    return f"{values.mean():.2f}{spread}"


def interval(values: np.ndarray, form: str = "", positive: bool = False) -> str:
    """The mean of values and its 95 % interval (Student's t).

    Args:
        form: of the numbers; "": as many decimals as give half the interval two digits.
        positive: whether the mean can only be positive. The interval is then that of its logarithm,
            by the delta method, and stays positive as well.
    """
    mean = values.mean()
    half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    low, high = mean - half, mean + half
    if positive and mean > 0:
        factor = np.exp(half / mean)
        low, high = mean / factor, mean * factor
        half = min(half, low)  # so that no end is rounded to 0
    form = form or f".{decimals(half)}f"
    return f"{mean:{form}} [{low:{form}}, {high:{form}}]"


def decimals(half: float) -> int:
    """How many decimals give half of an interval two digits; 0 if it is no number above 0."""
    return max(0, 1 - math.floor(math.log10(half))) if 0 < half < math.inf else 0


def share(is_true: np.ndarray) -> str:
    """The share of true values in percent, and its 95 % interval (Wilson's)."""
    low, high = share_ends(is_true)
    return f"{percent(100 * is_true.mean(), len(is_true))} [{low:.1f}, {high:.1f}]"


def share_ends(is_true: np.ndarray) -> tuple[float, float]:
    """The ends of Wilson's 95 % interval of a share, in percent."""
    test = stats.binomtest(int(is_true.sum()), len(is_true))
    ends = test.proportion_ci(method="wilson")
    return 100 * ends.low, 100 * ends.high


class Difference(NamedTuple):
    """The difference of two accuracies on the same images, in percentage points.

    Attributes:
        gain: the difference.
        low, high: the ends of its 95 % interval (Agresti and Min, 2005).
        p: of McNemar's exact test, whether both networks are equally often the only right one.
    """

    gain: float
    low: float
    high: float
    p: float


def difference(before: np.ndarray, after: np.ndarray) -> Difference:
    """The difference of two accuracies, after minus before.

    before, after: boolean arrays (n,), whether each image is classified correctly.
    """
    n = len(before)
    gained = int((after & ~before).sum())
    lost = int((before & ~after).sum())
    middle = (gained - lost) / (n + 2)
    error = np.sqrt(gained + lost + 1 - (gained - lost) ** 2 / (n + 2)) / (n + 2)
    low, high = 100 * (middle + stats.norm.ppf([0.025, 0.975]) * error)
    p = stats.binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    return Difference(100 * (gained - lost) / n, float(low), float(high), float(p))
