"""Run folders -> one tidy table; the published numbers; a table -> Markdown. kdnb.tables makes the pages of them."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from kdnb.errors import InputError
from kdnb.parameters import injected, project_root
from kdnb.recipes import RECIPES
from kdnb.runs import Run, write_atomically

__all__ = [
    "DEFAULTS",
    "PUBLISHED",
    "SOURCES",
    "curves",
    "gather",
    "markdown",
    "network_table",
    "output_folder",
    "record",
    "save_table",
    "tidy",
    "trained_with",
]


class Cited(NamedTuple):
    """A number that was not measured here. top1 in percent; runs, epochs, seconds (per epoch): None if not told."""

    dataset: str
    network: str
    teacher: str  # as `tidy` writes it; "": none
    kind: str  # plain, kd, afd or another method
    top1: float
    runs: int | None
    epochs: int | None
    seconds: float | None
    source: str  # a key of SOURCES


SOURCES = {
    "Ji 2021": "M. Ji, B. Heo, S. Park, Show, Attend and Distill: Knowledge Distillation via Attention-based Feature "
    "Matching, AAAI 2021, arXiv 2102.02973; mean of 5 runs",
    "Tian 2020": "Y. Tian, D. Krishnan, P. Isola, Contrastive Representation Distillation, ICLR 2020, "
    "arXiv 1910.10699, and its benchmark RepDistiller",
    "literature": "mean of 5 runs of a ResNet-18 from scratch, as the literature reports it",
    "earlier study": "the study that is redone here, one run each: CIFAR-100 240 epochs, 60 s an epoch; Stanford 40 "
    "with WRN-16-2 65 epochs of batch 46, 164 s an epoch, with ResNet-18 159 epochs of batch 100, 67 s an epoch",
}
_C = ("cifar100", "wrn_16_2", "wrn_40_2 (cifar100)")
PUBLISHED = (
    Cited("cifar100", "wrn_40_2", "", "plain", 76.20, 5, 240, None, "Ji 2021"),
    Cited("cifar100", "wrn_16_2", "", "plain", 72.89, 5, 240, None, "Ji 2021"),
    Cited(*_C, "afd", 75.47, 5, 240, None, "Ji 2021"),
    Cited("cifar100", "wrn_40_2", "", "plain", 75.61, None, None, None, "Tian 2020"),
    Cited("cifar100", "wrn_16_2", "", "plain", 73.26, None, None, None, "Tian 2020"),
    Cited(*_C, "kd", 74.92, None, None, None, "Tian 2020"),
    Cited(*_C, "fitnet", 73.58, None, None, None, "Tian 2020"),
    Cited(*_C, "at", 74.08, None, None, None, "Tian 2020"),
    Cited(*_C, "crd", 75.48, None, None, None, "Tian 2020"),
    Cited("cifar100", "wrn_40_2", "", "plain", 76.20, 1, 240, None, "earlier study"),
    Cited("cifar100", "wrn_16_2", "", "plain", 72.89, 1, 240, None, "earlier study"),
    Cited(*_C, "afd", 75.56, 1, 240, 60.0, "earlier study"),
    Cited("stanford40", "resnet18", "", "plain", 36.93, 5, None, None, "literature"),
    Cited("stanford40", "resnet18", "resnet34 (imagenet)", "afd", 74.06, 1, 159, 67.0, "earlier study"),
    Cited("stanford40", "wrn_16_2", "wrn_40_2 (cifar100)", "afd", 27.13, 1, 65, 164.0, "earlier study"),
)
# What distills when nobody asks for something else; a test holds them equal to distill.ipynb's.
DEFAULTS = {"alpha": 0.9, "beta": 200.0, "temperature": 4.0, "qk_dim": 128}


def gather(*folders: str | Path) -> list[Run]:
    """The finished runs in `folders`, by name; of two with one name, the one in the later folder.

    A damaged result.json is named in a warning and its run left out.
    """
    found = {}
    for path in (path for folder in folders for path in sorted(Path(folder).glob("*/result.json"))):
        run = Run(path.parent)
        try:
            facts(run)
        except InputError as error:
            warnings.warn(f"left out: {error}", stacklevel=2)
        else:
            found[run.name] = run
    return [found[name] for name in sorted(found)]


def record(run: Run, folder: str | Path) -> Run:
    """Copy a finished run's small files into `folder`, outputs/records: what is committed of it, all but weights."""
    facts(run)
    for name in ("config.json", "metrics.csv", "attention.npz", "result.json"):
        if (run.folder / name).is_file():
            write_atomically(Path(folder) / run.name / name, (run.folder / name).read_bytes())
    return Run(Path(folder) / run.name)


def tidy(runs: Iterable[Run]) -> pd.DataFrame:
    """One row per finished run, with the columns of `Facts`. Raises InputError for a run whose result is damaged."""
    return pd.DataFrame([facts(run) for run in runs], columns=list(Facts._fields))


class Facts(NamedTuple):
    """What result.json says, in one line. Accuracies in percent, times in seconds."""

    folder: str
    dataset: str
    network: str
    teacher: str  # "wrn_40_2 (cifar100)": the network, and what it was trained on; "": none
    method: str  # plain, kd, kd+afd ...
    kind: str  # plain, kd, afd: the method as the study asks for it
    seed: int
    epochs: int
    train_images: int
    top1: float
    top5: float
    best_top1: float
    epoch_seconds: float
    total_seconds: float
    parameters: int
    teacher_parameters: int | None
    device: str
    precision: str
    torch: str
    commit: str
    teacher_sha256: str
    left_out: str
    changed: str  # what is not as in the study's own recipe, in words; "": a full-length run
    short: bool  # fewer epochs or images than the recipe's


def facts(run: Run) -> Facts:
    """The result of a finished run. Raises InputError that names the file if it is damaged or lacks something."""
    try:
        r = run.result
        changed, short = differences(r)
        out = Facts(
            folder=str(run.folder),
            dataset=str(r["dataset"]),
            network=str(r["model"]),
            teacher=teacher_label(r),
            method=r["method"],
            kind="afd" if "afd" in r["method"].split("+") else r["method"],
            seed=int(r["seed"]),
            epochs=int(r["recipe"]["epochs"]),
            train_images=int(r["train_images"]),
            top1=float(r["top1"]),
            top5=float(r["top5"]),
            best_top1=float(r["best"]["top1"]),
            epoch_seconds=float(r["epoch_seconds"]),
            total_seconds=float(r["total_seconds"]),
            parameters=int(r["parameters"]),
            teacher_parameters=r["teacher_parameters"],
            device=str(r["device"]),
            precision=str(r["precision"]),
            torch=str(r["versions"]["torch"]),
            commit=str(r["commit"]),
            teacher_sha256=r.get("teacher_weights", {}).get("sha256", ""),
            left_out="; ".join(r.get("left_out", [])),
            changed=changed,
            short=short,
        )
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, OSError) as error:
        what = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        raise InputError(f"{run.folder / 'result.json'} is damaged ({what}): delete it, or the folder") from None
    if not all(0 <= value <= 100.001 for value in (out.top1, out.top5, out.best_top1)):
        raise InputError(f"{run.folder / 'result.json'} is damaged (an accuracy is not between 0 and 100 %): delete it")
    return out


def teacher_label(result: Mapping) -> str:
    """ "wrn_40_2 (cifar100)", "resnet34 (imagenet)": a teacher of other origin is another experiment."""
    if not result["recipe"]["teacher"]:
        return ""
    name, origin = result["recipe"]["teacher"], result["teacher_weights"]["from"]
    for dataset in RECIPES:  # the study's own teachers; a shortened one says how
        own = f"{dataset}-{name}-plain-"
        if origin == f"teachers/{name}-{dataset}.safetensors" or origin.startswith(f"{own}seed="):
            return f"{name} ({dataset})"
        if origin.startswith(own):
            return f"{name} ({dataset}, {origin.removeprefix(own).removesuffix('/student.safetensors')})"
    return f"{name} ({origin})"


def differences(result: Mapping) -> tuple[str, bool]:
    """What a run did not do as the study's recipe and defaults say, in words; and whether it was shortened by that."""
    ran, words = result["recipe"], []
    own = json.loads(json.dumps(asdict(RECIPES[result["dataset"]]))) if result["dataset"] in RECIPES else {}
    for name in own:  # the networks are named in the row; entries that the run is too old to know were as they are
        if name not in ("dataset", "teacher", "student") and name in ran and ran[name] != own[name]:
            words.append(f"{name} {ran[name]} instead of {own[name]}")
    if result["train_limit"]:
        words.append(f"{result['train_limit']} training images instead of all")
    parts = result["method"].split("+")
    if "kd" in parts or "afd" in parts:
        given = {"alpha": result["losses"].get("kd", 0.0), "beta": result["losses"].get("afd", 0.0)}
        given |= {name: result[name] for name in ("temperature", "qk_dim")}
        meant = DEFAULTS | ({"beta": 0.0} if "afd" not in parts else {})
        if any(sentence.startswith("kd ") for sentence in result.get("left_out", [])):
            meant["alpha"] = 0.0
        words += [f"{name} {given[name]:g} instead of {meant[name]:g}" for name in meant if given[name] != meant[name]]
    short = bool(result["train_limit"]) or ran["epochs"] < own.get("epochs", 0)
    return "; ".join(words), short


def trained_with(method: str) -> str:
    """ "kd+afd" -> "labels, kd, afd"."""
    return "labels" if method == "plain" else f"labels, {method.replace('+', ', ')}"


def network_table(runs: Iterable[Run]) -> pd.DataFrame:
    """One row per finished run: what it was, its accuracy after the last and the best epoch, its cost, its machine."""
    table = tidy(runs)
    if table.empty:
        raise InputError("no finished run to make a table of")
    table["method"] = table["method"].map(trained_with)
    names = {
        "dataset": "data set",
        "network": "network",
        "method": "trained with",
        "teacher": "teacher",
        "seed": "seed",
        "epochs": "epochs",
        "train_images": "training images",
        "top1": "top-1 (%)",
        "top5": "top-5 (%)",
        "best_top1": "best top-1 (%)",
        "epoch_seconds": "s/epoch",
        "parameters": "parameters",
        "device": "device",
        "precision": "precision",
        "torch": "torch",
        "commit": "commit",
    }
    return table[list(names)].rename(columns=names).round(2)


def curves(table: pd.DataFrame) -> pd.DataFrame:
    """One row per epoch of each run in a tidy `table`: its columns, epoch, test_top1 (%) and spent (s since the start).

    A run without a readable metrics.csv is named in a warning and left out.
    """
    parts = []
    for row in table.to_dict("records"):
        try:
            metrics = Run(row["folder"]).metrics
            told = metrics[["epoch", "test_top1"]].astype(float).assign(spent=metrics["seconds"].astype(float).cumsum())
        except (InputError, KeyError, TypeError, ValueError, OSError) as error:
            warnings.warn(f"left out of the curves: {row['folder']}, its metrics.csv: {error}", stacklevel=2)
        else:
            parts.append(told.assign(**row))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=["epoch", "test_top1", "spent"])


# Markdown


def markdown(table: pd.DataFrame) -> str:
    """A Markdown table: numbers to two decimals, whole ones with thousands apart, nothing for what is missing."""

    def cell(value) -> str:
        if isinstance(value, float):
            return "" if pd.isna(value) else f"{value:.2f}"
        text = f"{value:,}" if isinstance(value, int) else str(value)
        return text.replace("|", "\\|").replace("\n", " ")

    lines = [list(table.columns), ["---:" if pd.api.types.is_numeric_dtype(t) else "---" for t in table.dtypes]]
    lines += [[cell(v) for v in row] for row in table.astype(object).itertuples(index=False)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def save_table(table: pd.DataFrame, path: str | Path) -> Path:
    """Keep the table as Markdown, atomically."""
    write_atomically(Path(path), markdown(table))
    return Path(path)


def output_folder(namespace: Mapping) -> Path:
    """The folder that results.ipynb gathers from and writes to, given its `globals()`.

    Raises InputError for a folder that does not exist, and for a parameter that the notebook does not have.
    """
    for unknown in injected(namespace.get("In", [])) - {"outputs"}:
        raise InputError(f"unknown parameter {unknown!r}: choose from outputs")
    outputs = namespace["outputs"]
    if not isinstance(outputs, str):
        raise InputError(f"outputs is {outputs!r}: it must be text")
    folder = Path(outputs).expanduser() if outputs else project_root() / "outputs"
    if outputs and not folder.is_dir():
        raise InputError(f"outputs {outputs!r}: no such folder")
    return folder
