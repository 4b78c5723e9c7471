"""The study's Markdown tables: finished runs and published results."""

from collections.abc import Mapping
from html import escape
from pathlib import Path

import pandas as pd

from kdnb.progress import percent
from kdnb.results.differences import paired
from kdnb.results.frame import LABELS_ONLY, run_row, teacher_name
from kdnb.results.grouping import (
    CITATION_KEY,
    TRAINING_KEY,
    disambiguate,
    drop_duplicate_seeds,
    is_full_recipe,
)
from kdnb.results.intervals import interval, mean_sd
from kdnb.results.order import method_order, with_dataset_order
from kdnb.results.published import QUOTED, as_cited, preset_differences, read_published
from kdnb.results.teachers import top1_cell
from kdnb.runs.folder import RunFolder

TOP1, GAIN, REMARK = "top-1 (%)", "gain over labels only", "remark"
ORIGIN = "runs"  # the column that tells one's own runs from records, where there are both

# What a page calls the columns of CITATION_KEY, and the columns of the shorter tables.
KEY_NAMES = ["data set", "network", "trained with", "teacher"]
MAIN_COLUMNS = [*KEY_NAMES, ORIGIN, TOP1, "seeds", GAIN, REMARK, QUOTED]

# {column that rows are sorted by: whether ascending}
ROW_ORDER = {
    "dataset_order": True,
    "overrides": True,
    "has_teacher": True,
    "network": False,
    "method_order": True,
    "method": True,
    "origin": False,  # records, then mine
}
PROVENANCE_COLUMNS = [
    "origin",
    "overrides",
    "teacher_overrides",
    "precision",
    "device",
    "torch",
    "commit",
]
NETWORK_COLUMNS = [
    "network",
    "method",
    "teacher",
    "epochs",
    "train_images",
    "top1",
    "top5",
    "best_top1",
    "epoch_seconds",
    "parameters",
    "device",
    "precision",
]


def gain(seeds: pd.DataFrame, runs: pd.DataFrame) -> tuple[str, str]:
    """The mean difference to training on labels alone, with its interval; and a remark on it.

    The difference is taken seed by seed: runs of a seed and a recipe share initial weights and
    batches. It is "" with fewer than two such pairs; the remark says where a seed has no pair.
    seeds: the rows of one training; runs: among which its baselines are.
    """
    if seeds["method"].iloc[0] == "none":
        return "", ""
    differences = paired(seeds, runs[runs["method"] == "none"])
    if len(differences) < 2:
        return "", ""
    n_seeds = seeds["seed"].nunique()
    remark = f"gain of {len(differences)} of {n_seeds} seeds" if len(differences) < n_seeds else ""
    return interval(differences.to_numpy(), "+.2f"), remark


def summary_table(runs: pd.DataFrame, all_runs: pd.DataFrame | None = None) -> pd.DataFrame:
    """A row per training, over its seeds; all cells are strings.

    all_runs: among which baselines are looked for; None: among `runs`.
    """
    runs = with_dataset_order(drop_duplicate_seeds(runs))
    all_runs = runs if all_runs is None else all_runs
    published = read_published()
    has_teacher = runs["method"] != "none"
    runs = runs.assign(has_teacher=has_teacher, method_order=method_order(runs["method"]))
    shown = ["origin", *CITATION_KEY[1:], "overrides", "teacher_overrides"]
    visible = runs["dataset"].str.cat(runs[shown])
    longer = disambiguate(runs, visible)
    runs["distinction"] = [
        name.removeprefix(short).strip() for short, name in zip(visible, longer, strict=True)
    ]
    runs = runs.sort_values(list(ROW_ORDER), ascending=list(ROW_ORDER.values()))
    rows = pd.DataFrame(
        summary_row(seeds, all_runs, published)
        for _, seeds in runs.groupby(TRAINING_KEY, sort=False)
    )
    if all_runs["origin"].nunique() < 2 and not rows.empty:
        rows[ORIGIN] = ""  # nothing to tell apart
    return rename_columns(rows)


def summary_row(seeds: pd.DataFrame, runs: pd.DataFrame, published: pd.DataFrame) -> dict[str, str]:
    """The row of a training; seeds: its rows in a frame, with the column `distinction`."""
    first = seeds.iloc[0]
    timed = seeds[~seeds["shared"].astype(bool)]  # seconds on a shared machine say little
    is_one_device = timed["device"].nunique() == 1
    environment = seeds["device"] + ", " + seeds["precision"] + ", torch " + seeds["torch"]
    environment += ", commit " + seeds["commit"].replace("", "unknown")
    remarks = [first["distinction"], preset_differences(first["dataset"])]
    gain_cell, gain_remark = gain(seeds, runs)
    remarks += [first["teacher_overrides"], gain_remark]
    if first["unlabelled_images"]:
        remarks.append(f"and {first['unlabelled_images']:,} images without a label")
    if first["left_out"]:
        remarks.append(f"{first['left_out']} left out")
    if first["same_classes_assumed"]:
        remarks.append("its teacher's training is unknown, its classes are assumed to be these")
    quoted = []
    if is_full_recipe(seeds).all():
        cited = as_cited(seeds[:1]).iloc[0]
        is_cited = (published[CITATION_KEY] == cited[CITATION_KEY]).all(axis=1)
        quoted = list(published[is_cited][QUOTED])
    return first[CITATION_KEY].to_dict() | {
        ORIGIN: first["origin"],
        TOP1: top1_cell(seeds),
        "seeds": f"{seeds['seed'].nunique()}",
        GAIN: gain_cell,
        REMARK: "; ".join(filter(None, remarks)),
        "best epoch (%)": mean_sd(seeds["best_top1"]),
        "s/epoch": f"{timed['epoch_seconds'].median():.1f}" if is_one_device else "",
        "epochs": f"{first['epochs']}",
        "parameters": f"{first['parameters']:,}",
        "classes": f"{first['classes']}",
        "made on": "; ".join(dict.fromkeys(environment)),
        QUOTED: "; ".join(filter(None, quoted)),
    }


def rename_columns(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with the columns of CITATION_KEY as a page calls them."""
    names = dict(zip(CITATION_KEY, KEY_NAMES, strict=True))
    return rows.replace({"method": {"none": LABELS_ONLY}}).rename(columns=names)


def with_empty_rows(runs: pd.DataFrame) -> pd.DataFrame:
    """The table of runs of the full recipe, then the study's rows without a run."""
    return pd.concat([summary_table(runs), empty_rows(runs)], ignore_index=True).fillna("")


def empty_rows(runs: pd.DataFrame) -> pd.DataFrame:
    """The study's rows without a run among these, with the command that makes it."""
    keys = runs[CITATION_KEY].drop_duplicates()
    wanted = read_published().query("command != ''").merge(keys, "left", indicator="source_of_row")
    missing = wanted[wanted["source_of_row"] == "left_only"]
    command = (
        "`python -m kdnb.study --dataset " + missing["dataset"] + " " + missing["command"] + "`"
    )
    empty = missing[[*CITATION_KEY, QUOTED]].assign(**{"to fill it": command})
    return rename_columns(empty)


def markdown(rows: pd.DataFrame, columns: list[str] | None = None) -> str:
    """A Markdown table of some columns (None: of all), without those that are empty."""
    if rows.empty:
        return "There is no finished run yet."
    not_empty = [name for name in columns or rows if (rows[name] != "").any()]
    return rows[not_empty].map(escaped).to_markdown(index=False, disable_numparse=True)


def escaped(value: object) -> str:
    """A name in Markdown as it is: no HTML, no further column, no further line."""
    return " ".join(escape(str(value), quote=False).replace("|", "\\|").split())


def network_table(runs: Mapping[str, RunFolder]) -> pd.DataFrame:
    """A column per {role: run}: training, accuracy after the last and the best epoch, cost.

    A teacher that was given, and so has no run here, has the first column, with what its student
    knows of it.
    """
    rows = {role: run_row(run) for role, run in runs.items()}
    given = [row for run in runs.values() if (row := teacher_row(run))]
    if "teacher" not in rows and given:
        rows = {"teacher": given[0] | {"method": "given"}} | rows
    own = next(run_row(run) for run in runs.values())
    table = pd.DataFrame(rows.values(), list(rows), NETWORK_COLUMNS, dtype=object)
    table["epoch_seconds"] = table["epoch_seconds"].astype(float).round(2).astype(object)
    for name in ("top1", "top5", "best_top1"):
        shown = table[name].dropna().map(lambda value: percent(value, own["test_images"]))
        table[name] = shown.reindex(table.index)
    if own["classes"] <= 5:
        table = table.drop(columns="top5")  # it is 100 %
    return table.where(table.notna(), "").T


def teacher_row(run: RunFolder) -> dict[str, object]:
    """The network, top1 (None if its file does not say it) and parameters of a run's teacher.

    Empty for a run without a teacher.
    """
    teacher = run.config["teacher"]
    if not teacher:
        return {}
    return {
        "network": teacher_name(teacher, ""),
        "top1": teacher["top1"],
        "parameters": run.result["teacher_parameters"],
    }


def method_table(runs: pd.DataFrame, teacher: Mapping[str, object]) -> pd.DataFrame:
    """A row per method of a comparison, and the last for its teacher (a `teacher_row`)."""
    table = summary_table(runs)[["trained with", "teacher", TOP1, "seeds", GAIN]]
    top1 = "" if teacher["top1"] is None else f"{teacher['top1']:.2f}"
    own = {"trained with": "the teacher", "teacher": teacher["network"], TOP1: top1}
    return pd.concat([table, pd.DataFrame([own])], ignore_index=True).fillna("")


def provenance_table(runs: pd.DataFrame) -> pd.DataFrame:
    """A row per run, by name: how it differs from its preset, and where it was made."""
    names = runs["folder"].map(lambda folder: Path(folder).name).rename("run")
    return runs.set_index(names)[PROVENANCE_COLUMNS]
