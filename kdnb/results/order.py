"""The order of data sets and methods, which tables and figures share."""

from collections.abc import Iterable
from functools import cache
from pathlib import Path

import pandas as pd

DATASET_ORDER = {"digits": 0, "cifar100": 1, "stanford40": 2}  # on a page; others come last
LAST = 1000  # the position of mixes, after all named methods


@cache
def named_methods() -> pd.Index:
    """The methods in the order of published.csv: labels only, predictions, features, relations."""
    rows = pd.read_csv(Path(__file__).with_name("published.csv"), usecols=["method"], dtype=str)
    return pd.Index(rows["method"].unique())


def method_order(methods: Iterable[str]) -> list[int]:
    """The position of each method; a mix without a name comes last."""
    return [position % LAST for position in named_methods().get_indexer(list(methods))]


def with_dataset_order(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs with the position of each data set on a page, as column dataset_order."""
    order = runs["dataset"].map(DATASET_ORDER).fillna(len(DATASET_ORDER))
    return runs.assign(dataset_order=order)
