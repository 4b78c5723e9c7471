"""Run folders -> one DataFrame, a row a finished run, and what plots draw of it; kdnb.tables makes the pages."""

import json
import warnings
from collections.abc import Callable, Mapping
from operator import attrgetter
from pathlib import Path

import numpy as np
import pandas as pd

from kdnb import parameters
from kdnb.errors import InputError, choose
from kdnb.losses import METHODS
from kdnb.paths import output_folder
from kdnb.run import Run
from kdnb.store import RunFolder, damaged, read_columns, write_atomically

COLUMNS = """
    folder dataset network teacher method mix seed top1 top5 best_top1 epochs changed teacher_changed left_out
    train_images test_images parameters teacher_parameters epoch_seconds total_seconds shared precision device torch
    commit classes changes data_id teacher_sha256
"""

ONLY = "labels only"  # how a network is trained that nobody teaches
ROLES = ["teacher", "baseline", "distilled"]  # in the order of their looks in plots
APART = {"mix": " ({})", "teacher_sha256": " (weights {:.4})", "train_images": " ({:,} images)"}


class Finished(RunFolder):
    def __init__(self, folder: str | Path):
        self.folder = Path(folder)


def from_notebook(namespace: Mapping) -> tuple[list[Path], Path]:
    """Where finished runs lie, and where the tables and figures made of them belong, given a notebook's `globals()`.

    source: "records", what is committed, whose tables stand in the outputs folder itself; "runs", what was run here,
    beside the records, whose tables stand with the runs. Raises InputError for another, or a folder that is not there.
    """
    given = {"outputs": "", "source": "runs"} | parameters.from_notebook(namespace, ("outputs", "source"))
    root = output_folder(parameters.checked("outputs", given["outputs"], ""))
    if not root.is_dir():
        raise InputError(f"outputs {str(root)!r}: no such folder")
    if choose("source", given["source"], ("records", "runs")) == "records":
        return [root / "records"], root
    return [root / "records", root / "runs"], root / "runs"


def frame(*places: str | Path) -> pd.DataFrame:
    """One row per finished run in these folders, by name; of two with one name, the one in the later folder.

    Accuracies in percent, times in seconds; `changes` {name: [value, the preset's]}, also as words in `changed`; that
    and `teacher_changed`, the same of its teacher, are empty for a full-length run. A damaged run is named in a warning
    and left out.
    """
    found = {path.parent.name: path.parent for place in places for path in Path(place).glob("*/result.json")}
    rows = []
    for name in sorted(found):
        try:
            rows.append(row(Finished(found[name])))
        except InputError as error:
            warnings.warn(f"left out: {error}", stacklevel=2)
    return pd.DataFrame(rows, columns=COLUMNS.split())


def row(run: RunFolder) -> dict[str, object]:
    """A finished run, for a table. Raises InputError if a file is missing or damaged."""
    config, result = run.config, run.result
    try:
        asked, teacher, machines = config["run"], config["teacher"] or {}, config["machines"]
        own = {n: both for n, both in config["changes"].items() if not n.startswith("teacher_")}  # told of by its own
        return {
            **{name: asked[name] for name in ("dataset", "seed", "epochs", "precision", "data_id")},
            **result,
            "folder": str(run.folder),
            "network": asked["student"],
            "teacher": f"{teacher['network']} ({teacher['dataset'] or teacher['weights']})" if teacher else "",
            "teacher_sha256": teacher.get("sha256", ""),
            "method": config["label"],
            "mix": asked["method"],
            "best_top1": result["best"]["top1"],
            "changes": own,
            "changed": words(own),
            "teacher_changed": of_teacher(own, teacher.get("changes") or {}),
            "left_out": ", ".join(config["left_out"]),
            "classes": len(config["classes"]),
            "shared": config.get("shared", False),
            "device": "; ".join(dict.fromkeys(machine["device"] for machine in machines)),
            "torch": machines[0]["versions"]["torch"],
            "commit": machines[0]["commit"],
        }
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise damaged(run.folder / "config.json", f"it lacks {error}") from None


def words(changes: Mapping[str, list]) -> str:
    """What was not as in the preset, for people."""
    spelt = {name: ["all" if v == -1 and "limit" in name else v for v in values] for name, values in changes.items()}
    return ", ".join(f"{name} {value} instead of {usual}" for name, (value, usual) in spelt.items())


def of_teacher(changes: Mapping[str, list], teachers: Mapping[str, list]) -> str:
    """What was not as in the preset in training the teacher of a student for which `changes` were not."""
    if not teachers:
        return ""
    values, others = ({name: value for name, (value, _) in its.items()} for its in (changes, teachers))
    return "its teacher likewise" if values == others else f"its teacher: {words(teachers)}"


def record(run: Run, outputs: Path | None = None) -> Path:
    """Copy a finished run's small files to records/ of its (or another) outputs folder: what is committed of it, all
    but weights. Raises InputError for a run that is not finished, or damaged."""
    target = (outputs or run.output_folder) / "records" / run.folder.name  # a later preset may call it otherwise
    row(run), run.metrics, run.links
    config = {name: value for name, value in run.config.items() if name != "where"}
    write_atomically(target / "config.json", json.dumps(config, indent=2))
    for name in ("metrics.csv", "history.npz", "result.json"):
        if (run.folder / name).is_file():
            write_atomically(target / name, (run.folder / name).read_bytes())
    return target


def whole(runs: pd.DataFrame) -> pd.Series:
    """Which runs of a frame followed their data set's preset to the end, as did their teachers."""
    return (runs["changed"] == "") & (runs["teacher_changed"] == "")


def curves(runs: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """{title: a row per epoch of each run} of what `lines` draws together: its columns, epoch, test_top1 (%), lr and
    spent (s since the start)."""
    out, empty = {}, np.empty(0)
    for title, part in lines(runs).items():
        read = [epochs(folder) for folder in part["folder"]]
        rows = part.iloc[np.repeat(np.arange(len(part)), [len(its["epoch"]) for its in read])].reset_index(drop=True)
        told = {n: np.concatenate([empty, *(its[n] for its in read)]) for n in ("epoch", "test_top1", "lr", "spent")}
        out[title] = rows.assign(**told).astype({"epoch": int})
    return out


def epochs(folder: str) -> dict[str, np.ndarray]:
    """What `curves` needs of a run's epochs; none, with a warning, if its file is damaged."""
    names = ("epoch", "test_top1", "seconds", "lr")
    told = or_warn("the curves", read_columns, Path(folder, "metrics.csv"), names) or dict.fromkeys(names, np.empty(0))
    return told | {"spent": told["seconds"].cumsum()}


def or_warn(where: str, read: Callable, *of):
    """What is read or, with a warning that it is left out there, None."""
    try:
        return read(*of)
    except InputError as error:
        warnings.warn(f"left out of {where}: {error}", stacklevel=3)


def run_curves(runs: Mapping[str, RunFolder]) -> pd.DataFrame:
    """The epochs of {role: run} as plots draw them."""
    rows = [
        run.metrics.assign(line=role, order=ROLES.index(role), run=run.name, classes=len(run.config["classes"]))
        for role, run in runs.items()
    ]
    return pd.concat(rows, ignore_index=True)


def look(method: str) -> int:
    """The number of a student's look in plots: by its method, of `ROLES`, then of METHODS, then one for mixes."""
    numbers = {name: len(ROLES) + i for i, name in enumerate(METHODS)} | {"none": 1, Run.method: 2}
    return numbers.get(method, len(ROLES) + len(METHODS))


def lines(runs: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The runs of a frame by what may be drawn together: {title: rows}, one data set, changed in one way.

    Adds the columns line, what a legend calls a network that was trained so, order, its `look`, and run, as plots
    expect them.
    """
    out, kind = {}, ["dataset", "own", "precision"]
    own = [", ".join(f"{name} {value}" for name, (value, _) in its.items()) for its in runs["changes"]]
    runs = runs.assign(run=runs["folder"], own=pd.Series(own, runs.index, dtype=object))
    other_images = runs.groupby(kind)["data_id"].transform("nunique") > 1
    runs["images"] = ("images " + runs["data_id"]).where(other_images, "")
    for key, part in runs.groupby([*kind, "images"]):
        teacher, alone = part["teacher"].str.partition(" ")[0], part["method"] == "none"
        line = part["network"] + ", " + (part["method"] + " from " + teacher).mask(alone, ONLY)
        line += (" (without " + part["left_out"] + ")").where(part["left_out"] != "", "")
        for column, told in APART.items():  # one name, several trainings
            several = part.groupby(line)[column].transform("nunique") > 1
            line += part[column].map(told.format).where(several, "")
        order, itself = part["method"].map(look), part["network"] + " (" + part["dataset"] + ")"
        part = part.assign(line=line, order=order.mask(alone & itself.isin(part["teacher"]), 0))  # 0: one that teaches
        title = ", ".join(filter(None, [key[0], key[1], key[2] * (key[2] != "float32"), key[3]]))
        out[title] = part.sort_values(["order", "line", "seed"])
    return out


def links(runs: pd.DataFrame) -> dict[str, tuple]:
    """{what was trained: its links, see RunFolder, as the mean over its seeds} of what in a frame linked blocks."""
    out = {}
    for title, part in lines(runs).items():
        for line, alike in part.groupby("line", sort=False):
            kept = [
                (run, or_warn("the links", attrgetter("link_means"), run)) for run in map(Finished, alike["folder"])
            ]
            found = {run: means for run, means in kept if means is not None}  # 10,000 runs: blocks of the first alone
            if first := next((told for run in found if (told := or_warn("the links", attrgetter("links"), run))), None):
                seeds = f", mean of {len(found)} seeds" if len(found) > 1 else ""
                out[f"{title}, {line}{seeds}"] = np.mean([*found.values()], axis=0), *first[1:]
    return out
