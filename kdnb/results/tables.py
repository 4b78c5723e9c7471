"""The study's Markdown tables: finished runs and published results."""

from collections.abc import Mapping

import pandas as pd

from kdnb.results.differences import paired
from kdnb.results.frame import LABELS_ONLY, run_row
from kdnb.results.grouping import (
    CITATION_KEY,
    TRAINING_KEY,
    disambiguate,
    drop_duplicate_seeds,
    is_full_recipe,
)
from kdnb.results.intervals import interval, mean_sd
from kdnb.results.published import QUOTED, as_cited, preset_differences, read_published
from kdnb.results.teachers import top1_cell
from kdnb.runs.folder import RunFolder

DATASET_ORDER = {"digits": 0, "cifar100": 1, "stanford40": 2}  # on a page; others come last
TOP1, GAIN, REMARK = "top-1 (%)", "gain over labels only", "remark"

# What a page calls the columns of CITATION_KEY, and the columns of the shorter tables.
KEY_NAMES = ["data set", "network", "trained with", "teacher"]
MAIN_COLUMNS = [*KEY_NAMES, TOP1, "seeds", GAIN, REMARK, QUOTED]

# {column that rows are sorted by: whether ascending}
ROW_ORDER = {
    "dataset_order": True,
    "overrides": True,
    "has_teacher": True,
    "network": False,
    "method_order": True,
    "method": True,
}
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


def with_dataset_order(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs with the position of each data set on a page."""
    order = runs["dataset"].map(DATASET_ORDER).fillna(len(DATASET_ORDER))
    return runs.assign(dataset_order=order)


def gain(seeds: pd.DataFrame, runs: pd.DataFrame) -> str:
    """The mean difference to training on labels alone, with its interval; "" for one seed.

    The difference is taken seed by seed: runs of a seed and a recipe share initial weights and
    batches. seeds: the rows of one training; runs: among which its baselines are.
    """
    if seeds["method"].iloc[0] == "none":
        return ""
    differences = paired(seeds, runs[runs["method"] == "none"])
    return interval(differences.to_numpy(), "+.2f") if len(differences) > 1 else ""


def summary_table(runs: pd.DataFrame, all_runs: pd.DataFrame | None = None) -> pd.DataFrame:
    """A row per training, over its seeds; all cells are strings.

    all_runs: among which baselines are looked for; None: among `runs`.
    """
    runs = with_dataset_order(drop_duplicate_seeds(runs))
    all_runs = runs if all_runs is None else all_runs
    published = read_published()
    methods = pd.Index(published["method"].unique())
    method_order = methods.get_indexer(runs["method"]) % 1000  # a mix has -1: it comes last
    runs = runs.assign(has_teacher=runs["method"] != "none", method_order=method_order)
    visible = runs["dataset"].str.cat(runs[[*CITATION_KEY[1:], "overrides", "teacher_overrides"]])
    longer = disambiguate(runs, visible)
    runs["distinction"] = [
        name.removeprefix(short).strip() for short, name in zip(visible, longer, strict=True)
    ]
    runs = runs.sort_values(list(ROW_ORDER), ascending=list(ROW_ORDER.values()))
    rows = [
        summary_row(seeds, all_runs, published)
        for _, seeds in runs.groupby(TRAINING_KEY, sort=False)
    ]
    return rename_columns(pd.DataFrame(rows))


def summary_row(seeds: pd.DataFrame, runs: pd.DataFrame, published: pd.DataFrame) -> dict[str, str]:
    """The row of a training; seeds: its rows in a frame, with the column `distinction`."""
    first = seeds.iloc[0]
    timed = seeds[~seeds["shared"].astype(bool)]  # seconds on a shared machine say little
    is_one_device = timed["device"].nunique() == 1
    environment = seeds["device"] + ", " + seeds["precision"] + ", torch " + seeds["torch"]
    environment += ", commit " + seeds["commit"].replace("", "unknown")
    remarks = [first["distinction"], preset_differences(first["dataset"])]
    remarks.append(first["teacher_overrides"])
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
        TOP1: top1_cell(seeds),
        "seeds": f"{seeds['seed'].nunique()}",
        GAIN: gain(seeds, runs),
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
    """The table of runs of the full recipe, then the study's rows without a run.

    Each of these has the command that makes its run.
    """
    keys = runs[CITATION_KEY].drop_duplicates()
    wanted = read_published().query("command != ''").merge(keys, "left", indicator="source_of_row")
    missing = wanted[wanted["source_of_row"] == "left_only"]
    command = (
        "`python -m kdnb.study --dataset " + missing["dataset"] + " " + missing["command"] + "`"
    )
    empty = missing[[*CITATION_KEY, QUOTED]].assign(**{"to fill it": command})
    return pd.concat([summary_table(runs), rename_columns(empty)], ignore_index=True).fillna("")


def markdown(rows: pd.DataFrame, columns: list[str] | None = None) -> str:
    """A Markdown table of some columns (None: of all), without those that are empty."""
    if rows.empty:
        return "There is no finished run yet."
    not_empty = [name for name in columns or rows if (rows[name] != "").any()]
    return rows[not_empty].to_markdown(index=False, disable_numparse=True)


def network_table(runs: Mapping[str, RunFolder]) -> pd.DataFrame:
    """A column per {role: run}: training, accuracy after the last and the best epoch, cost."""
    rows = [run_row(run) for run in runs.values()]
    return pd.DataFrame(rows, index=list(runs))[NETWORK_COLUMNS].round(2).T
