"""`train` starts or continues a run, on any device."""

import math
from collections.abc import Callable
from dataclasses import replace

import torch

from kdnb.device import pick_compile, pick_device, set_threads, system_errors
from kdnb.progress import count, percent
from kdnb.runs.config import check_config_matches, make_config, set_aside
from kdnb.runs.lock import locked
from kdnb.runs.run import Run
from kdnb.training.log import log_setup
from kdnb.training.loop import Training
from kdnb.training.setup import build_setup, check, load_images


@system_errors()
def train(run: Run, log: Callable[[str], None] = print, deadline: float = math.inf) -> Run:
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
    set_threads(run.threads)
    images = None
    if run.rerun or not run.done:
        images = load_images(run)
        run = replace(run, data_hash="")  # the data may have been downloaded, or changed, just now
    if run.done and not run.rerun:
        check_config_matches(run, make_config(run))
        top1 = percent(run.result["top1"], run.result["test_images"])
        log(f"{run.name}: finished before, top-1 {top1} %")
        return run
    if run.teacher_run is not None and not run.teacher_run.done:
        check(run, images)
        teacher = run.teacher_run
        log(f"its teacher is trained first, for {count(teacher.epochs, 'epoch')}: {teacher.name}")
        train(run.teacher_run, log, deadline)
    device = pick_device(run.device)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(run.seed)
        setup = build_setup(run, images)  # before the folder is made: it may fail
        log_setup(run, setup, log)
        pixels = run.epochs * len(setup.train.images) * run.image_size**2
        compiled = pick_compile(run.compile, device, run.precision, pixels)
        if run.rerun:
            run = set_aside(run, log)
        with locked(run.folder):
            if not run.done:  # another process may have finished it just now
                Training(run, setup, log, compiled).go(deadline)
    return run
