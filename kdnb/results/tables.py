"""The DataFrame of kdnb.results.frame -> the study's Markdown tables, beside what was published."""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from kdnb.results.frame import KEY, ONLY, TRAINING, once, row, told_apart, whole
from kdnb.results.intervals import interval, mean_sd
from kdnb.results.published import CITED, kept, read_published
from kdnb.runs.folder import RunFolder, write_atomically
from kdnb.runs.run import Run

ORDER = {
    "place": True,
    "changed": True,
    "taught": True,
    "network": False,
    "rank": True,
    "method": True,
}  # ascending?
TOP1, GAIN, REMARK = "top-1 (%)", "gain over labels only", "remark"
MAIN = [
    "data set",
    "network",
    "trained with",
    "teacher",
    TOP1,
    "seeds",
    GAIN,
    REMARK,
    CITED,
]  # columns of the headline


def placed(runs: pd.DataFrame) -> pd.DataFrame:  # with each data set's place on a page
    return runs.assign(
        place=runs["dataset"].map({"digits": 0, "cifar100": 1, "stanford40": 2}).fillna(3)
    )


def gain(group: pd.DataFrame, runs: pd.DataFrame) -> str:
    """What a teacher added, as `interval` of the seeds that were also trained on labels only: they have the first
    weights and the batches in common. "" for fewer than two."""
    like = [
        "dataset",
        "network",
        "changed",
        "epochs",
        "precision",
        "train_images",
        "data_id",
        "seed",
    ]
    alone = runs[runs["method"] == "none"].drop_duplicates(like)
    both = group[group["method"] != "none"].merge(
        alone[[*like, "top1"]], on=like, suffixes=("", "_alone")
    )
    return interval((both["top1"] - both["top1_alone"]).to_numpy(), "+.2f") if len(both) > 1 else ""


def table(runs: pd.DataFrame) -> pd.DataFrame:
    """A row for all runs of a frame that are one training but for its seed, in words and numbers for people."""
    runs, cited, rows = placed(once(runs)), read_published(), []
    rank = (
        pd.Index(cited["method"].unique()).get_indexer(runs["method"]) % 1000
    )  # of a mix -1: it comes last
    runs = runs.assign(taught=runs["method"] != "none", rank=rank)
    shown = runs["dataset"].str.cat(runs[[*KEY[1:], "changed", "teacher_changed"]])
    runs["apart"] = [
        own.removeprefix(s).strip() for s, own in zip(shown, told_apart(runs, shown), strict=True)
    ]
    for _, group in runs.sort_values([*ORDER], ascending=[*ORDER.values()]).groupby(
        TRAINING, sort=False
    ):
        first = group.iloc[0]
        quiet = group[~group["shared"].astype(bool)]
        made = group["device"] + ", " + group["precision"] + ", torch " + group["torch"]
        made += ", commit " + group["commit"].replace("", "unknown")
        left_out = first["left_out"] and f"{first['left_out']} left out"
        known = cited[(cited[KEY] == first[KEY]).all(axis=1)][CITED] if whole(group).all() else []
        told = {
            TOP1: mean_sd(group["top1"]),
            "seeds": f"{len(group)}",
            GAIN: gain(group, runs),
            REMARK: "; ".join(filter(None, [first["apart"], first["teacher_changed"], left_out])),
            "best epoch (%)": mean_sd(group["best_top1"]),
            "s/epoch": f"{quiet['epoch_seconds'].median():.1f}"
            if quiet["device"].nunique() == 1
            else "",
            "epochs": f"{first['epochs']}",
            "parameters": f"{first['parameters']:,}",
            "classes": f"{first['classes']}",
            "made on": "; ".join(dict.fromkeys(made)),
            CITED: "; ".join(filter(None, known)),
        }
        rows.append(first[KEY].to_dict() | told)
    return named(pd.DataFrame(rows))


def named(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows with the columns of `KEY` as a page calls them."""
    return rows.replace({"method": {"none": ONLY}}).rename(
        columns=dict(zip(KEY, MAIN, strict=False))
    )


def with_empty_rows(runs: pd.DataFrame) -> pd.DataFrame:
    """The table of full-length runs, and below it the study's rows that have none yet, with what fills them."""
    wanted = (
        read_published()
        .query("command != ''")
        .merge(runs[KEY].drop_duplicates(), "left", indicator="found")
    )
    wanted = wanted[wanted["found"] == "left_only"]
    command = "`python -m kdnb.study --dataset " + wanted["dataset"] + " " + wanted["command"] + "`"
    empty = wanted[[*KEY, CITED]].assign(**{"to fill it": command})
    return pd.concat([table(runs), named(empty)], ignore_index=True).fillna("")


def markdown(rows: pd.DataFrame, columns: list[str] | None = None) -> str:
    """A Markdown table of those columns (None: all) that are not empty."""
    if rows.empty:
        return "There is no finished run yet."
    shown = [name for name in columns or rows if (rows[name] != "").any()]
    return rows[shown].to_markdown(index=False, disable_numparse=True)


def by_protocol(runs: pd.DataFrame, columns: list[str] | None = None) -> list[str]:
    """A heading and a table for each data set and each way in which runs departed from its preset."""
    texts = []
    for (_, dataset, changed), part in placed(runs).groupby(["place", "dataset", "changed"]):
        rows = table(part).drop(columns=MAIN[0])
        texts += [f"### {dataset}" + (f": {changed}" if changed else ""), markdown(rows, columns)]
    return texts or [markdown(runs)]


def pages(runs: pd.DataFrame) -> dict[str, str]:
    """{name: Markdown} of a frame; outputs/tables/README.md says what they are and how to read them."""
    full = runs[whole(runs)]
    first = full[
        (full["dataset"] == Run.dataset) & full["method"].isin(["none", Run.method])
    ]  # the first command's
    others = named(read_published().query("command == ''"))[[*MAIN[:4], CITED]]
    cited = ["## As published", markdown(others), markdown(kept("sources.csv"))]
    parts = {
        "first": ["What comes out of it", markdown(table(first), MAIN[1:7]), measured(first)],
        "headline": ["All runs", *by_protocol(runs, MAIN[1:]), measured(runs)],
        "results": ["Results", markdown(with_empty_rows(full)), *cited],
        "short-runs": ["Shortened and changed runs", *by_protocol(runs[~whole(runs)])],
    }
    return {name: "# " + "\n\n".join(texts) + "\n" for name, texts in parts.items()}


def measured(runs: pd.DataFrame) -> str:
    machines = dict.fromkeys(runs["device"] + ", " + runs["precision"] + ", torch " + runs["torch"])
    gains = f"; {GAIN}: mean of the differences seed by seed, in percentage points, and its 95 % interval"
    told = "Last epoch, mean ± standard deviation over the seeds" + gains * any(runs["teacher"])
    return f"{told}; measured on: {'; '.join(machines)}."


def save(texts: Mapping[str, str], folder: Path) -> None:
    """Keep {name: Markdown} as NAME.md in `folder`, atomically. Raises InputError."""
    for name, text in texts.items():
        write_atomically(folder / f"{name}.md", text)


def show(text: str):
    """A page as a notebook shows it, all but its title."""
    from IPython.display import Markdown

    return Markdown(text.split("\n", 1)[1])


def network_table(runs: Mapping[str, RunFolder]) -> pd.DataFrame:
    """A column per {role: run}: what it was, its accuracy after the last and the best epoch, its cost, its machine."""
    names = "network method teacher epochs train_images top1 top5 best_top1 epoch_seconds parameters device precision"
    return (
        pd.DataFrame([row(run) for run in runs.values()], index=list(runs))[names.split()]
        .round(2)
        .T
    )
