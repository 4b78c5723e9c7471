"""What others measured, published.csv and its sources.csv, and the runs that are to be set beside it."""

from pathlib import Path

import pandas as pd

from kdnb.results.curves import pictures
from kdnb.results.frame import KEY, whole

CITED = "quoted (%)"


def read_published() -> pd.DataFrame:
    """What others measured, all as text, and the rows that the study is about, with the command that fills each."""
    rows = kept("published.csv")
    about = rows["source"] + (", " + rows["epoch"] + " epoch").where(rows["epoch"] != "", "")
    about += ("; " + rows["reproduced"]).where(rows["reproduced"] != "", "")
    study = rows["source"].where(rows["source"] == "earlier study", "published")
    study = study.mask(rows["epoch"] == "best", "published, best epoch")
    return rows.assign(
        study=study, **{CITED: (rows["top1"] + " (" + about + ")").where(rows["top1"] != "", "")}
    )


def kept(name: str) -> pd.DataFrame:
    return pd.read_csv(Path(__file__).with_name(name), dtype=str, keep_default_na=False)


def beside_published(runs: pd.DataFrame) -> pd.DataFrame:
    """Full-length runs, and below them what was published of the same, a row a citation; runs: with `line`, `order`."""
    cited = (
        read_published()
        .query("top1 != ''")
        .merge(runs[[*KEY, "line", "order"]].drop_duplicates(), on=KEY)
    )
    return pd.concat(
        [runs.assign(study="this study"), cited.astype({"top1": float})], ignore_index=True
    )


def with_published(runs: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """{title: rows for a plot of full-length accuracies here and as published}, where there are both."""
    rows = {title: beside_published(part) for title, part in pictures(runs[whole(runs)]).items()}
    return {title: both for title, both in rows.items() if both["study"].nunique() > 1}
