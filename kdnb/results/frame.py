"""Finished runs as one pandas DataFrame, a row per run; kdnb.results.tables makes pages of it."""

import hashlib
import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from pathlib import Path

import pandas as pd

from kdnb.data import DATASETS, Preset
from kdnb.errors import InputError, choose
from kdnb.paths import output_folder
from kdnb.results.grouping import describe_baselines_as_students
from kdnb.results.teachers import group_teachers
from kdnb.runs import code, parameters
from kdnb.runs.files import damaged, read_if_there
from kdnb.runs.folder import RunFolder
from kdnb.runs.identity import WITHOUT_EFFECT, describe_overrides, training_facts
from kdnb.runs.plugins import load_plugins
from kdnb.runs.run import Run

COLUMNS = [
    "folder",
    "origin",
    "dataset",
    "network",
    "teacher",
    "method",
    "mix",
    "seed",
    "top1",
    "top5",
    "best_top1",
    "epochs",
    "overrides",
    "teacher_overrides",
    "left_out",
    "train_images",
    "unlabelled_images",
    "test_images",
    "parameters",
    "teacher_parameters",
    "epoch_seconds",
    "total_seconds",
    "shared",
    "precision",
    "device",
    "torch",
    "commit",
    "classes",
    "same_classes_assumed",
    "override_values",
    "recipe",
    "data_hash",
    "decoding",
    "teacher_sha256",
    "code",
    "teacher_seed",
    "teacher_is_trained",
    "teacher_group",
]

MINE, RECORDS = "mine", "records"  # the values of `origin`
LABELS_ONLY = "labels only"  # in tables and legends, a network that has no teacher
# Fields of a run that say how it is taught. The others are the recipe that it shares with its
# baseline.
TEACHING = ("method", "teacher", "teacher_seed", "teacher_epochs", "teacher_weights_hash", "seed")


def from_notebook(namespace: Mapping) -> tuple[list[Path], Path]:
    """The folders of finished runs, and the folder for tables and figures.

    namespace: a notebook's `globals()`.

    The parameter `source` is "mine", the runs of this machine; "records", the committed runs; or
    "both". The tables of the records are in the outputs folder itself, others in outputs/runs.
    Raises InputError for another source, and for a missing folder.
    """
    given = parameters.from_notebook(namespace, ("outputs", "source", "plugins"))
    load_plugins(parameters.check("plugins", given.get("plugins", ""), ""))
    root = output_folder(parameters.check("outputs", given.get("outputs", ""), ""))
    if not root.is_dir():
        raise InputError(f"outputs {str(root)!r}: no such folder")
    source = choose("source", given.get("source", "mine"), ("mine", "records", "both"))
    places = {"mine": ["runs"], "records": ["records"], "both": ["records", "runs"]}[source]
    return [root / place for place in places], root if source == "records" else root / "runs"


def load_frame(*places: str | Path) -> pd.DataFrame:
    """The finished runs in some folders, a row each, sorted by name.

    `origin` is "records" for a run in a folder of this name, and "mine" for every other one. A run
    and the record that was made of it have the same result.json: the record counts. A damaged run
    is left out, with a warning. Accuracies are in percent, times in seconds; `train_images` are
    those with a label.
    `override_values` is {field: [value, the preset's]}; `overrides` says the same in words and is
    empty for a run that follows its preset, as is `teacher_overrides` for its teacher.
    """
    folders = {}
    for place in map(Path, places):
        for folder in place.glob("*"):
            content = or_warn("the tables", read_if_there, folder / "result.json")
            if content is not None:
                folders.setdefault((folder.name, content), folder)
    # Records come first: of runs that are the same training otherwise, it is the first that counts.
    ordered = sorted(folders.values(), key=lambda path: (path.name, origin(path) == MINE))
    rows = (or_warn("the tables", run_row, RunFolder(folder)) for folder in ordered)
    frame = pd.DataFrame([row for row in rows if row], columns=COLUMNS)
    return group_teachers(describe_baselines_as_students(frame))


def origin(folder: Path) -> str:
    """Where a run's folder is from: "records", or "mine"."""
    return RECORDS if folder.parent.name == RECORDS else MINE


def run_row(run: RunFolder) -> dict[str, object]:
    """The row of a finished run. Raises InputError if a file is missing or damaged."""
    config, result = run.config, run.result
    try:
        stored, teacher, machines = config["run"], config["teacher"] or {}, config["machines"]
        check_types(stored)
        overrides = row_overrides(config, result)
        is_assumed = bool(config.get("same_classes_assumed")) and not teacher.get("dataset")
        return {
            **{name: stored[name] for name in ("dataset", "seed", "epochs", "precision")},
            "unlabelled_images": 0,  # in runs of before there were any
            **result,
            "folder": str(run.folder),
            "origin": origin(run.folder),
            "network": stored["student"],
            "teacher": teacher_name(teacher, stored["dataset"] if is_assumed else ""),
            "teacher_sha256": teacher.get("sha256", ""),
            "teacher_group": teacher.get("sha256", ""),
            "teacher_seed": stored.get("teacher_seed", 0),
            "teacher_is_trained": stored.get("teacher_weights_hash") == "trained",
            "same_classes_assumed": is_assumed,
            "method": config["label"],
            "mix": stored["method"],
            "best_top1": result["best"]["top1"],
            "override_values": overrides,
            "overrides": describe_overrides(overrides),
            "teacher_overrides": describe_teacher(overrides, teacher.get("overrides") or {}),
            "recipe": recipe(config),
            "data_hash": data_hash(config),
            "decoding": config.get("decoding", 1),
            "left_out": ", ".join(config["left_out"]),
            "code": code.describe(config.get("code", {})),
            "classes": len(config["classes"]),
            "shared": config.get("shared", False) or any("together" in each for each in machines),
            "device": join_unique(machine["device"] for machine in machines),
            "torch": join_unique(machine["versions"]["torch"] for machine in machines),
            "commit": join_unique(machine["commit"] for machine in machines),
        }
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise damaged(run.folder / "config.json", f"it lacks {error}") from None


def check_types(stored: dict) -> None:
    """Raises TypeError if a field of a run in config.json has another type than it should."""
    for field in fields(Run):
        kind = type(field.default)
        value = stored.get(field.name, field.default)
        if not isinstance(value, (int, float) if kind is float else kind):
            raise TypeError(f"a {field.name} that is no {kind.__name__}")


def data_hash(config: dict) -> str:
    """The digest of a run's photographs, other ones if some could not be decoded."""
    digest = config["run"]["data_hash"]
    if damaged_images := config.get("damaged_images"):
        text = json.dumps([digest, damaged_images])
        return hashlib.sha256(text.encode()).hexdigest()[:8]
    return digest


def row_overrides(config: dict, result: dict) -> dict[str, list]:
    """The overrides of a run, without its teacher's; a smaller test set counts as one."""
    overrides = {
        name: values
        for name, values in config["overrides"].items()
        if not name.startswith("teacher_")
    }
    dataset = DATASETS.get(config["run"]["dataset"])
    official = dataset.test_images if dataset else 0
    has_reason = config["run"].get("validation") or config["run"].get("test_limit")
    if official and official != result["test_images"] and not has_reason:
        overrides["test_images"] = [result["test_images"], official]
    return overrides


def teacher_name(teacher: dict, assumed_dataset: str) -> str:
    """A teacher's network and its data set, or its weights file if that is not known."""
    if not teacher:
        return ""
    return f"{teacher['network']} ({teacher['dataset'] or assumed_dataset or teacher['weights']})"


def describe_teacher(overrides: Mapping[str, list], teacher_overrides: Mapping[str, list]) -> str:
    """The overrides of a teacher's training in words, given those of its student."""
    if not teacher_overrides:
        return ""
    values, teacher_values = (
        {name: value for name, (value, _) in each.items()}
        for each in (overrides, teacher_overrides)
    )
    if values == teacher_values:
        return "its teacher likewise"
    return f"its teacher: {describe_overrides(teacher_overrides)}"


def recipe(config: dict) -> str:
    """What a run shares with its baseline, as JSON: all that decides its weights but the teacher.

    The seed is no part of it either. Fields and preset entries that a run was stored without have
    their defaults.
    """
    step_fields = [f for f in fields(Preset) if f.name not in WITHOUT_EFFECT]
    defaults = {f.name: f.default for f in fields(Run) if f.compare}
    # A run's field of the same name, such as momentum, has no value before its preset is known.
    defaults |= {f.name: f.default for f in step_fields if f.default is not MISSING}
    facts = defaults | training_facts(config)
    shared = {name: value for name, value in facts.items() if name not in TEACHING}
    own_code = (f"network {shared['student']}", f"data set {shared['dataset']}")
    stored = config.get("code", {})
    shared["code"] = code.describe({name: stored[name] for name in own_code if name in stored})
    return json.dumps(shared, default=list, sort_keys=True)


def join_unique(values) -> str:
    return "; ".join(dict.fromkeys(values))


def or_warn(where: str, read: Callable, *arguments):
    """What `read` returns; None, with a warning that `where` lacks it, for a damaged file."""
    try:
        return read(*arguments)
    except InputError as error:
        warnings.warn(f"left out of {where}: {error}", stacklevel=3)
        return None
