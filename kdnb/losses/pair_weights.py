"""Mixes of methods that were published for a pair of networks, from pair_weights.csv."""

import csv
from functools import lru_cache
from pathlib import Path

FILE = Path(__file__).with_name("pair_weights.csv")


def pair_methods(dataset: str, teacher: str, student: str) -> dict[str, str]:
    """Returns {method: mix} of what was published for two networks on a data set; empty for none.

    Args:
        dataset: name of the data set.
        teacher: canonical name of the teacher network.
        student: canonical name of the student network.
    """
    return {
        row["method"]: row["mix"]
        for row in read_rows()
        if (row["dataset"], row["teacher"], row["student"]) == (dataset, teacher, student)
    }


@lru_cache
def read_rows() -> tuple[dict[str, str], ...]:
    """Returns the rows of the file: method, dataset, teacher, student, mix and source."""
    with open(FILE, encoding="utf-8", newline="") as file:
        return tuple(csv.DictReader(file))
