"""A comparison of methods with the same data set and networks, for methods.ipynb."""

from collections.abc import Mapping

import pandas as pd

from kdnb.errors import InputError
from kdnb.losses.mix import METHODS, split_list
from kdnb.results.curves import style_number
from kdnb.results.frame import run_row
from kdnb.results.grouping import is_full_recipe
from kdnb.results.published import append_published
from kdnb.runs import parameters
from kdnb.runs.grid import applicable_methods, grid
from kdnb.runs.run import Run
from kdnb.training.setup import check, load_images

DEFAULTS = {"methods": "kd,dkd,at,crd,afd", "seeds": 2}  # parameters that Run does not have


def runs_from_notebook(namespace: Mapping) -> dict[str, list[Run]]:
    """The runs that the parameters of methods.ipynb describe: {method: a run per seed}.

    The first method is "none", the baseline.

    Args:
        namespace: the notebook's `globals()`.

    Raises InputError for runs that cannot be trained, and if no method uses a teacher.
    """
    known = DEFAULTS | Run.parameters()
    del known["method"], known["seed"]
    given = DEFAULTS | parameters.from_notebook(namespace, known)
    methods = parameters.check("methods", given.pop("methods"), DEFAULTS["methods"])
    seeds = parameters.check("seeds", given.pop("seeds"), DEFAULTS["seeds"])
    if seeds < 1:
        raise InputError("seeds is 0: it must be 1 or more")
    fixed = {"dataset": Run.dataset, "seed": range(seeds)} | given
    runs = grid(method=applicable_methods(["none", *split_list(methods)], **fixed), **fixed)
    if not any(run.teacher for run in runs):
        names = ", ".join(name for name in METHODS if name != "none")
        raise InputError(
            f"methods is {methods!r}: name one or more that its teacher can serve, of {names}"
        )
    check_all([run for run in runs if run.seed == 0 and not run.done])
    runs_by_method = {}
    for run in runs:
        runs_by_method.setdefault(run.label, []).append(run)
    return runs_by_method


def check_all(runs: list[Run]) -> None:
    """Raises InputError if one of the runs, which share their images, cannot be trained."""
    if not runs:
        return
    images = load_images(runs[0])
    for run in runs:
        check(run, images)


def accuracies(runs: Mapping[str, list[Run]]) -> pd.DataFrame:
    """A row per finished run, with the columns that plots expect.

    If all runs follow their preset to the end, published accuracies of the same trainings are
    appended.
    """
    rows = []
    for method, method_runs in runs.items():
        for run in method_runs:
            rows.append(run_row(run) | {"line": method, "order": style_number(method)})
    table = pd.DataFrame(rows)
    if is_full_recipe(table).all():
        return append_published(table)
    return table.assign(study="this study")


def title(runs: Mapping[str, list[Run]]) -> str:
    """What the runs have in common, and the number of seeds."""
    method_runs = max(runs.values(), key=lambda runs: bool(runs[0].teacher))
    dataset, student, _, *parts, _ = method_runs[0].name_parts(" ")  # without method and seed
    seeds = f"seed {method_runs[0].seed}"
    if len(method_runs) > 1:
        seeds = f"{len(method_runs)} seeds"
    return ", ".join([dataset, student, *parts, seeds])
