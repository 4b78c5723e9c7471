"""The runs on disk: which there are, what they take, and how they are deleted."""

import contextlib
import os
import shutil
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np

from kdnb.errors import InputError
from kdnb.paths import expand_home
from kdnb.runs.files import read_columns
from kdnb.runs.folder import RunFolder
from kdnb.runs.lock import busy_message, locked
from kdnb.runs.stored_names import CHECKPOINT, PREVIOUS, REPLACED

DAY = 24 * 60 * 60  # seconds


@dataclass(frozen=True)
class StoredRun:
    """A run on disk.

    Attributes:
        path: its folder.
        state: finished; training; stopped after how many epochs; replaced: `rerun` moved it away;
            damaged.
        top1: accuracy in percent after the last tested epoch; NaN if there is none.
        seconds: of all epochs.
        nbytes: of its files.
    """

    path: Path
    state: str
    top1: float
    seconds: float
    nbytes: int

    @property
    def figures(self) -> list[Path]:
        """The figures that attention.ipynb saved of it, FIGURE-NAME.png in `figures/`."""
        folder = self.path.parent / "figures"
        return sorted(path for path in folder.glob("*.*") if path.stem.endswith(f"-{self.name}"))

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def checkpoints(self) -> list[Path]:
        """The checkpoints that an unfinished run resumes from."""
        paths = (self.path / name for name in (CHECKPOINT, PREVIOUS))
        return [path for path in paths if path.is_file()]

    @property
    def days(self) -> float:
        """Days since its newest checkpoint was written; 0 without one."""
        times = [path.stat().st_mtime for path in self.checkpoints]
        return (time.time() - max(times)) / DAY if times else 0.0


def stored_run(path: Path) -> StoredRun:
    """What is on disk of a run; a damaged one is an entry as well."""
    folder = RunFolder(path)
    nbytes = size_of(path)
    top1 = seconds = np.nan
    try:
        epochs = folder.config["run"]["epochs"]
        done = 0
        if (path / "metrics.csv").is_file():
            metrics = read_columns(path / "metrics.csv", ("epoch", "test_top1", "seconds"))
            done, seconds = len(metrics["epoch"]), metrics["seconds"].sum()
            tested = metrics["test_top1"][~np.isnan(metrics["test_top1"])]
            top1 = tested[-1] if len(tested) else np.nan
        state = f"stopped, epoch {done} of {epochs}"
        if folder.done:
            top1, state = folder.result["top1"], "finished"
        if path.parent.name == REPLACED:
            state = "replaced"
        elif busy_message(path):
            state = f"training, epoch {done} of {epochs}"
    except (InputError, KeyError, TypeError):
        state = "damaged"
    return StoredRun(path, state, float(top1), float(seconds), nbytes)


def stored_runs(outputs: Path, patterns: Sequence[str] = ("*",)) -> list[StoredRun]:
    """The runs in `runs/` and `replaced/` of an outputs folder, the newest last.

    Args:
        outputs: the outputs folder. Its records are no runs: they are never listed or deleted here.
        patterns: names, which may contain `*`, or paths of runs.

    Raises InputError for a pattern that no run has.
    """
    configs = [*outputs.glob("runs/*/config.json"), *outputs.glob(f"{REPLACED}/*/config.json")]
    folders = [config.parent for config in sorted(configs, key=lambda p: p.stat().st_mtime)]
    chosen: set[Path] = set()
    for pattern in patterns:
        resolved = Path(os.path.realpath(expand_home(pattern)))
        found = {
            folder
            for folder in folders
            if folder.resolve() == resolved or fnmatchcase(folder.name, pattern)
        }
        if not found and pattern != "*":
            raise InputError(
                f"run {pattern!r}: no such run in {outputs / 'runs'}; "
                "`python -m kdnb.runs list` names them"
            )
        chosen |= found
    return [stored_run(folder) for folder in folders if folder in chosen]


def delete(run: StoredRun) -> None:
    """Delete the folder of a run and its figures.

    The folder is renamed first, so that no half of a run is ever left. Raises InputError if a
    process is training it, and for a folder that cannot be written.
    """
    figures = run.figures
    target = run.path.with_name(f".deleted-{uuid.uuid4().hex[:8]}")
    with locked(run.path):
        try:
            os.rename(run.path, target)
        except OSError as error:
            raise InputError(f"cannot delete {run.path}: {error.strerror}") from None
    shutil.rmtree(target, ignore_errors=True)
    for figure in figures:
        with contextlib.suppress(OSError):
            figure.unlink()


def prunable(runs: Sequence[StoredRun], days: float) -> list[StoredRun]:
    """The runs that stopped at least so many days ago and have a checkpoint."""
    return [run for run in runs if run.checkpoints and run.days >= days]


def prune(run: StoredRun) -> None:
    """Delete the checkpoints of a run: if it is trained again, it starts from the first epoch.

    Raises InputError if a process is training it.
    """
    with locked(run.path):
        for path in run.checkpoints:
            path.unlink()


def size_of(path: Path) -> int:
    """The bytes of the files below a folder, or of a file; 0 if it is missing."""
    if path.is_file():
        return path.stat().st_size
    total = 0
    for folder, _, names in os.walk(path):
        for name in names:
            with contextlib.suppress(OSError):  # a process has just renamed it
                total += os.lstat(os.path.join(folder, name)).st_size
    return total


def answer_files(folder: Path, days: float = 0) -> list[Path]:
    """The files of teachers' answers in a folder that were not opened for so many days."""
    before = time.time() - days * DAY
    return sorted(path for path in folder.glob("*.answers") if path.stat().st_mtime <= before)


def allocated(path: Path) -> int:
    """The bytes on disk of a file, of which most may be empty; 0 if it is missing."""
    if not path.is_file():
        return 0
    status = path.stat()
    # In blocks of 512 bytes, whatever the file system's are; Windows does not say.
    return 512 * status.st_blocks if hasattr(status, "st_blocks") else status.st_size


def disk_use(outputs: Path, cache: Path, answers: Path) -> dict[str, tuple[int, Path]]:
    """{what: (bytes, where)} of runs, their checkpoints and figures, and caches.

    answers: the folder of the teachers' answers, which is in the folder `cache`.
    """
    runs = stored_runs(outputs)
    of_checkpoints = sum(size_of(path) for run in runs for path in run.checkpoints)
    folders = {
        "runs": outputs / "runs",
        "runs that rerun moved away": outputs / REPLACED,
        "figures of runs": outputs / "runs" / "figures",
        "decoded photographs": cache,
    }
    use = {what: (size_of(folder), folder) for what, folder in folders.items()}
    use["decoded photographs"] = size_of(cache) - size_of(answers), cache
    use["of these, checkpoints"] = of_checkpoints, outputs / "runs"
    use["answers of teachers"] = sum(map(allocated, answer_files(answers))), answers
    first = "runs", "of these, checkpoints"
    return {what: use[what] for what in (*first, *(what for what in use if what not in first))}
