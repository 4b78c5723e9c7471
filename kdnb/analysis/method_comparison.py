"""A comparison of methods with the same data set and networks, for methods.ipynb."""

from collections.abc import Mapping

import pandas as pd

from kdnb.errors import InputError
from kdnb.losses.mix import METHODS, split_list
from kdnb.progress import bar, count, ignore, percent
from kdnb.results.curves import style_number
from kdnb.results.differences import method_differences
from kdnb.results.frame import run_row
from kdnb.results.grouping import is_full_recipe
from kdnb.results.order import method_order
from kdnb.results.published import append_published
from kdnb.results.tables import method_table, teacher_row
from kdnb.runs import parameters
from kdnb.runs.grid import applicable_methods, grid
from kdnb.runs.run import Run
from kdnb.training.setup import check, load_images
from kdnb.training.train import train

DEFAULTS = {"methods": "kd,dkd,at,crd,afd", "seeds": 2}  # parameters that Run does not have


def runs_from_notebook(namespace: Mapping) -> dict[str, list[Run]]:
    """The runs that the parameters of methods.ipynb describe: {method: a run per seed}.

    The first method is "none", the baseline; all have the order of the result tables.

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
    order = dict(zip(runs_by_method, method_order(runs_by_method), strict=True))
    return dict(sorted(runs_by_method.items(), key=lambda item: order[item[0]]))


def check_all(runs: list[Run]) -> None:
    """Raises InputError if one of the runs, which share their images, cannot be trained."""
    if not runs:
        return
    images = load_images(runs[0])
    for run in runs:
        check(run, images)


def train_all(runs: Mapping[str, list[Run]]) -> None:
    """Train the runs one after the other, under a bar of all; prints a line per run.

    Runs that were finished before are counted in one line. Raises what `train` raises.
    """
    everything = [run for method_runs in runs.values() for run in method_runs]
    finished = [run for run in everything if run.done and not run.rerun]
    for run in finished:
        train(run, log=ignore)  # checks that it is this training
    if finished:
        print(f"{len(finished)} of {count(len(everything), 'run')} finished before")
    missing = [run for run in everything if run not in finished]
    teachers = {run.teacher_run: None for run in missing if run.teacher_run}
    missing = [teacher for teacher in teachers if not teacher.done] + missing
    with bar(len(missing), "runs", "run") as progress:
        for run in missing:
            run = train(run, log=ignore)
            result = run.result
            top1 = percent(result["top1"], result["test_images"])
            seconds = f"{result['total_seconds']:.0f} s"
            print(
                f"{run.student}, {run.label}, seed {run.seed}: top-1 {top1} %, {seconds}",
                flush=True,
            )
            progress.update()


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


def table(runs: Mapping[str, list[Run]], accuracies: pd.DataFrame) -> pd.DataFrame:
    """A row per method over its seeds, and a last row for the teacher.

    accuracies: as the function of this name returns them.
    """
    first_seeds = [method_runs[0] for method_runs in runs.values()]
    taught = next(run for run in first_seeds if run.teacher)
    return method_table(own_runs(accuracies), teacher_row(taught))


def differences(accuracies: pd.DataFrame) -> pd.DataFrame:
    """Each method's difference to labels only, seed by seed: `method_differences` of the runs."""
    return method_differences(own_runs(accuracies))


def own_runs(accuracies: pd.DataFrame) -> pd.DataFrame:
    """The rows of runs, without published accuracies."""
    return accuracies[accuracies["study"] == "this study"]


def title(runs: Mapping[str, list[Run]]) -> str:
    """What the runs have in common, and the number of seeds."""
    method_runs = max(runs.values(), key=lambda runs: bool(runs[0].teacher))
    dataset, student, _, *parts, _ = method_runs[0].name_parts(" ")  # without method and seed
    seeds = f"seed {method_runs[0].seed}"
    if len(method_runs) > 1:
        seeds = f"{len(method_runs)} seeds"
    return ", ".join([dataset, student, *parts, seeds])
