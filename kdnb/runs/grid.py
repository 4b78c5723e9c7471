"""Many runs: every combination of some parameters, and what a study makes of them, teachers first."""

from collections.abc import Collection
from copy import copy
from itertools import product

from kdnb.data import DATASETS
from kdnb.errors import InputError, choose
from kdnb.losses.mix import parse
from kdnb.models import PAIRS
from kdnb.runs.parameters import checked
from kdnb.runs.run import Run


def grid(**parameters) -> list[Run]:
    """A Run for every combination of the parameters that are lists (or tuples, ranges), each once.

    grid(dataset="cifar100", method=["none", "kd", "afd"], seed=range(5)); a teacher is each run's `teacher_run`. "none"
    beside a method with a teacher is that one's `baseline`, also where the student is what usually teaches.
    """
    several = {
        name: [*v] if isinstance(v, (list, tuple, range)) else [v] for name, v in parameters.items()
    }
    for name, values in several.items():
        choose("parameter", name, Run.parameters())
        if not values and name != "method":
            raise InputError(f"{name} is an empty list: it must have a value or more")
    runs, made = (
        {},
        {},
    )  # a seed decides nothing but itself: of thousands of runs, few have to be looked into
    for values in product(*several.values()):
        given = dict(zip(several, values, strict=True))
        seed = given.pop("seed", Run.seed)
        first = made[str(given)] = made.get(str(given)) or one(given, several.get("method", ()))
        run = copy(first)
        run._set(seed=checked("seed", seed, Run.seed), teacher_run=first.teacher_run)
        runs[run] = None
    return list(runs)


def one(given: dict, methods: Collection[str]) -> Run:
    """The run of some parameters, beside those of other methods."""
    run = Run(**given)
    if (
        run.method == "ce" and run.student == run.preset.teacher
    ):  # it would be trained as a teacher is
        others = (Run(**given | {"method": method}) for method in methods)
        return next((other.baseline for other in others if other.teacher), run)
    return run


def plan(
    datasets: list[str], methods: list[str], pairs: tuple[dict, ...] = ({},), **own
) -> list[Run]:
    """The runs of the grid, teachers first; a method that a data set's teacher cannot serve is said and left out.

    The method "teacher" stands for what teaches alone.
    """
    teachers, students = [], []
    for dataset, pair in product(datasets, pairs):
        fixed = {"dataset": dataset, **own, **pair}
        kept = served(methods, **fixed)
        one_seed = {
            **fixed,
            "seed": Run.seed,
            "method": ["afd" if m == "teacher" else m for m in kept],
        }
        teachers += [run.teacher_run for run in grid(**one_seed)]
        students += grid(method=[method for method in kept if method != "teacher"], **fixed)
    runs = list(dict.fromkeys([*filter(None, teachers), *students]))
    if not runs:
        raise InputError("nothing is left to run")
    return runs


def served(methods: list[str], **fixed) -> list[str]:
    """Those of some methods that the teacher of a grid can serve; the others are said. Raises InputError."""
    kept, fixed = [], {**fixed, "seed": Run.seed}  # any seed tells
    for method in methods:
        try:
            grid(method="afd" if method == "teacher" else method, **fixed)
            kept.append(method)
        except InputError as error:
            grid(method="afd", **fixed)  # a wrong parameter is no reason to go on without it,
            parse(method, DATASETS[fixed["dataset"]].preset.methods)  # nor is a misspelt method
            print(f"left out: {fixed['dataset']}, {method}: {error}")
    return kept


def pairs(names: list[str]) -> list[dict[str, str]]:
    """The teachers and students of `--pair`; without it, what leaves both to the data set."""
    if not names:
        return [{}]
    chosen = (
        PAIRS if names == ["all"] else [choose("pair", name, [*PAIRS, "all"]) for name in names]
    )
    return [dict(zip(("teacher", "student"), PAIRS[name], strict=True)) for name in chosen]
