"""Methods side by side, for methods.ipynb: one data set, one pair of networks, a list of methods, some seeds."""

from collections.abc import Mapping

import pandas as pd

from kdnb.errors import InputError
from kdnb.losses.mix import METHODS, split_list
from kdnb.results.curves import style_number
from kdnb.results.frame import is_full_recipe, run_row
from kdnb.results.published import append_published
from kdnb.runs import parameters
from kdnb.runs.grid import applicable_methods, grid
from kdnb.runs.run import Run
from kdnb.training.setup import check, load_images

OWN = {"methods": "kd,dkd,at,crd,afd", "seeds": 2}


def runs_from_notebook(namespace: Mapping) -> dict[str, list[Run]]:
    """{method: its runs, a seed each} that a notebook's `globals()` ask for, the student alone first.

    Raises InputError for runs that cannot be trained, and where none of them has a teacher.
    """
    known = OWN | {
        name: value for name, value in Run.parameters().items() if name not in ("method", "seed")
    }
    given = OWN | parameters.from_notebook(namespace, known)
    names, seeds = (
        parameters.check(name, given.pop(name), default) for name, default in OWN.items()
    )
    if seeds < 1:
        raise InputError("seeds is 0: it must be 1 or more")
    fixed = {"dataset": Run.dataset, "seed": range(seeds)} | given
    runs = grid(method=applicable_methods(["none", *split_list(names)], **fixed), **fixed)
    if not any(run.teacher for run in runs):
        known = ", ".join(name for name in METHODS if name != "none")
        raise InputError(
            f"methods is {names!r}: name one or more that its teacher can serve, of {known}"
        )
    if waiting := [run for run in runs if run.seed == 0 and not run.done]:
        images = load_images(waiting[0])
        for run in waiting:  # before the first is trained
            check(run, images)
    return {
        label: [run for run in runs if run.label == label]
        for label in dict.fromkeys(r.label for r in runs)
    }


def accuracies(runs: Mapping[str, list[Run]]) -> pd.DataFrame:
    """A row per finished run, and per published number of the same full-length training, as plots expect them."""
    rows = [
        run_row(run) | {"line": label, "order": style_number(label)}
        for label, several in runs.items()
        for run in several
    ]
    ours = pd.DataFrame(rows)
    return append_published(ours) if is_full_recipe(ours).all() else ours.assign(study="this study")


def title(runs: Mapping[str, list[Run]]) -> str:
    """What the runs have in common, and how many seeds they are."""
    run, *others = max(runs.values(), key=lambda several: bool(several[0].teacher))
    dataset, student, _, *words, _ = run.name_parts(" ")  # without method and seed
    return ", ".join(
        [dataset, student, *words, f"{1 + len(others)} seeds" if others else f"seed {run.seed}"]
    )
