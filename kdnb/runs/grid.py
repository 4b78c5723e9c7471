"""Many runs: every combination of some parameters, and the runs of a study in their order."""

from collections.abc import Collection, Sequence
from copy import copy
from itertools import product

from kdnb.data import DATASETS, dataset_name
from kdnb.device import system_errors
from kdnb.errors import InputError, choose
from kdnb.losses.mix import parse
from kdnb.models import PAIRS
from kdnb.runs.parameters import check
from kdnb.runs.run import Run

TEACHER_ONLY = "teacher"  # in a study's list of methods: train the teacher alone


@system_errors()
def grid(**parameters) -> list[Run]:
    """A Run for every combination of the parameters that are lists, without duplicates.

        grid(dataset="cifar100", method=["none", "kd", "afd"], seed=range(5))

    A teacher is each run's `teacher_run`. The method "none" together with one that has a teacher is
    that run's `baseline`, also if the student is the network that the preset trains as a teacher.
    Raises InputError for an unknown or impossible parameter.
    """
    choices = {
        name: list(value) if isinstance(value, (list, tuple, range)) else [value]
        for name, value in parameters.items()
    }
    for name, values in choices.items():
        choose("parameter", name, Run.parameters())
        if not values and name != "method":
            raise InputError(f"{name} is an empty list: it must have a value or more")
    # Runs that differ in their seed alone are resolved once: a study may have thousands.
    resolved: dict[str, Run] = {}
    runs: dict[Run, None] = {}
    for values in product(*choices.values()):
        fixed = dict(zip(choices, values, strict=True))
        seed = fixed.pop("seed", Run.seed)
        if str(fixed) not in resolved:
            resolved[str(fixed)] = resolve(fixed, choices.get("method", ()))
        first = resolved[str(fixed)]
        run = copy(first)
        run.set_fields(seed=check("seed", seed, Run.seed), teacher_run=first.teacher_run)
        runs[run] = None
    return list(runs)


def resolve(parameters: dict, methods: Collection[str]) -> Run:
    """The run of some parameters, in a grid that contains these methods."""
    run = Run(**parameters)
    if run.method == "ce" and run.student == run.preset.teacher:
        # Alone, it would be trained by the teacher's recipe; as a baseline it needs the student's.
        for method in methods:
            other = Run(**parameters | {"method": method})
            if other.teacher:
                return other.baseline
    return run


def plan_study(
    datasets: Sequence[str], methods: Sequence[str], pairs: Sequence[dict] = ({},), **parameters
) -> list[Run]:
    """The runs of a study, teachers first, without duplicates.

    A method that a data set's teacher cannot serve is left out, with a printed line. The method
    "teacher" stands for training the teacher alone. Raises InputError if no run is left.
    """
    teachers: list[Run | None] = []
    students: list[Run] = []
    for dataset, pair in product(datasets, pairs):
        fixed = {"dataset": dataset, **parameters, **pair}
        applicable = applicable_methods(methods, **fixed)
        with_teachers = ["afd" if method == TEACHER_ONLY else method for method in applicable]
        teachers += [
            run.teacher_run for run in grid(**{**fixed, "seed": Run.seed, "method": with_teachers})
        ]
        students += grid(
            method=[method for method in applicable if method != TEACHER_ONLY], **fixed
        )
    runs = list(dict.fromkeys([*filter(None, teachers), *students]))
    if not runs:
        raise InputError("nothing is left to run")
    return runs


def applicable_methods(methods: Sequence[str], **parameters) -> list[str]:
    """The methods that a grid's teacher can serve; a line is printed for each of the others.

    Raises InputError for a misspelt method and for a parameter that is wrong whatever the method.
    """
    applicable = []
    fixed = {**parameters, "seed": Run.seed}  # the seed does not matter here
    for method in methods:
        try:
            grid(method="afd" if method == TEACHER_ONLY else method, **fixed)
            applicable.append(method)
        except InputError as error:
            grid(method="afd", **fixed)  # raises if it is a parameter that is wrong
            preset = DATASETS[dataset_name(fixed["dataset"])].preset
            parse(method, preset.methods)  # raises if it is misspelt
            print(f"left out: {fixed['dataset']}, {method}: {error}")
    return applicable


def parse_pairs(names: Sequence[str]) -> list[dict[str, str]]:
    """The teacher and student of each pair in `--pair`; without names, the preset's pair.

    Raises InputError for an unknown pair.
    """
    if not names:
        return [{}]
    known = [choose("pair", name, [*PAIRS, "all"]) for name in names]
    chosen = [PAIRS[name] for name in (PAIRS if "all" in known else dict.fromkeys(known))]
    return [{"teacher": teacher, "student": student} for teacher, student in chosen]
