"""What plots show of many runs: learning curves and links, of runs that may be compared.

A protocol is a data set, a way in which runs differ from its preset, and a precision.
"""

from collections.abc import Mapping
from operator import attrgetter

import numpy as np
import pandas as pd

from kdnb.losses import METHODS
from kdnb.results.frame import LABELS_ONLY, or_warn
from kdnb.results.grouping import disambiguate, drop_duplicate_seeds
from kdnb.results.order import method_order
from kdnb.runs.folder import RunFolder
from kdnb.runs.run import Run

ROLES = ["teacher", "baseline", "distilled"]  # in the order of their styles in plots
MAX_LINES = 35  # of one picture, as there are styles
CURVE_COLUMNS = ("epoch", "test_top1", "lr", "seconds")


def curves_by_protocol(runs: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """{title: a row per epoch of each run} for every picture."""
    return {title: epoch_rows(part) for title, part in split_by_student(runs).items()}


def epoch_rows(runs: pd.DataFrame) -> pd.DataFrame:
    """A row per epoch of each run: epoch, test_top1 (%), lr, spent (seconds so far).

    The run's columns are repeated.

    A run whose metrics.csv is damaged is left out, with a warning.
    """
    empty = dict.fromkeys(CURVE_COLUMNS, np.empty(0))
    folders = map(RunFolder, runs["folder"])
    tables = [or_warn("the curves", run.columns, CURVE_COLUMNS) or empty for run in folders]
    lengths = [len(table["epoch"]) for table in tables]
    rows = runs.iloc[np.repeat(np.arange(len(runs)), lengths)].reset_index(drop=True)
    columns = {
        "epoch": [table["epoch"] for table in tables],
        "test_top1": [table["test_top1"] for table in tables],
        "lr": [table["lr"] for table in tables],
        "spent": [table["seconds"].cumsum() for table in tables],
    }
    joined = {name: np.concatenate([np.empty(0), *parts]) for name, parts in columns.items()}
    return rows.assign(**joined).astype({"epoch": int})


def run_curves(runs: Mapping[str, RunFolder]) -> pd.DataFrame:
    """A row per epoch of each run in {role: run}."""
    rows = [
        {
            "line": role,
            "order": ROLES.index(role),
            "run": role,
            "folder": str(run.folder),
            "classes": len(run.config["classes"]),
        }
        for role, run in runs.items()
    ]
    columns = ["line", "order", "run", "folder", "classes"]
    return epoch_rows(pd.DataFrame(rows, columns=columns))


def style_number(method: str) -> int:
    """The number of a student's style in plots: roles first, then METHODS, then mixes."""
    numbers = {name: len(ROLES) + i for i, name in enumerate(METHODS)}
    numbers |= {"none": ROLES.index("baseline"), Run.method: ROLES.index("distilled")}
    return numbers.get(method, len(ROLES) + len(METHODS))


def group_by_protocol(runs: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """{title: the runs that may be drawn together}.

    Adds the columns that plots expect: line, what a legend calls a network and its method; order,
    the number of its style; and run, its folder. The lines have the order of the tables' rows.
    """
    protocol = ["dataset", "changed_values", "precision"]
    runs = drop_duplicate_seeds(runs)
    values = [
        ", ".join(f"{name} {value}" for name, (value, _) in overrides.items())
        for overrides in runs["override_values"]
    ]
    runs = runs.assign(
        run=runs["folder"], changed_values=pd.Series(values, runs.index, dtype=object)
    )
    has_other_images = runs.groupby(protocol)["data_hash"].transform("nunique") > 1
    runs["images"] = ("images " + runs["data_hash"]).where(has_other_images, "")
    groups = {}
    for (dataset, changed_values, precision, images), part in runs.groupby([*protocol, "images"]):
        is_baseline = part["method"] == "none"
        teacher = part["teacher"].str.partition(" ")[0]
        line = part["network"] + ", "
        line += (part["method"] + " from " + teacher).mask(is_baseline, LABELS_ONLY)
        line += (" (without " + part["left_out"] + ")").where(part["left_out"] != "", "")
        own_name = part["network"] + " (" + part["dataset"] + ")"
        is_teacher = is_baseline & own_name.isin(part["teacher"])
        order = part["method"].map(style_number).mask(is_teacher, ROLES.index("teacher"))
        position = pd.Series(method_order(part["method"]), part.index).mask(is_teacher, -1)
        part = part.assign(line=disambiguate(part, line), order=order, position=position)
        shown_precision = "" if precision == "float32" else precision
        title = ", ".join(filter(None, [dataset, changed_values, shown_precision, images]))
        part = part.sort_values(["position", "line", "seed"]).drop(columns="position")
        groups[title] = part
    return groups


def split_by_student(runs: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """`group_by_protocol`, with a group per student where a picture cannot hold all lines."""
    groups = {}
    for title, part in group_by_protocol(runs).items():
        if part["line"].nunique() <= MAX_LINES:
            groups[title] = part
            continue
        for student, rows in part.groupby("network"):
            groups[f"{title}, {student}"] = rows
    return groups


def links_by_protocol(runs: pd.DataFrame) -> dict[str, tuple]:
    """{title of a training: its `RunFolder.links_by_epoch`, mean over its seeds}."""
    links = {}
    for title, part in group_by_protocol(runs).items():
        for line, seeds in part.groupby("line", sort=False):
            folders = map(RunFolder, seeds["folder"])
            read = (
                or_warn("the links", attrgetter("links_by_epoch"), folder) for folder in folders
            )
            seeds_with_links = [links_of_seed for links_of_seed in read if links_of_seed]
            if not seeds_with_links:
                continue
            suffix = f", mean of {len(seeds_with_links)} seeds" if len(seeds_with_links) > 1 else ""
            mean = np.mean([attention for attention, *_ in seeds_with_links], axis=0)
            _, teacher_blocks, student_blocks = seeds_with_links[0]
            links[f"{title}, {line}{suffix}"] = mean, teacher_blocks, student_blocks
    return links
