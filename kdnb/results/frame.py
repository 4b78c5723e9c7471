"""Run folders -> one DataFrame, a row a finished run; kdnb.results.tables makes the pages."""

import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import pandas as pd

from kdnb.data import DATASETS
from kdnb.errors import InputError, choose
from kdnb.paths import output_folder
from kdnb.runs import parameters
from kdnb.runs.folder import RunFolder, damaged, write_atomically

COLUMNS = """
    folder dataset network teacher method mix seed top1 top5 best_top1 epochs changed teacher_changed left_out
    train_images test_images parameters teacher_parameters epoch_seconds total_seconds shared precision device torch
    commit classes changes data_id teacher_sha256
"""

ONLY = "labels only"  # how a network is trained that nobody teaches
KEY = ["dataset", "network", "method", "teacher"]  # what a citation and a run have in common
APART = {
    "mix": " ({})",
    "precision": " ({})",
    "teacher_sha256": " (weights {:.4})",
    "data_id": " (images {:.4})",
}
APART |= {
    "train_images": " ({:,} images)"
}  # what also tells trainings apart that one name stands for
TRAINING = [
    *KEY,
    "left_out",
    "changed",
    "teacher_changed",
    *APART,
]  # what runs that may be averaged have in common


def from_notebook(namespace: Mapping) -> tuple[list[Path], Path]:
    """Where finished runs lie, and where the tables and figures made of them belong, given a notebook's `globals()`.

    source: "records", what is committed, whose tables stand in the outputs folder itself; "runs", what was run here,
    beside the records, whose tables stand with the runs. Raises InputError for another, or a folder that is not there.
    """
    given = {"outputs": "", "source": "runs"} | parameters.from_notebook(
        namespace, ("outputs", "source")
    )
    root = output_folder(parameters.checked("outputs", given["outputs"], ""))
    if not root.is_dir():
        raise InputError(f"outputs {str(root)!r}: no such folder")
    if choose("source", given["source"], ("records", "runs")) == "records":
        return [root / "records"], root
    return [root / "records", root / "runs"], root / "runs"


def load_frame(*places: str | Path) -> pd.DataFrame:
    """One row per finished run in these folders, by name; of two with one name, the one in the later folder.

    Accuracies in percent, times in seconds; `changes` {name: [value, the preset's]}, also as words in `changed`; that
    and `teacher_changed`, the same of its teacher, are empty for a full-length run. A damaged run is named in a warning
    and left out.
    """
    found = {
        path.parent.name: path.parent
        for place in places
        for path in Path(place).glob("*/result.json")
    }
    rows = []
    for name in sorted(found):
        try:
            rows.append(row(RunFolder(found[name])))
        except InputError as error:
            warnings.warn(f"left out: {error}", stacklevel=2)
    return pd.DataFrame(rows, columns=COLUMNS.split())


def row(run: RunFolder) -> dict[str, object]:
    """A finished run, for a table. Raises InputError if a file is missing or damaged."""
    config, result = run.config, run.result
    try:
        asked, teacher, machines = config["run"], config["teacher"] or {}, config["machines"]
        own = {
            n: both for n, both in config["changes"].items() if not n.startswith("teacher_")
        }  # told of by its own
        count, official = (
            result["test_images"],
            getattr(DATASETS.get(asked["dataset"]), "test_images", 0),
        )
        if official not in (0, count) and not asked.get(
            "validation"
        ):  # a tree of one's own in the same layout
            own["test_images"] = [count, official]
        return {
            **{name: asked[name] for name in ("dataset", "seed", "epochs", "precision", "data_id")},
            **result,
            "folder": str(run.folder),
            "network": asked["student"],
            "teacher": f"{teacher['network']} ({teacher['dataset'] or teacher['weights']})"
            if teacher
            else "",
            "teacher_sha256": teacher.get("sha256", ""),
            "method": config["label"],
            "mix": asked["method"],
            "best_top1": result["best"]["top1"],
            "changes": own,
            "changed": parameters.words(own),
            "teacher_changed": of_teacher(own, teacher.get("changes") or {}),
            "left_out": ", ".join(config["left_out"]),
            "classes": len(config["classes"]),
            "shared": config.get("shared", False),
            "device": "; ".join(dict.fromkeys(machine["device"] for machine in machines)),
            "torch": "; ".join(dict.fromkeys(machine["versions"]["torch"] for machine in machines)),
            "commit": "; ".join(dict.fromkeys(machine["commit"] for machine in machines)),
        }
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise damaged(run.folder / "config.json", f"it lacks {error}") from None


def of_teacher(changes: Mapping[str, list], teachers: Mapping[str, list]) -> str:
    """What was not as in the preset in training the teacher of a student for which `changes` were not."""
    if not teachers:
        return ""
    values, others = (
        {name: value for name, (value, _) in its.items()} for its in (changes, teachers)
    )
    return (
        "its teacher likewise" if values == others else f"its teacher: {parameters.words(teachers)}"
    )


def record(run: RunFolder, outputs: Path) -> Path:
    """Copy a finished run's small files to records/ of an outputs folder: what is committed of it, all but weights.
    Raises InputError for a run that is not finished, or damaged."""
    target = outputs / "records" / run.folder.name  # a later preset may call it otherwise
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


def once(runs: pd.DataFrame) -> pd.DataFrame:
    """Each seed of a training once: its teacher may have been trained, or be the same from a file."""
    return runs.sort_values("seed", kind="stable").drop_duplicates([*TRAINING, "seed"])


def told_apart(runs: pd.DataFrame, name: pd.Series) -> pd.Series:
    """A name for each run, longer where it would stand for several trainings."""
    for column, told in APART.items():
        several = runs.groupby(name)[column].transform("nunique") > 1
        name = name + runs[column].map(told.format).where(several, "")
    return name


def or_warn(where: str, read: Callable, *of):
    """What is read or, with a warning that it is left out there, None."""
    try:
        return read(*of)
    except InputError as error:
        warnings.warn(f"left out of {where}: {error}", stacklevel=3)
