"""Replicates of a run: the same training with other seeds, or with other methods."""

import glob
from functools import partial
from pathlib import Path

from kdnb.paths import file_name
from kdnb.results.frame import or_warn
from kdnb.runs.run import Run

# Fields that a replicate takes from the run in place of those that its config.json stores.
SHARED_PLACES = ("device", "threads", "data_root", "teacher_weights")


def seed_replicates(run: Run) -> list[Run]:
    """The finished runs in the same folder that differ from a run only in their seed, by seed.

    The run itself is included if it is finished. A folder that cannot be read is left out, with a
    warning: it may be damaged, or come from another version of kdnb.
    """
    pattern = f"{glob.escape(name_without_seed(run))}*/result.json"
    places = {name: getattr(run, name) for name in SHARED_PLACES}
    open_folder = partial(open_finished, **places)
    replicates = []
    for path in run.folder.parent.glob(pattern):
        candidate = or_warn("the seeds", open_folder, path.parent)
        if candidate and without_seed(candidate) == without_seed(run):
            replicates.append(candidate)
    return sorted(replicates, key=lambda replicate: replicate.seed)


def method_variants(run: Run) -> list[Run]:
    """The finished runs in the same folder that differ from a run in method, and maybe in seed."""
    start = file_name(f"{run.dataset}-{run.student}-".replace(" ", "").replace(":", ""))
    open_folder = partial(open_finished, **{name: getattr(run, name) for name in SHARED_PLACES})
    variants = []
    for path in sorted(run.folder.parent.glob(f"{glob.escape(start)}*/result.json")):
        candidate = or_warn("the methods", open_folder, path.parent)
        if candidate and candidate.method != run.method:
            same = without_seed(candidate) | {"method": run.method}
            variants += [candidate] * (same == without_seed(run))
    return variants


def name_without_seed(run: Run) -> str:
    """The start of a run's name that its replicates share.

    The readable part of a long name is cut, and may end before the seed or within it.
    """
    before, sign, _ = run.readable_name.rpartition("-seed=")
    return before if sign else run.readable_name


def without_seed(run: Run) -> dict[str, object]:
    """What is trained, apart from the seed."""
    return {name: value for name, value in run.identity.items() if name != "seed"}


def open_finished(folder: Path, **places) -> Run:
    """The run in a folder. Raises InputError if its config.json or result.json is damaged."""
    run = Run.open(folder, **places)
    _ = run.result
    return run
