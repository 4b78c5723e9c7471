"""The tidy table of `results.tidy` -> the study's Markdown pages: parameters, results, shortened runs."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd

from kdnb.recipes import RECIPES
from kdnb.results import PUBLISHED, SOURCES, markdown, trained_with
from kdnb.runs import write_atomically

__all__ = [
    "headline_page",
    "headline_table",
    "parameter_page",
    "parameter_table",
    "results_page",
    "results_table",
    "short_page",
    "short_table",
    "show",
]

# The rows that the study is about: data set, network, teacher, kind, and what the command that fills them says.
PAIR = "-p teacher wrn_40_2 -p student wrn_16_2 -p teacher_weights outputs/teachers/wrn_40_2-cifar100.safetensors"
GRID = (
    ("cifar100", "wrn_40_2", "", "plain", "--methods teacher"),
    ("cifar100", "wrn_16_2", "", "plain", "--methods plain --seeds 0-4"),
    ("cifar100", "wrn_16_2", "wrn_40_2 (cifar100)", "kd", "--methods kd --seeds 0-4"),
    ("cifar100", "wrn_16_2", "wrn_40_2 (cifar100)", "afd", "--methods afd --seeds 0-4"),
    ("stanford40", "resnet18", "", "plain", "--methods plain"),
    ("stanford40", "resnet18", "resnet34 (imagenet)", "afd", "--methods afd"),
    ("stanford40", "wrn_16_2", "", "plain", f"--methods plain {PAIR}"),
    ("stanford40", "wrn_16_2", "wrn_40_2 (cifar100)", "afd", f"--methods afd {PAIR}"),
)
COUNTED_EARLIER = {
    ("wrn_40_2", "cifar100"): 2_255_156,
    ("wrn_16_2", "cifar100"): 703_284,
    ("wrn_16_2", "stanford40"): 695_544,
    ("resnet18", "stanford40"): 11_197_032,
}
CLASSES = {"digits": 10, "cifar100": 100, "stanford40": 40, "imagenet": 1000}
KEY = ["dataset", "network", "teacher", "kind"]


def command(dataset: str, rest: str) -> str:
    """What fills a row, as Markdown code."""
    return f"`python -m kdnb.study --dataset {dataset} {rest}`"


# Results


def results_table(table: pd.DataFrame) -> pd.DataFrame:
    """The headline: a row per network and way of training it, over the full-length runs by the unchanged recipe alone.

    Rows of the study without a run have empty cells and the command that fills them. Runs of different precision
    stand in different rows; of different devices, torch versions or commits in one, with all of them named.
    """
    full = table[table["changed"] == ""]
    groups = {}
    for key, group in full.groupby([*KEY, "train_images", "precision"], sort=False):
        groups.setdefault(key[:4], []).append(group)
    rows = []
    for *key, rest in GRID:
        key = tuple(key)
        rows += [row(key, group) for group in groups.pop(key, [])] or [row(key, None, command(key[0], rest))]
    order = sorted(groups, key=lambda key: (key[0], bool(key[2]), key[1] != teacher_of(key[0]), key[3] != "kd"))
    rows += [row(key, group) for key in order for group in groups[key]]
    return pd.DataFrame(rows)


def row(key: tuple[str, str, str, str], group: pd.DataFrame | None, fill: str = "") -> dict[str, str]:
    """One line of the results table; `group`: the runs it sums up, None if there is none."""
    dataset, network, teacher, kind = key
    usual = "kd+afd" if kind == "afd" and not teacher_is_foreign(dataset, teacher) else kind
    method = usual if group is None else group["method"].iloc[0]
    out = {"data set": dataset, "network": network, "trained with": trained_with(method), "teacher": teacher}
    if group is None:
        measured = dict.fromkeys(("top-1 (%)", "seeds", "one run (%)", "best epoch (%)", "s/epoch", "epochs"), "")
        out |= measured | {"made on": ""}
    else:
        runs = group.sort_values("seed")
        seeds = runs["seed"].nunique()
        out |= {
            "top-1 (%)": spread(runs["top1"]),
            "seeds": f"{seeds}" if seeds == len(runs) else f"{seeds} ({len(runs)} runs)",
            "one run (%)": f"{runs['top1'].iloc[0]:.2f}",
            "best epoch (%)": spread(runs["best_top1"]),
            "s/epoch": f"{runs['epoch_seconds'].median():.1f}",
            "epochs": f"{runs['epochs'].iloc[0]}",
            "made on": made_on(runs),
        }
    cited = [c for c in PUBLISHED if (c.dataset, c.network, c.teacher, c.kind) == key]
    out["published (%)"] = "; ".join(f"{c.top1:.2f} ({c.source})" for c in cited if c.source != "earlier study")
    out["earlier study (%)"] = "; ".join(f"{c.top1:.2f}" for c in cited if c.source == "earlier study")
    return out | {"to fill it": fill}


def teacher_of(dataset: str) -> str:
    return RECIPES[dataset].teacher if dataset in RECIPES else ""


def teacher_is_foreign(dataset: str, teacher: str) -> bool:
    """Whether the teacher, as `tidy` labels it, was trained on other classes: KD is then left out."""
    return not teacher.endswith(f"({dataset})")


def spread(values: pd.Series) -> str:
    """Mean, and standard deviation of the sample if there are several, to two decimals."""
    return f"{values.mean():.2f}" + (f" ± {values.std():.2f}" if len(values) > 1 else "")


def made_on(runs: pd.DataFrame) -> str:
    """Device, precision, torch and commit; each combination with how many of the runs it made, if there are several."""
    said = [
        f"{r.device}, {r.precision}, torch {r.torch}, {f'commit {r.commit}' if r.commit else 'commit unknown'}"
        for r in runs.itertuples()
    ]
    counts = pd.Series(said).value_counts(sort=False)
    return said[0] if len(counts) == 1 else "; ".join(f"{n} of {len(said)}: {what}" for what, n in counts.items())


def mixtures(table: pd.DataFrame) -> list[str]:
    """A sentence for every row of the headline whose runs are not all made alike."""
    sentences = []
    names = {"device": "devices", "torch": "torch versions", "commit": "commits", "teacher_sha256": "teachers"}
    full = table[table["changed"] == ""]
    for key, group in full.groupby([*KEY, "train_images", "precision"], sort=False):
        mixed = [f"{group[name].nunique()} {word}" for name, word in names.items() if group[name].nunique() > 1]
        if mixed:
            what = f"{key[0]}, {key[1]}, {trained_with(group['method'].iloc[0])}"
            sentences.append(f"{what}: the {len(group)} runs come from {' and '.join(mixed)}.")
    return sentences


def results_page(table: pd.DataFrame) -> str:
    """Markdown: the headline table, what its columns mean, what was mixed, other methods as published, the sources."""
    notes = [
        "Accuracy on the test images after the **last** epoch: mean ± standard deviation over the seeds. *one run* is "
        "the run of the lowest seed. *best epoch* is picked with the test images and so is no result, only a measure "
        "of how much picking would gain. *s/epoch* is the median over epochs, then over runs. Only full-length runs "
        "by the unchanged recipe count; an empty row has none yet, and says the command that makes them.",
        *mixtures(table),
    ]
    known = {tuple(key) for *key, _ in GRID}
    others = [c for c in PUBLISHED if (c.dataset, c.network, c.teacher, c.kind) not in known]
    cited = pd.DataFrame(
        {
            "data set": [c.dataset for c in others],
            "network": [c.network for c in others],
            "teacher": [c.teacher for c in others],
            "method": [c.kind for c in others],
            "published (%)": [f"{c.top1:.2f} ({c.source})" for c in others],
        }
    )
    sources = "\n".join(f"- {name}: {what}" for name, what in SOURCES.items())
    return page(
        "Results",
        markdown(results_table(table)),
        *notes,
        "Other methods for the same pair, as published:",
        markdown(cited),
        "Sources of what was not measured here:\n\n" + sources,
    )


# The README's


def headline_table(table: pd.DataFrame) -> pd.DataFrame:
    """A row per network and way of training it: every run, and beside a shortened one by how much it is short."""
    rows = []
    for key, runs in table.groupby([*KEY, "changed", "method"], sort=False):
        dataset, network, teacher, _, changed, method = key
        full = re.sub(r", .*\)$", ")", teacher)  # a shortened teacher stands for the one it is short of
        same = [c for c in PUBLISHED if (c.dataset, c.network, c.teacher, c.kind) == (*key[:2], full, key[3])]
        cited = [c.top1 for c in same if c.source != "earlier study"]
        rows.append(
            {
                "data set": dataset,
                "network": network,
                "trained with": trained_with(method),
                "teacher": teacher,
                "top-1 (%)": spread(runs["top1"]),
                "seeds": f"{runs['seed'].nunique()}",
                "not as in the recipe": changed,
                "published, full length (%)": f"{cited[0]:.2f}" if cited else "",
            }
        )
    order = {name: place for place, name in enumerate(RECIPES)}
    rows.sort(key=lambda r: (order.get(r["data set"], len(order)), bool(r["teacher"]), r["network"] != "wrn_40_2"))
    return pd.DataFrame(rows)


def headline_page(table: pd.DataFrame) -> str:
    """Markdown: the README's table, and on what it was measured."""
    if table.empty:
        return page("Headline", "There is no finished run yet.")
    machines = "; ".join(dict.fromkeys(f"{r.device}, {r.precision}, torch {r.torch}" for r in table.itertuples()))
    return page("Headline", markdown(headline_table(table)), f"Last epoch, measured on: {machines}.")


# Parameters


def parameter_table(table: pd.DataFrame) -> pd.DataFrame:
    """Network x data set: parameters as counted in a run of it, beside the earlier study's."""
    counted = {(r.network, r.dataset): r.parameters for r in table.itertuples()}
    for r in table[table["teacher"] != ""].itertuples():  # a teacher of other classes has another last layer
        name, _, origin = r.teacher.removesuffix(")").partition(" (")
        if r.teacher_parameters and origin in CLASSES:
            counted.setdefault((name, origin), int(r.teacher_parameters))
    fill = {(network, dataset): command(dataset, rest) for dataset, network, *_, rest in reversed(GRID)}
    rows = []
    order = ["cifar100", "stanford40", "digits", "imagenet"]
    wanted = dict.fromkeys([*COUNTED_EARLIER, *fill, *counted])
    for network, dataset in sorted(wanted, key=lambda k: (order.index(k[1]) if k[1] in order else len(order), k[0])):
        n = counted.get((network, dataset))
        earlier = COUNTED_EARLIER.get((network, dataset))
        rows.append(
            {
                "network": network,
                "data set": dataset,
                "classes": f"{CLASSES.get(dataset, '')}",
                "parameters": f"{n:,}" if n else "",
                "earlier study": f"{earlier:,}" if earlier else "",
                "to fill it": "" if n else fill.get((network, dataset), ""),
            }
        )
    return pd.DataFrame(rows)


def parameter_page(table: pd.DataFrame) -> str:
    """Markdown: how large each network is for each number of classes."""
    note = "*parameters* are counted in the networks that were trained; *earlier study*: what it reported."
    return page("Parameters", markdown(parameter_table(table)), note)


# What is no headline


def short_table(table: pd.DataFrame) -> pd.DataFrame:
    """One row per run that was shortened or did not follow the study's recipe; it says how."""
    other = table[table["changed"] != ""]
    return pd.DataFrame(
        {
            "data set": other["dataset"],
            "network": other["network"],
            "trained with": other["method"].map(trained_with),
            "seed": other["seed"],
            "epochs": other["epochs"],
            "shortened": other["short"].map({True: "yes", False: ""}),
            "not as in the recipe": other["changed"],
            "top-1 (%)": other["top1"],
            "best epoch (%)": other["best_top1"],
            "s/epoch": other["epoch_seconds"],
            "made on": [made_on(other.iloc[[i]]) for i in range(len(other))],
        }
    )


def short_page(table: pd.DataFrame) -> str:
    """Markdown: the runs that say how something behaves when cut short or changed, and nothing about the paper."""
    other = short_table(table)
    if other.empty:
        return page("Shortened and changed runs", "There are none: every finished run is in the results table.")
    note = (
        "These runs are **no results of the study**: each trained shorter, on fewer images or by changed parameters, "
        "as its row says. They cannot be compared with the published numbers, nor with each other unless they differ "
        "from the recipe in the same way."
    )
    return page("Shortened and changed runs", note, markdown(other))


# Pages


def page(title: str, *parts: str) -> str:
    return "\n\n".join([f"# {title}", *(part.strip() for part in parts)]) + "\n"


def show(text: str, path: Path):
    """Keep a page at `path`, atomically, and return what a notebook shows of it: all but its title.

    Raises InputError if it cannot be written.
    """
    from IPython.display import Markdown

    write_atomically(path, text)
    return Markdown(text.split("\n", 1)[1])
