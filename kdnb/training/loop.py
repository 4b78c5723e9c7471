"""The training loop: `train` starts or continues a run, on any device."""

import json
import math
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace

import numpy as np
import torch
from tqdm import tqdm

from kdnb.device import environment, oom_as_input_error, pick_compile, pick_device, set_threads
from kdnb.errors import InputError
from kdnb.models import blocks
from kdnb.progress import StopButton, bar, count, epoch_line
from kdnb.runs.checkpoint import drop_checkpoints, load_checkpoint, save_checkpoint
from kdnb.runs.config import check_config_matches, make_config, set_aside
from kdnb.runs.files import write_atomically
from kdnb.runs.folder import write_history
from kdnb.runs.lock import locked
from kdnb.runs.run import Run
from kdnb.training.outputs import make_result, record_fallback, write_config, write_weights
from kdnb.training.setup import TrainingSetup, build_setup, check, load_images
from kdnb.training.step import Engine, evaluate
from kdnb.training.tracking import TRACKERS

CHECKPOINT_SECONDS = 180  # between checkpoints inside an epoch; every epoch ends with one
CHECK_SECONDS = 5  # between checks that the loss is finite: each waits for the device


class Interrupted(InputError):
    """Training was stopped, by a person or by its deadline. Everything is saved."""


@oom_as_input_error()
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
        log(f"{run.name}: finished before, top-1 {run.result['top1']:.2f} %")
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


def log_setup(run: Run, setup: TrainingSetup, log: Callable[[str], None]) -> None:
    """Log what is not visible in a run's parameters: which teacher, and what it cannot serve."""
    if setup.distiller.teacher is not None and run.teacher_weights_hash != "trained":
        log(f"its teacher: {setup.teacher}; it sees {setup.teacher_images}")
    images = setup.train.images
    if images.unlabelled:
        names = ", ".join(setup.distiller.label_losses) or "no loss"
        log(f"{images.unlabelled:,} of {len(images):,} images have no label: left out by {names}")
    if left_out := setup.distiller.left_out:
        names = ", ".join(left_out)
        log(f"left out: {names}, which compares predictions; the teacher has not these classes")
    if setup.same_classes_assumed:
        log(
            "its teacher's weights do not name their classes: since there are as many as in the "
            "data set, they are assumed to be the same"
        )


class Training:
    """A run in training; see `train`."""

    def __init__(self, run: Run, setup: TrainingSetup, log: Callable[[str], None], compiled: bool):
        self.run = run
        self.setup = setup
        self.log = log
        self.tracker = TRACKERS[run.log](run)
        device = setup.train.device
        machine = environment(str(device)) | {
            "threads": torch.get_num_threads(),
            "compile": compiled,
        }
        compiled = write_config(run, setup, machine)
        self.engine = Engine(setup.distiller, run, device, compiled)
        self.epoch = 0  # finished epochs
        self.step = 0  # finished steps of the next epoch
        self.seconds = 0.0  # spent on these steps
        self.saved = "there is no checkpoint yet"
        self.rows: list[dict] = []  # of metrics.csv, one per epoch
        self.means: dict[str, list[torch.Tensor]] = {}  # the losses' running means, one per epoch
        self.axes: dict[str, np.ndarray] = {}  # names and shapes of the blocks, the axes of these
        if setup.distiller.teacher is not None:
            sizes = {"teacher": setup.teacher_images.image_size, "student": run.image_size}
            for role, size in sizes.items():
                network_blocks = blocks(getattr(setup.distiller, role), size)
                names = [block.name for block in network_blocks]
                shapes = [block.shape for block in network_blocks]
                self.axes[f"{role}.blocks"] = np.array(names)
                self.axes[f"{role}.shapes"] = np.array(shapes)

    def go(self, deadline: float) -> None:
        """Train to the end, from the checkpoint if there is one. Raises Interrupted."""
        epochs = self.run.epochs
        steps = len(self.setup.train)
        with (
            StopButton(deadline) as stop,
            bar(epochs * steps, "epoch", "step") as progress,
            closing(self.engine),
            closing(self.tracker),
        ):
            self.resume()
            self.log(f"{self.run.name}: {count(epochs, 'epoch')} of {count(steps, 'step')}")
            while self.epoch < epochs:
                progress.n = progress.last_print_n = self.epoch * steps + self.step
                progress.set_description(f"epoch {self.epoch + 1}/{epochs}")
                self.train_epoch(stop, progress)
                self.log(epoch_line(self.rows[-1], epochs))
                self.tracker.epoch(self.rows[-1])
        self.finish()
        if stop.requested:  # while the last epoch was tested
            raise Interrupted(
                f"stopped; {self.run.name} is finished, and nothing that follows was begun"
            )

    def lr_at(self, step: int) -> float:
        """The learning rate of a step of the current epoch."""
        epoch = self.epoch + step / len(self.setup.train)
        return self.run.preset.lr_at(epoch, self.run.epochs, self.run.lr)

    def train_epoch(self, stop: StopButton, progress: tqdm) -> None:
        """Train the rest of the current epoch, test, and save a checkpoint. Raises Interrupted."""
        if not self.step:
            self.engine.start_epoch(self.epoch)
        seconds_before = self.seconds
        started = saved = checked = time.perf_counter()
        for batch in self.setup.train.epoch(self.epoch, self.step):
            self.engine.set_lr(self.lr_at(self.step))
            self.engine(batch)
            self.step += 1
            progress.update()
            now = time.perf_counter()
            if now - checked > CHECK_SECONDS:
                self.check_finite()
                checked = now
            if stop.pressed or now - saved > CHECKPOINT_SECONDS:
                self.check_finite()
                self.seconds = seconds_before + now - started
                self.save()
                saved = time.perf_counter()
                if stop.pressed:
                    raise Interrupted(
                        f"stopped after step {self.step} of epoch {self.epoch + 1}; "
                        "run it again to go on from there"
                    )
        self.check_finite()
        tested = evaluate(self.setup.distiller.student, self.setup.test, self.run.precision)
        row = {"epoch": self.epoch + 1, "lr": self.lr_at(0)}
        row |= {f"train_{name}": value for name, value in self.engine.epoch_means().items()}
        row |= {f"test_{name}": value for name, value in tested.items()}
        row["seconds"] = seconds_before + time.perf_counter() - started
        self.rows.append(row)
        for name, mean in self.setup.distiller.means().items():
            self.means.setdefault(name, []).append(mean.cpu())
        self.epoch += 1
        self.step = 0
        self.seconds = 0.0
        self.save()

    def check_finite(self) -> None:
        """Raises InputError if a loss of this epoch was not finite. Waits for the device."""
        if step := self.engine.first_nonfinite_step():
            raise InputError(
                f"the loss is no longer finite in epoch {self.epoch + 1}, step {step}; "
                f"{self.saved}; a lower lr (now {self.run.lr}) or precision float32 may help"
            )

    def save(self) -> None:
        """Save a checkpoint, then metrics.csv and history.npz."""
        if self.engine.fell_back:
            record_fallback(self.run)
        state = self.engine.state() | {
            "epoch": self.epoch,
            "step": self.step,
            "seconds": self.seconds,
            "rows": self.rows,
            "means": self.means,
        }
        save_checkpoint(self.run.folder, state)
        self.write_history()

    def write_history(self) -> None:
        """Write metrics.csv and history.npz as they belong to the checkpoint."""
        self.saved = f"the checkpoint after epoch {self.epoch}, step {self.step} is available"
        arrays = {name: torch.stack(means).float().numpy() for name, means in self.means.items()}
        if arrays:
            arrays |= self.axes
        write_history(self.run.folder, self.rows, arrays)

    def resume(self) -> None:
        """Continue from the checkpoint, if there is one."""
        state = load_checkpoint(self.run.folder)
        if state is None:
            return
        self.engine.load(state)
        self.epoch, self.step, self.seconds = state["epoch"], state["step"], state["seconds"]
        self.rows, self.means = state["rows"], state["means"]
        if self.step:
            self.setup.distiller.start_epoch(self.epoch)
        self.write_history()
        self.log(f"{self.run.name}: resuming after epoch {self.epoch}, step {self.step}")

    def finish(self) -> None:
        """Write the weights, then result.json, which marks the run as finished."""
        folder = self.run.folder
        write_weights(self.run, self.setup, self.engine.trainable, self.rows[-1]["test_top1"])
        result = make_result(self.rows, self.setup)
        write_atomically(folder / "result.json", json.dumps(result, indent=2))
        drop_checkpoints(folder)
