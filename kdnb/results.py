"""Run folders -> one tidy table -> Markdown."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from kdnb.errors import InputError
from kdnb.runs import Run, write_atomically

__all__ = ["gather", "markdown", "network_table", "save_table"]


def gather(folder: str | Path) -> list[Run]:
    """The finished runs under `folder`, by name."""
    return [run for run in (Run(path.parent) for path in sorted(Path(folder).glob("*/result.json"))) if run.finished]


def network_table(runs: Iterable[Run]) -> pd.DataFrame:
    """One row per finished run: what it was, its accuracy after the last and the best epoch, its cost, its machine."""
    rows = []
    for run in runs:
        r = run.result
        rows.append(
            {
                "data set": r["dataset"],
                "network": r["model"],
                "trained with": "labels" if r["method"] == "plain" else f"labels, {r['method'].replace('+', ', ')}",
                "teacher": r["recipe"]["teacher"] or "",
                "seed": r["seed"],
                "epochs": r["recipe"]["epochs"],
                "training images": r["train_images"],
                "top-1 (%)": r["top1"],
                "top-5 (%)": r["top5"],
                "best top-1 (%)": r["best"]["top1"],
                "s/epoch": r["epoch_seconds"],
                "parameters": r["parameters"],
                "device": r["device"],
                "precision": r["precision"],
                "torch": r["versions"]["torch"],
                "commit": r["commit"],
            }
        )
    if not rows:
        raise InputError("no finished run to make a table of")
    return pd.DataFrame(rows)


def markdown(table: pd.DataFrame) -> str:
    """A Markdown table: numbers to two decimals, whole ones with thousands apart, nothing for what is missing."""

    def cell(value) -> str:
        if isinstance(value, float):
            return "" if pd.isna(value) else f"{value:.2f}"
        return f"{value:,}" if isinstance(value, int) else str(value)

    lines = [list(table.columns), ["---:" if pd.api.types.is_numeric_dtype(t) else "---" for t in table.dtypes]]
    lines += [[cell(v) for v in row] for row in table.astype(object).itertuples(index=False)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def save_table(table: pd.DataFrame, path: str | Path) -> Path:
    """Keep the table as Markdown, atomically."""
    write_atomically(Path(path), markdown(table))
    return Path(path)
