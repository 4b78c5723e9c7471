"""The loop: `train` makes a run, from its first step or from its checkpoint. One code path for CPU, CUDA and MPS."""

import json
import math
import statistics
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace

import numpy as np
import torch
from safetensors.torch import save
from tqdm import tqdm

from kdnb.device import (
    environment,
    has_compiler,
    oom_as_input_error,
    pick_compile,
    pick_device,
    set_threads,
)
from kdnb.errors import InputError
from kdnb.models import blocks, parameter_count
from kdnb.progress import StopButton, bar, epoch_line
from kdnb.runs import folder as store
from kdnb.runs.lock import locked
from kdnb.runs.run import Run
from kdnb.training.setup import Ready, check, check_same, description, load_images, ready
from kdnb.training.step import Engine, evaluate

CHECKPOINT_SECONDS = 180  # between checkpoints inside an epoch; there is one at its end anyway
CHECK_SECONDS = 5  # between looks at whether the loss is finite: each makes an accelerator wait


class Interrupted(InputError):
    """Training was stopped by the person who started it, or its time is over; everything is kept."""


@oom_as_input_error()
def train(run: Run, say: Callable[[str], None] = print, until: float = math.inf) -> Run:
    """Train a run, and first the teacher that it needs; returns it, finished.

    A finished run is read. A broken-off one goes on at its last checkpoint; on a CPU, compiled alike, to the same bits.
    until: the time.monotonic() at which it stops by itself, after one step at least. Raises InputError for data or
    weights that are not there, a loss that is not finite, too little memory of a CUDA GPU, a folder that cannot be
    written or that holds another run, and Interrupted when the person watching or the clock stops it.
    """
    if not run.done:
        images = load_images(run)
        run = replace(
            run, data_id=""
        )  # a digest of what is there now: it may just have been downloaded, or changed
    if run.done:
        check_same(run, description(run))
        say(f"{run.name}: finished before, top-1 {run.result['top1']:.2f} %")
        return run
    if run.teacher_run is not None and not run.teacher_run.done:
        check(run, images)
        say(
            f"its teacher is trained first, {run.teacher_run.epochs} epochs: {run.teacher_run.name}"
        )
        train(run.teacher_run, say, until)
    set_threads(run.threads)
    device = pick_device(run.device)
    with torch.random.fork_rng(
        [device] if device.type == "cuda" else []
    ):  # of all GPUs torch would warn
        torch.manual_seed(run.seed)
        start = ready(run, images)  # before there is a folder: it may not be possible
        if start.distiller.teacher is not None and run.teacher_id != "trained":
            say(f"its teacher: {start.teacher}")
        if lost := start.distiller.left_out:
            say(
                f"left out: {', '.join(lost)}, which compares predictions; the teacher knows other classes"
            )
        if start.assumed:
            say("its teacher's weights do not name their classes: as many are taken for the same")
        pixels = run.epochs * len(start.train.images) * run.image_size**2
        compiled = pick_compile(run.compile, device, run.precision, pixels)
        with locked(run.folder):
            if not run.done:  # another process may have just finished it
                Training(run, start, say, compiled).go(until)
    return run


class Training:
    """A run that is on its way; see `train`."""

    def __init__(self, run: Run, start: Ready, say: Callable[[str], None], compiled: bool):
        self.run, self.start, self.say, device = run, start, say, start.train.device
        machine = environment(str(device)) | {
            "threads": torch.get_num_threads(),
            "compile": compiled,
        }
        self.engine = Engine(start.distiller, run, device, compiled=self.write_config(machine))
        self.epoch, self.step, self.seconds = (
            0,
            0,
            0.0,
        )  # finished epochs; steps and seconds into the next one
        self.kept = "no checkpoint: it was not far enough"
        self.rows, self.means = [], {}  # per epoch: of metrics.csv; running means of the losses
        self.axes = {}  # of those means: names and shapes of both networks' blocks
        for role in ("teacher", "student") if start.distiller.teacher is not None else ():
            names, shapes = zip(
                *blocks(getattr(start.distiller, role), run.image_size), strict=True
            )
            self.axes |= {f"{role}.blocks": np.array(names), f"{role}.shapes": np.array(shapes)}

    def write_config(self, machine: dict) -> bool:
        """Keep what is asked for and where it is computed, before the first step; whether steps are compiled.

        Raises InputError if the folder holds another run. One that goes on is compiled if it was when it began, unless
        compile is off.
        """
        path, asked, machines = (
            self.run.folder / "config.json",
            description(self.run, self.start),
            [machine],
        )
        where = {
            name: getattr(self.run, name)
            for name in ("student_weights", "teacher_weights", "data_root")
        }
        if path.is_file():
            check_same(self.run, asked)
            machines = self.run.config.get("machines") or machines
            last = machines[-1]
            if last["device_type"] == machine["device_type"]:
                machine["compile"] = (
                    last["compile"] and has_compiler() and self.run.compile != "off"
                )
            if {**machine, "started": last["started"]} != last:
                machines = [*machines, machine]
        config = {"format": 1} | asked | {"where": where, "machines": machines}
        store.write_atomically(path, json.dumps(config, indent=2))
        return machine["compile"]

    def go(self, until: float) -> None:
        epochs, steps = self.run.epochs, len(self.start.train)
        with (
            StopButton(until) as stop,
            bar(epochs * steps, "epoch", "step") as shown,
            closing(self.engine),
        ):
            self.resume()
            self.say(f"{self.run.name}: {epochs} epochs of {steps} steps")
            while self.epoch < epochs:
                shown.n = shown.last_print_n = self.epoch * steps + self.step
                shown.set_description(f"epoch {self.epoch + 1}/{epochs}")
                self.train_epoch(stop, shown)
                self.say(epoch_line(self.rows[-1], epochs))
        self.finish()
        if stop.requested:  # in the last epoch's test
            raise Interrupted(
                f"stopped; {self.run.name} is finished, and nothing that follows was begun"
            )

    def lr_at(self, step: int) -> float:
        """The learning rate of a step of the current epoch."""
        return self.run.preset.lr_at(
            self.epoch + step / len(self.start.train), self.run.epochs, self.run.lr
        )

    def train_epoch(self, stop: StopButton, shown: tqdm) -> None:
        if not self.step:
            self.engine.start_epoch(self.epoch)
        before, started = self.seconds, time.perf_counter()
        saved = checked = started
        for batch in self.start.train.epoch(self.epoch, self.step):
            self.engine.set_lr(self.lr_at(self.step))
            self.engine(batch)
            self.step += 1
            shown.update()
            now = time.perf_counter()
            if now - checked > CHECK_SECONDS:
                self.check_finite()
                checked = now
            if stop.pressed or now - saved > CHECKPOINT_SECONDS:
                self.check_finite()
                self.seconds = before + now - started
                self.save()
                saved = time.perf_counter()
                if stop.pressed:
                    where = f"after step {self.step} of epoch {self.epoch + 1}"
                    raise Interrupted(f"stopped {where}; run it again to go on from there")
        self.check_finite()
        tested = evaluate(self.start.distiller.student, self.start.test, self.run.precision)
        row = {"epoch": self.epoch + 1, "lr": self.lr_at(0)}
        row |= {f"train_{name}": value for name, value in self.engine.measured().items()}
        row |= {f"test_{name}": value for name, value in tested.items()}
        self.rows.append(row | {"seconds": before + time.perf_counter() - started})
        for name, mean in self.start.distiller.means().items():
            self.means.setdefault(name, []).append(mean.cpu())
        self.epoch, self.step, self.seconds = self.epoch + 1, 0, 0.0
        self.save()

    def check_finite(self) -> None:
        if step := self.engine.first_bad_step():
            raise InputError(
                f"the loss is no longer finite in epoch {self.epoch + 1}, step {step}; kept is {self.kept}; "
                f"a lower lr (now {self.run.lr}) or precision float32 may help"
            )

    def save(self) -> None:
        if self.engine.fell_back and (config := self.run.config)["machines"][-1]["compile"]:
            config["machines"][-1]["compile"] = False  # so that nobody who goes on tries again
            store.write_atomically(self.run.folder / "config.json", json.dumps(config, indent=2))
        place = {"epoch": self.epoch, "step": self.step, "seconds": self.seconds}
        store.save_checkpoint(
            self.run.folder, self.engine.state() | place | {"rows": self.rows, "means": self.means}
        )
        self.write_history()

    def write_history(self) -> None:
        """metrics.csv and history.npz, as they belong to the checkpoint; to the means, what their axes are."""
        self.kept = f"the checkpoint after epoch {self.epoch}, step {self.step}"
        arrays = {name: torch.stack(means).float().numpy() for name, means in self.means.items()}
        arrays |= self.axes if arrays else {}
        store.write_history(self.run.folder, self.rows, arrays)

    def resume(self) -> None:
        state = store.load_checkpoint(self.run.folder)
        if state is None:
            return
        self.engine.load(state)
        self.epoch, self.step, self.seconds = state["epoch"], state["step"], state["seconds"]
        self.rows, self.means = state["rows"], state["means"]
        if self.step:
            self.start.distiller.start_epoch(self.epoch)
        self.write_history()
        self.say(f"{self.run.name}: going on after epoch {self.epoch}, step {self.step}")

    def finish(self) -> None:
        """Keep what was trained, then the result, which marks the run as finished and ends its checkpoints."""
        last, best = self.rows[-1], max(self.rows, key=lambda row: row["test_top1"])
        distiller, folder, run = self.start.distiller, self.run.folder, self.run
        seconds = [row["seconds"] for row in self.rows]
        told = {
            "network": run.student,
            "dataset": run.dataset,
            "classes": self.start.train.images.classes,
        }
        told |= {"top1": last["test_top1"], "changes": run.departures, "method": run.label}
        for name, part in self.engine.trained.items():
            if state := {key: value.cpu().contiguous() for key, value in part.state_dict().items()}:
                store.write_atomically(
                    folder / f"{name}.safetensors", save(state, {"kdnb": json.dumps(told)})
                )
        result = {
            "top1": last["test_top1"],
            "top5": last["test_top5"],
            "best": {"epoch": best["epoch"], "top1": best["test_top1"], "top5": best["test_top5"]},
            "epoch_seconds": statistics.median(seconds),
            "total_seconds": sum(seconds),
            "parameters": parameter_count(distiller.student),
            "teacher_parameters": parameter_count(distiller.teacher)
            if distiller.teacher is not None
            else None,
            "train_images": len(self.start.train.images),
            "test_images": len(self.start.test.images),
        }
        store.write_atomically(folder / "result.json", json.dumps(result, indent=2))
        store.drop_checkpoints(folder)
