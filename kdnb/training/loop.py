"""The training loop: the steps, tests and checkpoints of one run."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import closing

import torch
from torch import Tensor
from tqdm import tqdm

from kdnb.device import environment
from kdnb.errors import InputError
from kdnb.progress import StopButton, skip
from kdnb.runs.checkpoint import drop_checkpoints, load_checkpoint, save_checkpoint
from kdnb.runs.run import Run
from kdnb.training.evaluation import evaluate
from kdnb.training.history import History, check_history
from kdnb.training.log import cost_line, epoch_line
from kdnb.training.outputs import record_fallback, write_config, write_result, write_weights
from kdnb.training.setup import TrainingSetup
from kdnb.training.step import Engine
from kdnb.training.teacher_cache import open_cache
from kdnb.training.tracking import TRACKERS

CHECKPOINT_SECONDS = 180  # between checkpoints inside an epoch
# An epoch ends with a checkpoint if the last one is so old; on other devices in any case. A GPU
# makes an epoch of CIFAR in a second.
EPOCH_CHECKPOINT_SECONDS = {"cuda": 20}
CHECK_SECONDS = 5  # between checks that the loss is finite: each waits for the device


class Interrupted(InputError):
    """Training was stopped, by a person or by its deadline. Everything is saved."""


class Training:
    """A run in training; see `train_together`.

    Attributes:
        batches: the source of the inputs of its steps.
        engine: makes the steps.
    """

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
        compiled = write_config(run, setup, machine, log)
        distiller = setup.distiller.to(device, memory_format=torch.channels_last)
        self.batches = open_cache(run, distiller, setup.train, compiled, log) or setup.train
        self.engine = Engine(distiller, run, device, compiled, self.batches)
        self.epoch = 0  # finished epochs
        self.step = 0  # finished steps of the next epoch
        self.seconds = 0.0  # spent on these steps
        self.saved = "there is no checkpoint yet"
        self.saved_at = time.perf_counter()
        self.history = History(run, setup)

    @property
    def batch_count(self) -> int:
        """The number of training and test batches of the run."""
        return self.batches_before(self.run.epochs)

    def steps(self, stop: StopButton, progress: tqdm) -> Iterator[dict[str, Tensor]]:
        """Yields the inputs of each step that is left, which the caller makes by the engine.

        It begins from the checkpoint if there is one. Between steps it tests and saves, and at the
        end it writes the results. Raises Interrupted.
        """
        epochs = self.run.epochs
        with closing(self.engine), closing(self.tracker):
            self.resume()
            skip(progress, self.batches_before(self.epoch) + self.step)
            self.log(f"{self.run.name}: {cost_line(self.setup, epochs)}")
            while self.epoch < epochs:
                progress.set_description(f"epoch {self.epoch + 1}/{epochs}")
                yield from self.train_epoch(stop, progress)
                row = self.history.rows[-1]
                self.log(epoch_line(row, epochs, self.setup))
                self.tracker.epoch(row)
            self.finish()
        if stop.requested:  # after the last epoch was tested
            raise Interrupted(
                f"stopped; {self.run.name} is finished, and nothing that follows was begun"
            )

    def is_tested(self, epoch: int) -> bool:
        """Whether the network is tested after an epoch, counted from 1."""
        return epoch % self.run.test_every == 0 or epoch == self.run.epochs

    def batches_before(self, epochs: int) -> int:
        """The number of batches of the first epochs, those of their tests included."""
        every = self.run.test_every
        tests = epochs // every + (epochs == self.run.epochs and epochs % every > 0)
        return epochs * len(self.setup.train) + tests * len(self.setup.test)

    def lr_at(self, step: int) -> float:
        """The learning rate of a step of the current epoch."""
        epoch = self.epoch + step / len(self.setup.train)
        run = self.run
        return run.preset.lr_at(epoch, run.epochs, run.lr, run.schedule, run.warmup_epochs)

    def train_epoch(self, stop: StopButton, progress: tqdm) -> Iterator[dict[str, Tensor]]:
        """Yields the inputs of the rest of the current epoch; then tests, and saves the epoch."""
        if not self.step:
            self.engine.start_epoch(self.epoch)
        seconds_before = self.seconds
        started = checked = time.perf_counter()
        for inputs in self.batches.inputs(self.epoch, self.step):
            self.engine.set_lr(self.lr_at(self.step))
            yield inputs
            self.step += 1
            progress.update()
            now = time.perf_counter()
            if now - checked > CHECK_SECONDS:
                self.check_finite()
                checked = now
            if stop.pressed or now - self.saved_at > CHECKPOINT_SECONDS:
                self.check_finite()
                self.seconds = seconds_before + now - started
                self.save()
                if stop.pressed:
                    raise Interrupted(
                        f"stopped after step {self.step} of epoch {self.epoch + 1}; "
                        "run it again to go on from there"
                    )
        self.check_finite()
        tested = self.test(stop, progress, seconds_before + time.perf_counter() - started)
        if self.epoch + 1 == self.run.epochs:
            self.check_finite(tested["loss"])
        row = {"epoch": self.epoch + 1, "lr": self.lr_at(0)}
        row |= {f"train_{name}": value for name, value in self.engine.epoch_means().items()}
        row |= {f"test_{name}": value for name, value in tested.items()}
        row["seconds"] = seconds_before + time.perf_counter() - started
        self.history.add(row, self.setup.distiller.means())
        self.epoch += 1
        self.step = 0
        self.seconds = 0.0
        pause = EPOCH_CHECKPOINT_SECONDS.get(self.engine.device.type, 0)
        if self.epoch == self.run.epochs or time.perf_counter() - self.saved_at >= pause:
            self.save()
        else:
            self.history.write(self.run.folder)

    def test(self, stop: StopButton, progress: tqdm, seconds: float) -> dict[str, float]:
        """Accuracies and loss on the test images; NaN after an epoch that is not tested.

        A person's stop is obeyed between two batches, a deadline only after the test: else a short
        one would never let it end. seconds: of the epoch's steps. Raises Interrupted.
        """
        if not self.is_tested(self.epoch + 1):
            return dict.fromkeys(("top1", "top5", "loss"), math.nan)
        progress.set_description(f"epoch {self.epoch + 1}/{self.run.epochs}, test")

        def after_batch() -> None:
            progress.update()
            if stop.requested:
                self.seconds = seconds
                self.save()
                raise Interrupted(
                    f"stopped while epoch {self.epoch + 1} was tested; "
                    "run it again to go on from there"
                )

        tested, loader = self.engine.tested, self.setup.test
        return evaluate(tested, loader, self.run.precision, after_batch=after_batch)

    def check_finite(self, test_loss: float = 0.0) -> None:
        """Raises InputError if a loss or a weight is not finite. Waits for the device."""
        step = self.engine.first_nonfinite_step()
        if step or not math.isfinite(test_loss):
            step = step or self.step
            raise InputError(
                f"the loss is no longer finite in epoch {self.epoch + 1}, step {step}; "
                f"{self.saved}; a lower lr (now {self.run.lr}) or precision float32 may help"
            )

    def save(self) -> None:
        """Save a checkpoint, then metrics.csv and history.npz."""
        if self.engine.fell_back:
            record_fallback(self.run)
        place = {"epoch": self.epoch, "step": self.step, "seconds": self.seconds}
        place |= {"identity": self.run.identity}
        state = self.engine.state() | place | self.history.state()
        save_checkpoint(self.run.folder, state)
        self.saved_at = time.perf_counter()
        self.write_history()

    def write_history(self) -> None:
        """Write metrics.csv and history.npz as they belong to the checkpoint."""
        self.saved = f"the checkpoint after epoch {self.epoch}, step {self.step} is available"
        self.history.write(self.run.folder)

    def resume(self) -> None:
        """Continue from the checkpoint, if there is one."""
        if load_checkpoint(self.run.folder, self.run.identity, self.load) is None:
            self.history.write(self.run.folder)  # epochs after the last checkpoint come again
            return
        if self.step:
            self.setup.distiller.start_epoch(self.epoch)
        self.write_history()
        self.log(f"{self.run.name}: resuming after epoch {self.epoch}, step {self.step}")

    def load(self, state: dict) -> None:
        """Load a checkpoint, or nothing of one that cannot be used, whatever it raises."""
        check_history(state, self.run.epochs)
        self.engine.restore(state)
        self.history.load(state)
        self.epoch, self.step, self.seconds = state["epoch"], state["step"], state["seconds"]

    def finish(self) -> None:
        """Write the weights, then result.json, which marks the run as finished."""
        rows = self.history.rows
        write_weights(self.run, self.setup, self.engine, rows[-1]["test_top1"])
        write_result(self.run, rows, self.setup)
        drop_checkpoints(self.run.folder)
