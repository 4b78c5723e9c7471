"""How sure a number is: spreads, 95 % intervals, a test."""

from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats


def mean_sd(values: pd.Series) -> str:
    """Mean, and standard deviation of the sample if there are several, to two decimals."""
    return f"{values.mean():.2f}" + (f" ± {values.std():.2f}" if len(values) > 1 else "")


def interval(values: np.ndarray, form: str = ".3g") -> str:
    """The mean of a value per image, or per seed, and its 95 % interval (Student's t)."""
    mean, half = values.mean(), stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    return f"{mean:{form}} [{mean - half:{form}}, {mean + half:{form}}]"


def share(true: np.ndarray) -> str:
    """How many of some booleans are true, in percent, and the interval of that (Wilson's)."""
    found = stats.binomtest(int(true.sum()), len(true)).proportion_ci(method="wilson")
    return f"{100 * true.mean():.2f} [{100 * found.low:.1f}, {100 * found.high:.1f}]"


class Difference(NamedTuple):
    """An accuracy minus another on the same images, in percentage points."""

    gain: float
    low: float  # of its interval (Agresti and Min, 2005)
    high: float
    p: float  # of McNemar's exact test: how likely so uneven a split of what only one gets right would be by chance

    def __str__(self) -> str:
        return f"{self.gain:+.2f} [{self.low:+.2f}, {self.high:+.2f}] percentage points, McNemar's p = {self.p:.2g}"


def difference(before: np.ndarray, after: np.ndarray) -> Difference:
    """Of two boolean arrays (n,), whether each image is right: how much better the second is."""
    gained, lost, n = int((after & ~before).sum()), int((before & ~after).sum()), len(before)
    middle, error = (
        (gained - lost) / (n + 2),
        np.sqrt(gained + lost + 1 - (gained - lost) ** 2 / (n + 2)) / (n + 2),
    )
    p = stats.binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    ends = 100 * (middle + stats.norm.ppf([0.025, 0.975]) * error)
    return Difference(100 * (gained - lost) / n, *map(float, ends), float(p))
