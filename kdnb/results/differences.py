"""Differences between methods, seed by seed: a table of numbers, as text, CSV or LaTeX."""

import numpy as np
import pandas as pd
from scipy import stats

from kdnb.errors import InputError
from kdnb.results.frame import LABELS_ONLY
from kdnb.results.grouping import TRAINING_KEY, disambiguate, drop_duplicate_seeds
from kdnb.results.order import method_order
from kdnb.results.teachers import deviations, mean_over_teachers

# Runs that are equal in these columns share initial weights, batches and all settings but those of
# the teacher.
PAIR_KEY = ["recipe", "train_images", "seed"]
HEADING = ["dataset", "overrides"]
COLUMNS = ["top1", "sd", "teachers", "sd_teachers", "seeds", "gain", "low", "high", "p", "p_holm"]
P_VALUES = ("p", "p_holm")
LATEX_HEADER = r"""% \usepackage{booktabs, siunitx, etoolbox}
% \robustify\bfseries \sisetup{detect-weight = true}
"""


def paired(rows: pd.DataFrame, others: pd.DataFrame) -> pd.Series:
    """The differences in top1 of two trainings by student seed, in percentage points.

    Seeds are paired, and teachers, if both trainings have one. With several teachers, it is the
    mean over them. A run of one's own is paired with one of one's own before a record, and a record
    with a record.
    """
    key = [*PAIR_KEY, "teacher_sha256"]
    if not (rows["teacher_sha256"].all() and others["teacher_sha256"].all()):
        key = PAIR_KEY
    is_elsewhere = ~others["origin"].isin(rows["origin"])
    others = others.iloc[np.argsort(is_elsewhere, kind="stable")].drop_duplicates(key)
    pairs = rows.merge(others[[*key, "top1"]], on=key, suffixes=("", "_other"))
    return mean_over_teachers(pairs["top1"] - pairs["top1_other"], pairs)


def paired_test(differences: pd.Series) -> dict[str, float]:
    """The mean, its 95 % interval and p of Student's t-test; NaN with fewer than two seeds."""
    n = len(differences)
    mean = differences.mean() if n else np.nan
    if n < 2:
        return {"gain": mean, "low": np.nan, "high": np.nan, "p": np.nan}
    error = stats.sem(differences)
    half = stats.t.ppf(0.975, n - 1) * error
    p = 2 * stats.t.sf(abs(mean) / error, n - 1) if error else float(mean == 0)
    return {"gain": mean, "low": mean - half, "high": mean + half, "p": p}


def holm(p: pd.Series) -> pd.Series:
    """Holm's (1979) adjustment of p-values for as many tests as there are values; NaN is none."""
    ordered = p.dropna().sort_values()
    factors = np.arange(len(ordered), 0, -1)
    return (ordered * factors).cummax().clip(upper=1).reindex(p.index)


def method_differences(runs: pd.DataFrame, against: str = "none") -> pd.DataFrame:
    """A row per training, and its difference to another method, seed by seed.

    Columns besides those of TRAINING_KEY: training, its name; top1 (%), its standard deviations
    over students (sd) and teachers (sd_teachers); the numbers of teachers and seeds; gain over
    `against` in percentage points, with its 95 % interval (low, high); p of the paired t-test, and
    p_holm, which is corrected for the rows of the same data set and overrides.

    Args:
        runs: a frame of finished runs.
        against: the method, as the column `method` has it; "none" is training on labels only.

    Raises InputError if no run has that method.
    """
    runs = drop_duplicate_seeds(runs)
    if against not in set(runs["method"]):
        known = ", ".join(sorted(set(runs["method"])))
        raise InputError(f"no finished run has the method {against!r}: there are {known or 'none'}")
    others = runs[runs["method"] == against]
    rows = [
        training_row(rows, others, is_reference=key[TRAINING_KEY.index("method")] == against)
        for key, rows in runs.groupby(TRAINING_KEY, sort=False)
    ]
    table = pd.DataFrame(rows)
    table["p_holm"] = table.groupby(HEADING)["p"].transform(holm)
    table["training"] = training_names(table)
    table = table.assign(order=method_order(table["method"]))
    order = [*HEADING, "network", "order", "origin", "top1"]
    ascending = [name != "top1" for name in order]
    return table.sort_values(order, ascending=ascending, ignore_index=True).drop(columns="order")


def training_row(rows: pd.DataFrame, others: pd.DataFrame, is_reference: bool) -> dict:
    """The row of one training; of the method that is compared with, without a difference."""
    students, teachers, count = deviations(rows)
    differences = pd.Series(dtype=float) if is_reference else paired(rows, others)
    numbers = {
        "top1": rows.groupby("teacher_sha256")["top1"].mean().mean(),
        "sd": students,
        "teachers": count if rows["teacher"].iloc[0] else 0,
        "sd_teachers": teachers,
        "seeds": rows["seed"].nunique(),
    }
    return rows.iloc[0][TRAINING_KEY].to_dict() | numbers | paired_test(differences)


def training_names(table: pd.DataFrame) -> pd.Series:
    """What rows call their trainings: "wrn_16_2, kd from wrn_40_2"; different ones by heading."""
    name = table["network"] + ", "
    taught = table["method"] + " from " + table["teacher"].str.partition(" ")[0]
    name += taught.mask(table["teacher"] == "", LABELS_ONLY)
    name += (" (without " + table["left_out"] + ")").where(table["left_out"] != "", "")
    headings = table.groupby(HEADING).groups.values()
    return pd.concat([disambiguate(table.loc[index], name[index]) for index in headings])


def by_heading(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """{data set and its overrides: the rows of `method_differences` of that}."""
    return {
        f"{dataset}: {overrides}" if overrides else dataset: rows
        for (dataset, overrides), rows in table.groupby(HEADING, sort=False)
    }


def gains_by_protocol(runs: pd.DataFrame, against: str = "none") -> dict[str, pd.DataFrame]:
    """{title: rows} for `plots.gains`, of those headings of which a row has an interval."""
    if against not in set(runs["method"]):
        return {}
    table = method_differences(runs, against).dropna(subset=["low"])
    return by_heading(table.assign(against=shown_name(against)))


def shown_name(method: str) -> str:
    return LABELS_ONLY if method == "none" else method


def number_columns(rows: pd.DataFrame) -> list[str]:
    """The columns of numbers that are not empty; of the teachers, if there are several."""
    has_teachers = rows["teachers"].max() > 1
    return [
        name
        for name in COLUMNS
        if rows[name].notna().any() and (has_teachers or name != "teachers")
    ]


def as_text(table: pd.DataFrame, against: str) -> str:
    """A Markdown table per heading, and what its columns mean."""
    parts = []
    for title, rows in by_heading(table).items():
        columns = number_columns(rows)
        shown = rows[["training", *columns]].astype(object)
        formats = ["", *(".2g" if name in P_VALUES else ".2f" for name in columns)]
        text = shown.where(shown.notna(), "").to_markdown(index=False, floatfmt=formats)
        parts.append(f"### {title}\n\n{text}")
    note = (
        f"gain: over {shown_name(against)}, mean of the differences seed by seed in percentage "
        "points; low, high: its 95 % interval; p: paired t-test; p_holm: corrected for the number "
        "of rows of the table (Holm). sd: standard deviation over seeds."
    )
    return "\n\n".join([*parts, note])


def as_latex(table: pd.DataFrame) -> str:
    """A LaTeX tabular per heading (booktabs, siunitx), the best top1 of each network in bold."""
    parts = [LATEX_HEADER]
    for title, rows in by_heading(table).items():
        shown = rows[["training", *number_columns(rows)]]
        is_best = rows.groupby("network")["top1"].transform("max") == rows["top1"]
        bold = pd.DataFrame("", shown.index, shown.columns)
        bold.loc[is_best, "top1"] = "bfseries: ;"
        style = shown.style.hide(axis="index").apply(lambda _, bold=bold: bold, axis=None)
        style = style.format(precision=2, na_rep="{--}", escape="latex")
        p_values = [name for name in P_VALUES if name in shown]
        style = style.format("{:.2g}", subset=p_values, na_rep="{--}")
        style = style.relabel_index([name.replace("_", " ") for name in shown], axis=1)
        parts.append(f"% {title}\n{style.to_latex(hrules=True, siunitx=True)}")
    return "\n".join(parts)
