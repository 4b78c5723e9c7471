"""A study: its runs are planned, trained on Dask, and put into results.ipynb."""

import argparse
import math
import shlex
import sys
from collections.abc import Sequence
from itertools import pairwise

from kdnb.device import system_errors
from kdnb.errors import InputError
from kdnb.paths import data_folder, output_folder
from kdnb.runs.config import check_config_matches, make_config, set_aside
from kdnb.runs.grid import parse_pairs, plan_study
from kdnb.runs.parameters import check
from kdnb.runs.plugins import load_plugins
from kdnb.runs.run import Run
from kdnb.study.cluster import cluster, run_all
from kdnb.study.commands import execute, papermill_command, train_command
from kdnb.study.fingerprints import Study
from kdnb.study.gpus import visible_gpus


@system_errors()
def run_study(options: argparse.Namespace) -> int:
    """Plan a study, train its runs and execute results.ipynb; returns the exit status.

    Raises InputError for bad arguments.
    """
    outputs = output_folder(options.outputs).absolute()
    parameters = {str(name): value for name, value in options.p}
    plugins = load_plugins(check("plugins", parameters.get("plugins", ""), ""))
    rerun = check("rerun", parameters.pop("rerun", False), False)
    pairs = parse_pairs(options.pair)
    check_no_option(parameters, pairs)
    gpus = len(visible_gpus())
    jobs = options.jobs
    if jobs is None:
        jobs = max(1, options.per_gpu * gpus)
    # A worker may have another default.
    data_root = data_folder(check("data_root", parameters.get("data_root", ""), "")).absolute()
    parameters["data_root"] = str(data_root)
    runs = plan_study(
        options.dataset,
        options.methods,
        pairs,
        seed=options.seeds,
        outputs=str(outputs),
        **parameters,
    )
    if rerun and not options.dry_run:
        teachers = {run.teacher_run for run in runs}
        runs = [run if run in teachers else set_aside(run) for run in runs]
    for run in runs:
        if run.done:
            if not options.dry_run:
                check_config_matches(run, make_config(run))
            print(f"finished  {run.folder}", flush=True)
    unfinished = [run for run in runs if not run.done]
    size = options.per_gpu
    if gpus and not options.scheduler:  # a few runs are spread over all GPUs
        size = min(size, max(1, math.ceil(len(unfinished) / gpus)))
    groups = group_runs(unfinished, size)
    for group in groups:
        print(f"to run    {shlex.join(train_command(group))}", flush=True)
    if options.dry_run:
        return 0
    failed = {}
    if groups:
        with cluster(options.scheduler, jobs) as client:
            data = dict.fromkeys(options.dataset, str(data_root))
            study = Study.create(options.per_gpu, outputs / "runs", data, plugins)
            failed = run_all(client, groups, study)
    parameters = {"outputs": outputs, "plugins": plugins}
    summary = papermill_command("results.ipynb", outputs / "results.ipynb", parameters)
    if error := execute(summary, outputs / "results.log", {}):
        failed["results.ipynb"] = error
    for name, error in failed.items():
        print(f"failed: {name}: {error}", file=sys.stderr)
    return 1 if failed else 0


def check_no_option(parameters: dict[str, object], pairs: list[dict[str, str]]) -> None:
    """Raises InputError for a parameter of -p that has an option, such as the seed."""
    with_option = {"dataset", "method", "seed", "outputs", *pairs[0]}
    if twice := with_option & parameters.keys():
        raise InputError(f"-p {min(twice)}: it has an option of its own")


def group_runs(runs: Sequence[Run], size: int) -> list[tuple[Run, ...]]:
    """Groups of runs that differ in their seed alone, which one process can train together.

    Each has at most `size` runs, and those of one kind are nearly equal. A group is in the place of
    its first run, so that teachers still come before their students.
    """
    kinds: dict[tuple, list[Run]] = {}
    for run in runs:
        kind = tuple(getattr(run, name) for name in Run.parameters() if name != "seed")
        kinds.setdefault(kind, []).append(run)
    groups = []
    for replicates in kinds.values():
        count = math.ceil(len(replicates) / size)
        ends = [len(replicates) * i // count for i in range(count + 1)]
        groups += [tuple(replicates[start:end]) for start, end in pairwise(ends)]
    places = {run: place for place, run in enumerate(runs)}
    return sorted(groups, key=lambda group: places[group[0]])
