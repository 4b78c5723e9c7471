"""`train` starts or continues a run, on any device; `train_together` several, side by side."""

import math
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import cache, partial
from typing import NamedTuple

import torch
from torch import nn

from kdnb.data import Images
from kdnb.data.loader import Loader
from kdnb.device import pick_compile, pick_device, set_threads, system_errors
from kdnb.errors import InputError
from kdnb.progress import StopButton, bar, count, percent
from kdnb.runs.config import check_config_matches, make_config, set_aside
from kdnb.runs.lock import locked
from kdnb.runs.run import Run
from kdnb.training.lockstep import train_in_lockstep
from kdnb.training.log import log_setup
from kdnb.training.loop import Interrupted, Training
from kdnb.training.setup import build_setup, check, load_images, load_splits
from kdnb.training.teacher import load_teacher

Log = Callable[[str], None]


def train(run: Run, log: Log = print, deadline: float = math.inf) -> Run:
    """Train a run, and first the teacher that it needs; returns the finished run.

    A finished run is only read. An interrupted one continues from its last checkpoint; on a CPU it
    ends with the same bits, if its steps are compiled in both cases or in none.

    Args:
        run: what to train.
        log: called with a line per epoch, and with what happens otherwise.
        deadline: the time.monotonic() at which to stop, after one step at least.

    Raises InputError for missing data or weights, a loss that is not finite, too little GPU memory,
    and a folder that cannot be written or holds another run; Interrupted when it is stopped.
    """
    (outcome,) = train_together([run], log, deadline)
    if not isinstance(outcome, Exception):
        return outcome
    try:
        raise outcome
    finally:
        del outcome  # its traceback refers to this frame: a cycle, which would keep the networks


@contextmanager
def settings_restored() -> Iterator[None]:
    """A context that leaves torch's settings for the whole process as they were."""
    threads, benchmark = torch.get_num_threads(), torch.backends.cudnn.benchmark
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.backends.cudnn.benchmark = benchmark


@settings_restored()
def train_together(
    runs: Sequence[Run], log: Log = print, deadline: float = math.inf
) -> list[Run | Exception]:
    """Train several runs in one process, in lockstep, and first the teachers that they need.

    Each has its own folder and checkpoints, and can be continued alone. On a CPU it writes what it
    writes alone, to the bit. A GPU makes their steps in parallel, and runs a teacher that they have
    in common once for all. A run that fails leaves the others going; a stop stops all.

    Args: as of `train`, for each of the runs.

    Returns:
        For each run, the finished run or the error that ended it, of those that `train` raises.
    """
    outcomes: dict[int, Run | Exception] = {}
    logs = [log]
    if len(runs) > 1:
        logs = [partial(log_with_name, name, log) for name in short_names(runs)]

    def fail(i: int, error: Exception) -> None:
        outcomes[i] = error
        if len(runs) > 1 and not isinstance(error, Interrupted):
            kind = "" if isinstance(error, InputError) else f"{type(error).__name__}: "
            logs[i](f"failed: {kind}{error}")

    load = cache(load_splits)
    waiting: dict[int, Prepared] = {}
    for i, run in enumerate(runs):
        try:
            with system_errors():
                prepared = prepare(run, load, logs[i], deadline)
        except Interrupted as stopped:  # while a teacher was trained
            return [outcomes.pop(i, stopped) for i in range(len(runs))]
        except Exception as error:
            fail(i, error)
        else:
            if prepared.images is None:
                outcomes[i] = prepared.run
            else:
                waiting[i] = prepared
    devices = {each.device for each in waiting.values() if each.device.type == "cuda"}
    parts: dict[tuple, Loader | nn.Module] = {}
    members: dict[Training, tuple[int, ExitStack]] = {}

    def begin(i: int, prepared: Prepared, stack: ExitStack) -> None:
        try:
            with system_errors():
                training = start(prepared, parts, logs[i], stack, len(waiting))
        except Exception as error:
            stack.close()
            fail(i, error)
            clear_frames(error)
        else:
            if training is None:
                stack.close()
                outcomes[i] = prepared.run
            else:
                members[training] = i, stack

    def end(training: Training, error: Exception | None) -> None:
        i, stack = members.pop(training)
        stack.close()
        outcomes[i] = training.run
        if error:
            fail(i, error)
            if members:
                clear_frames(error)

    with torch.random.fork_rng(devices), ExitStack() as everything:
        for i, prepared in waiting.items():
            begin(i, prepared, everything.enter_context(ExitStack()))
        total = sum(training.batch_count for training in members)
        unit = "batch of two views" if any(t.setup.train.views == 2 for t in members) else "batch"
        if members:
            with StopButton(deadline) as stop, bar(total, "epoch", unit) as progress:
                train_in_lockstep([*members], stop, progress, end)
    return [outcomes.pop(i) for i in range(len(runs))]  # frames of an error may refer to outcomes


def clear_frames(error: BaseException | None) -> None:
    """Clear the frames of an error and of its causes: they hold memory that other runs may need.

    A frame refers to that of its caller, which is cleared, too.
    """
    while error:
        for frame, _ in traceback.walk_tb(error.__traceback__):
            with suppress(RuntimeError):  # of a function that has not returned
                while frame:
                    frame.clear()
                    frame = frame.f_back
        error = error.__cause__ or error.__context__


class Prepared(NamedTuple):
    """A run before its networks are built; images: None if it is finished."""

    run: Run
    images: tuple[Images, Images] | None
    device: torch.device | None = None


def prepare(run: Run, load: Callable, log: Log, deadline: float) -> Prepared:
    """Load the images of a run, and train its teacher if that is to be trained first."""
    set_threads(run.threads)
    images = None
    if run.rerun or not run.done:
        images = load_images(run, load)
        run = replace(run, data_hash="")  # the data may have been downloaded, or changed, just now
    if run.done and not run.rerun:
        check_config_matches(run, make_config(run))
        top1 = percent(run.result["top1"], run.result["test_images"])
        log(f"{run.name}: finished before, top-1 {top1} %")
        return Prepared(run, None)
    if run.teacher_run is not None and not run.teacher_run.done:
        check(run, images)
        teacher = run.teacher_run
        log(f"its teacher is trained first, for {count(teacher.epochs, 'epoch')}: {teacher.name}")
        train(run.teacher_run, partial(log_with_name, "teacher", log), deadline)
    return Prepared(run, images, pick_device(run.device))


def start(
    prepared: Prepared,
    parts: dict[tuple, Loader | nn.Module],
    log: Log,
    stack: ExitStack,
    together: int,
) -> Training | None:
    """Build the networks of a run and lock its folder; None if it has been finished meanwhile.

    Args:
        prepared: the run.
        parts: what the runs have in common; what is missing is added.
        log: of `train`.
        stack: unlocks the folder when it is closed.
        together: number of runs that are trained in this process.
    """
    run, images, device = prepared
    set_threads(run.threads)
    torch.manual_seed(run.seed)
    teacher = None
    if run.teacher:
        teacher = load_teacher(run)
        key = teacher.about["network"], teacher.about["sha256"], run.image_size, run.teacher_size
        teacher = replace(teacher, model=parts.setdefault((*key, device), teacher.model))
    setup = build_setup(run, images, teacher)  # before the folder is made: it may fail
    train_batches, test_batches = (
        parts.setdefault(each.key, each) for each in (setup.train, setup.test)
    )
    setup = setup._replace(train=train_batches, test=test_batches)
    log_setup(run, setup, log)
    pixels = run.epochs * len(setup.train.images) * run.image_size**2
    compiled = pick_compile(run.compile, device, run.precision, pixels)
    if run.rerun:
        run = set_aside(run, log)
    stack.enter_context(locked(run.folder))
    return None if run.done else Training(run, setup, log, compiled, together)


def short_names(runs: Sequence[Run]) -> list[str]:
    """Short names of some runs that tell them apart: seeds, methods, or both, otherwise `name`."""
    for describe in ("seed {0.seed}", "{0.label}", "{0.label}, seed {0.seed}"):
        names = [describe.format(run) for run in runs]
        if len({*names}) == len(runs):
            return names
    return [run.name for run in runs]


def log_with_name(name: str, log: Log, line: str) -> None:
    log(f"{name}: {line}")
