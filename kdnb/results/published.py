"""Published results, published.csv with its sources.csv, and the runs they are compared with."""

from pathlib import Path

import pandas as pd

from kdnb.results.curves import split_by_student
from kdnb.results.frame import CITATION_KEY, is_full_recipe

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
    details += ("; " + rows["reproduced"]).where(rows["reproduced"] != "", "")
    study = rows["source"].where(rows["source"] == "earlier study", "published")
    study = study.mask(rows["epoch"] == "best", "published, best epoch")
    quoted = (rows["top1"] + " (" + details + ")").where(rows["top1"] != "", "")
    return rows.assign(study=study, **{QUOTED: quoted})


def append_published(runs: pd.DataFrame) -> pd.DataFrame:
    """Runs of the full recipe, and below them a row per published result of the same training.

    runs: with the columns line and order, as plots expect them.
    """
    keys = runs[[*CITATION_KEY, "line", "order"]].drop_duplicates()
    published = read_published().query("top1 != ''").merge(keys, on=CITATION_KEY)
    ours = runs.assign(study="this study")
    return pd.concat([ours, published.astype({"top1": float})], ignore_index=True)


def published_by_protocol(runs: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """{title: runs of the full recipe and published results}, where there are both."""
    groups = split_by_student(runs[is_full_recipe(runs)])
    rows = {title: append_published(part) for title, part in groups.items()}
    return {title: part for title, part in rows.items() if part["study"].nunique() > 1}
