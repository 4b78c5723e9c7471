"""Published results, published.csv with its sources.csv, and the runs they are compared with."""

from dataclasses import asdict
from pathlib import Path

import pandas as pd

from kdnb.data import DATASETS
from kdnb.results.curves import split_by_student
from kdnb.results.grouping import CITATION_KEY, is_full_recipe
from kdnb.runs.identity import WITHOUT_EFFECT, describe_overrides

QUOTED = "quoted (%)"


def read_csv(name: str) -> pd.DataFrame:
    """A CSV file of this folder; all cells are strings."""
    return pd.read_csv(Path(__file__).with_name(name), dtype=str, keep_default_na=False)


def read_published() -> pd.DataFrame:
    """A row per published result, and per row of the study, with the command that fills it.

    Adds the columns study, for plots, and `QUOTED`, the result with its source.
    """
    rows = read_csv("published.csv")
    details = rows["source"] + (", " + rows["epoch"] + " epoch").where(rows["epoch"] != "", "")
    details += ("; last epoch of its log: " + rows["last_epoch"]).where(
        rows["last_epoch"] != "", ""
    )
    details += ("; " + rows["reproduced"]).where(rows["reproduced"] != "", "")
    study = rows["source"].where(rows["source"] == "earlier study", "published")
    study = study.mask(rows["epoch"] == "best", "published, best epoch")
    quoted = (rows["top1"] + " (" + details + ")").where(rows["top1"] != "", "")
    return rows.assign(study=study, **{QUOTED: quoted})


def as_cited(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs under the data sets that theirs are cited as, see `kdnb.data.register`."""
    cited = {name: entry.cited_as for name, entry in DATASETS.items() if entry.cited_as}
    teacher = runs["teacher"]
    for name, other in cited.items():
        teacher = teacher.str.replace(f" ({name})", f" ({other})", regex=False)
    return runs.assign(dataset=runs["dataset"].replace(cited), teacher=teacher)


def preset_differences(dataset: str) -> str:
    """How a data set's preset differs from that of the one it is cited as, in words; "" for not."""
    entry = DATASETS.get(dataset)
    if entry is None or not entry.cited_as:
        return ""
    other = asdict(DATASETS[entry.cited_as].preset)
    values = {n: [v, other[n]] for n, v in asdict(entry.preset).items() if n not in WITHOUT_EFFECT}
    differences = {name: pair for name, pair in values.items() if pair[0] != pair[1]}
    return f"preset: {describe_overrides(differences)}" if differences else ""


def append_published(runs: pd.DataFrame) -> pd.DataFrame:
    """Runs of the full recipe, and below them a row per published result of the same training.

    runs: with the columns line and order, as plots expect them.
    """
    keys = as_cited(runs)[[*CITATION_KEY, "line", "order"]].drop_duplicates()
    published = read_published().query("top1 != ''").merge(keys, on=CITATION_KEY)
    ours = runs.assign(study="this study")
    return pd.concat([ours, published.astype({"top1": float})], ignore_index=True)


def published_by_protocol(runs: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """{title: runs of the full recipe and published results}, where there are both."""
    groups = split_by_student(runs[is_full_recipe(runs)])
    rows = {title: append_published(part) for title, part in groups.items()}
    return {title: part for title, part in rows.items() if part["study"].nunique() > 1}
