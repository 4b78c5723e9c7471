"""The study's pages of tables, in Markdown; docs/results.md says how to read them."""

import re
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from kdnb import losses
from kdnb.losses.pair_weights import read_rows
from kdnb.paths import project_root
from kdnb.results.grouping import TRAINING_KEY, drop_duplicate_seeds, is_full_recipe
from kdnb.results.order import with_dataset_order
from kdnb.results.published import QUOTED, read_csv, read_published
from kdnb.results.tables import (
    GAIN,
    KEY_NAMES,
    MAIN_COLUMNS,
    ORIGIN,
    TOP1,
    empty_rows,
    escaped,
    markdown,
    rename_columns,
    summary_table,
    with_empty_rows,
)
from kdnb.runs.files import write_atomically

PUBLISHED_COLUMNS = [*KEY_NAMES, QUOTED]
FULL_COLUMNS = [*KEY_NAMES, ORIGIN, TOP1, "best epoch (%)", QUOTED]
README_METHODS = ["none", "kd", "afd", "dkd", "crd"]
BLOCK = re.compile(r"(<!-- ([\w/.-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def make_pages(runs: pd.DataFrame) -> dict[str, str]:
    """{name: Markdown} of a frame of finished runs."""
    is_full = is_full_recipe(runs)
    full, others = runs[is_full], runs[~is_full]
    without_row = rename_columns(read_published().query("command == ''"))
    parts = {
        "headline": ["All runs", *sections(runs, runs, MAIN_COLUMNS[1:]), footnote(runs)],
        "results": [
            "Results",
            markdown(with_empty_rows(full)),
            "## As published",
            markdown(without_row[PUBLISHED_COLUMNS]),
            markdown(read_csv("sources.csv")),
        ],
        "short-runs": ["Shortened and changed runs", *sections(others, runs)],
    }
    if section := readme_section(runs):
        parts["readme"] = ["The README's table", *section]
    return {name: "# " + "\n\n".join(texts) + "\n" for name, texts in parts.items()}


def overview(runs: pd.DataFrame) -> str:
    """All runs in tables of at most eight columns, a heading for each data set and its changes."""
    columns = [name for name in MAIN_COLUMNS[1:] if name != QUOTED]
    return "\n\n".join([*sections(runs, runs, columns), footnote(runs)])


def full_runs(runs: pd.DataFrame) -> str:
    """The runs that followed their preset, with quoted numbers; folded, what is still missing."""
    full = runs[is_full_recipe(runs)]
    empty = empty_rows(full)
    return "\n\n".join(
        [
            markdown(summary_table(full), FULL_COLUMNS),
            fold(f"{len(empty)} trainings of the study without a run here", markdown(empty)),
        ]
    )


def sources() -> str:
    """Published numbers that are compared with no run, and the sources of all; folded."""
    without_row = rename_columns(read_published().query("command == ''"))
    return "\n\n".join(
        [
            fold("Numbers that no run is compared with", markdown(without_row[PUBLISHED_COLUMNS])),
            fold("Sources", markdown(read_csv("sources.csv"))),
        ]
    )


def fold(summary: str, text: str) -> str:
    """Markdown that a click unfolds."""
    return f"<details><summary>{summary}</summary>\n\n{text}\n\n</details>"


def sections(
    runs: pd.DataFrame, all_runs: pd.DataFrame, columns: list[str] | None = None
) -> list[str]:
    """A heading and a table for each data set and each way in which runs differ from its preset."""
    texts = []
    groups = with_dataset_order(runs).groupby(["dataset_order", "dataset", "overrides"])
    for (_, dataset, overrides), part in groups:
        rows = summary_table(part, all_runs).drop(columns="data set")
        texts += [
            f"### {escaped(dataset)}" + (f": {escaped(overrides)}" if overrides else ""),
            markdown(rows, columns),
        ]
    return texts or [markdown(runs)]


def readme_section(runs: pd.DataFrame) -> list[str]:
    """A few methods on a quarter of CIFAR-100 and on the digits, side by side; and a footnote.

    Empty if one of the data sets has no students or no teacher.
    """
    digits = runs[(runs["dataset"] == "digits") & is_full_recipe(runs)]
    cifar = runs[runs["dataset"] == "cifar100"]
    quarter = cifar[cifar["train_images"] == 12_500]
    # {heading: runs of the student, runs of its teacher}
    settings = {
        "CIFAR-100": (
            quarter[quarter["network"] == "wrn_16_2"],
            cifar[(cifar["network"] == "wrn_40_2") & (cifar["epochs"] == 16)],
        ),
        "digits": (
            digits[digits["network"] == "wrn_16_1"],
            digits[digits["network"] == "wrn_16_2"],
        ),
    }
    columns: list[pd.DataFrame] = []
    rows_shown: list[pd.DataFrame] = []
    seeds: list[str] = []
    for heading, (students, teachers) in settings.items():
        students = largest_trainings(students[students["method"].isin(README_METHODS)])
        teachers = largest_trainings(teachers)
        if students.empty or teachers.empty:
            return []
        rows = summary_table(students).set_index("trained with")[[TOP1, GAIN]]
        rows.loc["the teacher"] = summary_table(teachers)[[TOP1, GAIN]].iloc[0]
        columns.append(rows.set_axis([f"{heading}: top-1 (%)", f"{heading}: gain"], axis=1))
        seeds.append(f"{students['seed'].nunique()} ({heading})")
        rows_shown += [students, teachers]
    table = pd.concat(columns, axis=1).fillna("").reset_index(names="trained with")
    return [markdown(table), footnote(pd.concat(rows_shown), " and ".join(seeds))]


def largest_trainings(runs: pd.DataFrame) -> pd.DataFrame:
    """Of the trainings of each method, the one with the most seeds."""
    runs = drop_duplicate_seeds(runs)
    seeds = runs.groupby(TRAINING_KEY)["seed"].transform("size")
    by_size = runs.assign(seeds=seeds).sort_values("seeds", ascending=False, kind="stable")
    return runs.merge(by_size.drop_duplicates("method")[TRAINING_KEY], on=TRAINING_KEY)


def footnote(runs: pd.DataFrame, seeds: str = "") -> str:
    """How to read a table, and the machines and versions behind it; seeds: how many there are."""
    machines = dict.fromkeys(runs["device"] + ", " + runs["precision"] + ", torch " + runs["torch"])
    over = f"{seeds} seeds" if seeds else "the seeds"
    text = f"Last epoch, mean ± standard deviation over {over}"
    if any(runs["teacher"]):
        text += (
            f"; {GAIN}: mean of the differences seed by seed, in percentage points, and its 95 % "
            "interval, which is each row's alone: it is not corrected for the number of rows"
        )
    return f"{text}; measured on: {escaped('; '.join(machines))}."


def methods_table() -> str:
    """Every method with its mix, options and source, as published_weights.csv has them."""
    path = Path(losses.__file__).with_name("published_weights.csv")
    rows = pd.read_csv(path, dtype=str).query("kind == 'method'")
    mixes = rows[rows["parameter"] == "mix"].set_index("name")
    others = rows[rows["parameter"] != "mix"]
    options = (others["parameter"] + " " + others["value"]).groupby(others["name"]).agg(", ".join)
    table = pd.DataFrame(
        {
            "method": mixes.index,
            "mix": "`" + mixes["value"] + "`",
            "options": options.reindex(mixes.index).fillna(""),
            "source of the weights": mixes["source"],
        }
    )
    return table.to_markdown(index=False, disable_numparse=True)


def pair_methods_table() -> str:
    """Every mix that was published for a pair of networks, as pair_weights.csv has it."""
    rows = pd.DataFrame(read_rows())
    rows["mix"] = "`" + rows["mix"] + "`"
    return rows.to_markdown(index=False, disable_numparse=True)


def fill_documents(texts: Mapping[str, str]) -> None:
    """Write generated tables into README.md and docs/*.md of a checkout, between their markers.

    The markers are `<!-- outputs/tables/NAME.md -->` for a page without its title, or
    `<!-- methods -->` or `<!-- pair-methods -->`, and `<!-- end -->`. Other markers are left alone.
    """
    root = project_root()
    if not (root / "kdnb").is_dir():  # an installed package: the documents here are the user's
        return
    blocks = {
        f"outputs/tables/{name}.md": text.split("\n", 1)[1].strip() for name, text in texts.items()
    }
    blocks |= {"methods": methods_table(), "pair-methods": pair_methods_table()}

    def filled(match: re.Match) -> str:
        if match[2] not in blocks:
            return match[0]
        return f"{match[1]}{blocks[match[2]]}\n{match[3]}"

    for path in (root / "README.md", *(root / "docs").glob("*.md")):
        if path.is_file():
            text = path.read_text("utf-8")
            if (new := BLOCK.sub(filled, text)) != text:
                write_atomically(path, new)


def save(texts: Mapping[str, str], folder: Path) -> None:
    """Write {name: Markdown} as NAME.md in a folder, atomically. Raises InputError."""
    for name, text in texts.items():
        write_atomically(folder / f"{name}.md", text)


def display_page(text: str):
    """Markdown for display in a notebook, without a title."""
    from IPython.display import Markdown

    return Markdown(re.sub(r"\A# .*\n", "", text))
