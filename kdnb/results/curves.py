"""What plots draw of the runs of a frame: learning curves and links, by what may be drawn together."""

from collections.abc import Mapping
from operator import attrgetter
from pathlib import Path

import numpy as np
import pandas as pd

from kdnb.losses import METHODS
from kdnb.results.frame import ONLY, once, or_warn, told_apart
from kdnb.runs.folder import RunFolder, read_columns
from kdnb.runs.run import Run

ROLES = ["teacher", "baseline", "distilled"]  # in the order of their looks in plots
MOST = 35  # lines in one picture, as there are looks


def curves_by_protocol(runs: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """{title: the epochs} of each of the `pictures`."""
    return {title: epochs(part) for title, part in pictures(runs).items()}


def epochs(runs: pd.DataFrame) -> pd.DataFrame:
    """A row per epoch of each run: the run's columns, epoch, test_top1 (%), lr and spent (s since the start).

    None of a run whose file is damaged, with a warning.
    """
    names, empty = ("epoch", "test_top1", "lr", "seconds"), np.empty(0)
    read = [
        or_warn("the curves", read_columns, Path(folder, "metrics.csv"), names)
        for folder in runs["folder"]
    ]
    read = [its or dict.fromkeys(names, empty) for its in read]
    rows = runs.iloc[
        np.repeat(np.arange(len(runs)), [len(its["epoch"]) for its in read])
    ].reset_index(drop=True)
    told = {name: np.concatenate([empty, *(its[name] for its in read)]) for name in names[:3]}
    spent = np.concatenate([empty, *(its["seconds"].cumsum() for its in read)])
    return rows.assign(**told, spent=spent).astype({"epoch": int})


def run_curves(runs: Mapping[str, RunFolder]) -> pd.DataFrame:
    """The `epochs` of {role: run}."""
    rows = [
        (role, ROLES.index(role), str(run.folder), len(run.config["classes"]))
        for role, run in runs.items()
    ]
    return epochs(
        pd.DataFrame(rows, columns=["line", "order", "folder", "classes"]).assign(run=list(runs))
    )


def look(method: str) -> int:
    """The number of a student's look in plots: by its method, of `ROLES`, then of METHODS, then one for mixes."""
    numbers = {name: len(ROLES) + i for i, name in enumerate(METHODS)} | {"none": 1, Run.method: 2}
    return numbers.get(method, len(ROLES) + len(METHODS))


def lines(runs: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The runs of a frame by what may be drawn together: {title: rows}, one data set, changed in one way.

    Adds the columns line, what a legend calls a network that was trained so, order, its `look`, and run, as plots
    expect them.
    """
    out, kind, runs = {}, ["dataset", "own", "precision"], once(runs)
    own = [
        ", ".join(f"{name} {value}" for name, (value, _) in its.items()) for its in runs["changes"]
    ]
    runs = runs.assign(run=runs["folder"], own=pd.Series(own, runs.index, dtype=object))
    other_images = runs.groupby(kind)["data_id"].transform("nunique") > 1
    runs["images"] = ("images " + runs["data_id"]).where(other_images, "")
    for key, part in runs.groupby([*kind, "images"]):
        teacher, alone = part["teacher"].str.partition(" ")[0], part["method"] == "none"
        line = part["network"] + ", " + (part["method"] + " from " + teacher).mask(alone, ONLY)
        line += (" (without " + part["left_out"] + ")").where(part["left_out"] != "", "")
        teaches = alone & (part["network"] + " (" + part["dataset"] + ")").isin(part["teacher"])
        part = part.assign(
            line=told_apart(part, line), order=part["method"].map(look).mask(teaches, 0)
        )
        title = ", ".join(filter(None, [key[0], key[1], key[2] * (key[2] != "float32"), key[3]]))
        out[title] = part.sort_values(["order", "line", "seed"])
    return out


def pictures(runs: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """What `lines` may draw together; of more than `MOST` lines a picture for each network that was trained."""
    out = {}
    for title, part in lines(runs).items():
        many = part["line"].nunique() > MOST
        out |= (
            {f"{title}, {name}": its for name, its in part.groupby("network")}
            if many
            else {title: part}
        )
    return out


def links_by_protocol(runs: pd.DataFrame) -> dict[str, tuple]:
    """{what was trained: its links, see RunFolder, as the mean over its seeds} of what in a frame linked blocks."""
    out = {}
    for title, part in lines(runs).items():
        for line, alike in part.groupby("line", sort=False):
            read = (
                or_warn("the links", attrgetter("links"), run)
                for run in map(RunFolder, alike["folder"])
            )
            if found := [links for links in read if links]:
                seeds = f", mean of {len(found)} seeds" if len(found) > 1 else ""
                out[f"{title}, {line}{seeds}"] = (
                    np.mean([means for means, *_ in found], axis=0),
                    *found[0][1:],
                )
    return out
