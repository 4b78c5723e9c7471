"""The loop: `fit` trains a Distiller into a Run, `evaluate` measures a network. One code path for CPU, CUDA and MPS."""

from __future__ import annotations

import math
import os
import shutil
import signal
import statistics
import threading
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from kdnb.batches import Batches
from kdnb.distill import Distiller
from kdnb.errors import InputError, choose
from kdnb.models import parameter_count
from kdnb.progress import Progress, bar
from kdnb.recipes import Recipe
from kdnb.replay import Replayed, aside
from kdnb.runs import Run, environment

__all__ = ["Interrupted", "evaluate", "fit", "pick_compile", "pick_device", "pick_precision"]

CHECKPOINT_SECONDS = 180  # between checkpoints inside an epoch; there is one at its end anyway
CHECK_SECONDS = 5  # between looks at whether the loss is finite: each makes an accelerator wait
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Interrupted(InputError):
    """Training was stopped by the person who started it; everything is kept."""


def pick_device(name: str = "auto") -> torch.device:
    """ "auto", "cpu", "cuda", "cuda:N" or "mps" -> a device that is really there. Raises InputError."""
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        name = next(kind for kind in ("cuda", "mps", "cpu") if there[kind])
    kind, _, index = name.partition(":")
    choose("device", kind, ["auto", *there])
    if not there.get(kind) or (
        index and (kind != "cuda" or not index.isdigit() or int(index) >= torch.cuda.device_count())
    ):
        raise InputError(
            f"device {name!r} is not on this machine: choose auto, {', '.join(k for k, ok in there.items() if ok)}"
        )
    return torch.device(name)


def pick_precision(name: str, device: torch.device) -> str:
    """ "auto" -> bfloat16 where the device multiplies it natively, else float32."""
    if name != "auto":
        return choose("precision", name, ["auto", *PRECISIONS])
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.get_device_capability(device) >= (8, 0) else "float32"
    if device.type == "cpu":  # emulated bf16 is slower than float32: only with the instructions
        native = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
        return "bfloat16" if native() else "float32"
    return "float32"


def pick_compile(name: str, device: torch.device, steps: int) -> bool:
    """ "auto" -> compile a step where that repays itself: with a compiler at hand and enough steps ahead.

    The answer depends on the whole run, not on what is left of it, so that a resumed run computes the same.
    """
    choose("compile", name, ["auto", "on", "off"])
    if name != "auto" or device.type == "mps":
        return name == "on"
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    return bool(compiler) and steps >= 2000


def replays(device: torch.device, compiled: bool) -> bool:
    """Whether full steps are replayed as a CUDA graph: where long runs are compiled, launches are what is left."""
    return compiled and device.type == "cuda"


@torch.no_grad()
def evaluate(model: nn.Module, batches: Batches, precision: str = "float32") -> dict[str, float]:
    """Top-1 and top-5 accuracy in percent, and cross-entropy, over all images, in eval mode."""
    was_training = model.training
    model.eval()
    sums = torch.zeros(3, device=batches.device)
    for images, labels in batches.epoch():
        with torch.autocast(batches.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            logits = model(images).logits.float()
        ranks = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]
        loss = nn.functional.cross_entropy(logits, labels, reduction="sum")
        sums += torch.stack([ranks[:, 0].sum(), ranks.sum(), loss])
    model.train(was_training)
    top1, top5, loss = (value / len(batches.set) for value in sums.tolist())
    return {"top1": 100 * top1, "top5": 100 * top5, "loss": loss}


def fit(
    distiller: Distiller, train: Batches, test: Batches, recipe: Recipe, run: Run, config: dict, say: Callable = print
) -> Run:
    """Train `distiller` by `recipe` into `run` and return it, finished.

    A finished run is only read. One that was broken off goes on at its last checkpoint, on a CPU to the same bits.
    config: every parameter, with "precision" and "compile" settled; kept as config.json.
    Raises InputError for a loss that is not finite, a folder that cannot be written or that holds another run, and
    Interrupted when the person watching stops it.
    """
    with run:
        run.start(config)
        if run.finished:
            say(f"{run.name}: finished before, top-1 {run.result['top1']:.2f} %")
            return run
        return Training(distiller, train, test, recipe, run, config, say).go()


class Training:
    """The state of a run between its steps; see `fit`."""

    def __init__(
        self, distiller: Distiller, train: Batches, test: Batches, recipe: Recipe, run: Run, config: dict, say: Callable
    ):
        self.train, self.test, self.recipe, self.run, self.config, self.say = train, test, recipe, run, config, say
        self.device, self.precision = train.device, config["precision"]
        self.distiller = distiller.to(self.device, memory_format=torch.channels_last).train()
        self.trained = distiller.trained()
        self.afd = getattr(distiller.losses, "afd", None)
        replayed = replays(self.device, config["compile"])
        self.optimizer = torch.optim.SGD(
            self.trained.parameters(),
            torch.tensor(recipe.lr, device=self.device) if replayed else recipe.lr,  # a number would be recorded
            recipe.momentum,
            weight_decay=recipe.weight_decay,
            fused=self.device.type in ("cpu", "cuda"),
        )
        self.update = partial(self._update, self._forward)
        self.full_update = self.update  # of a batch of full size; the last, smaller one is not worth the preparation
        if config["compile"]:
            torch.compiler.reset()  # a notebook trains many networks, and compiled steps of one function are few
            self.full_update = partial(self._update, torch.compile(self._forward, dynamic=False))
        if replayed:
            self.full_update = Replayed(self.full_update)
        self.stream = None
        if self.device.type == "cuda":
            self.stream = torch.cuda.Stream(self.device)
            torch.backends.cudnn.benchmark = True  # every step has the same shapes
        self.names = ["total", "ce", *distiller.losses]
        self.epoch, self.step, self.seconds = 0, 0, 0.0  # finished epochs; steps and seconds into the next one
        self.history, self.links = [], []
        # Losses summed over images, right answers, images, and how many of them had been seen when the loss was first
        # not finite (0: it always was).
        dtype = torch.float64 if self.device.type != "mps" else None
        self.sums = torch.zeros(len(self.names) + 3, device=self.device, dtype=dtype)
        self.reset_sums()

    def reset_sums(self) -> None:
        self.sums.zero_()
        if self.afd:
            self.afd.links.zero_()
            self.afd.seen.zero_()

    def _forward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            terms, logits = self.distiller(images, labels)
        right = (logits.detach().argmax(1) == labels).sum()
        return terms["total"], torch.stack([*(terms[n].detach() * len(labels) for n in self.names), right])

    def _update(self, forward: Callable, images: Tensor, labels: Tensor) -> None:
        """One step. Everything stays on the device, in tensors that are always the same: nothing waits for it."""
        self.optimizer.zero_grad(set_to_none=True)
        loss, measured = forward(images, labels)
        loss.backward()
        self.optimizer.step()
        self.sums[:-2] += measured
        self.sums[-2] += len(labels)
        bad = (self.sums[-1] == 0) & ~torch.isfinite(measured[0])
        self.sums[-1] += bad * self.sums[-2]

    def one_step(self, images: Tensor, labels: Tensor) -> None:
        with aside(self.stream):
            (self.full_update if len(labels) == self.train.batch_size else self.update)(images, labels)
        self.step += 1

    def check_finite(self) -> None:
        if seen := int(self.sums[-1]):
            step = math.ceil(seen / self.train.batch_size)
            kept = f"the checkpoint after epoch {self.epoch}" if self.epoch else "no checkpoint: it was the first epoch"
            raise InputError(
                f"the loss is no longer finite in epoch {self.epoch + 1}, step {step}; "
                f"kept is {kept}; a lower lr (now {self.recipe.lr}) or precision float32 may help"
            )

    def set_lr(self, lr: float) -> None:
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(lr)
            else:
                group["lr"] = lr

    def go(self) -> Run:
        self.resume()
        epochs, steps = self.recipe.epochs, len(self.train)
        with StopButton() as stop, bar(epochs * steps, "epoch", "step") as shown:
            progress = Progress(self.run.name, epochs, steps, shown, self.say)
            while self.epoch < self.recipe.epochs:
                self.one_epoch(stop, progress)
                progress.epoch(self.history[-1])
        self.update = self.full_update = None  # each knows this object: a cycle that would keep a graph's memory
        return self.finish()

    def one_epoch(self, stop: StopButton, progress: Progress) -> None:
        self.set_lr(self.recipe.lr_at(self.epoch))
        before, started = self.seconds, time.perf_counter()
        saved = checked = started
        progress.begin(self.epoch, self.step)
        for images, labels in self.train.epoch(self.epoch, self.step):
            self.one_step(images, labels)
            progress.step()
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
                    raise Interrupted(
                        f"stopped after step {self.step} of epoch {self.epoch + 1}; run it again to go on from there"
                    )
        self.check_finite()
        tested = evaluate(self.distiller.student, self.test, self.precision)
        *losses, right, images, _ = self.sums.tolist()
        self.epoch += 1
        row = {"epoch": self.epoch, "lr": self.recipe.lr_at(self.epoch - 1), "train_top1": 100 * right / images}
        row |= {f"train_{name}": total / images for name, total in zip(self.names, losses, strict=True)}
        row |= {f"test_{name}": value for name, value in tested.items()}
        row["seconds"] = before + time.perf_counter() - started
        self.history.append(row)
        if self.afd:
            self.links.append((self.afd.links / self.afd.seen).cpu())
        self.step, self.seconds = 0, 0.0
        self.reset_sums()
        self.save()

    def save(self) -> None:
        self.run.save(
            {
                "epoch": self.epoch,
                "step": self.step,
                "seconds": self.seconds,
                "trained": self.trained.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "sums": self.sums,
                "attention": self.afd and {"links": self.afd.links, "seen": self.afd.seen},
                "rng": torch.get_rng_state(),
                "history": self.history,
                "links": self.links,
            }
        )

    def resume(self) -> None:
        state = self.run.load()
        if state is None:
            return
        self.epoch, self.step, self.seconds = state["epoch"], state["step"], state["seconds"]
        self.trained.load_state_dict(state["trained"])
        # The groups stay as the recipe made them: a recorded step reads the learning rate from a tensor on the device.
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict(state["optimizer"] | {"param_groups": groups})
        self.sums.copy_(state["sums"])
        if state["attention"] is not None:
            self.afd.links.copy_(state["attention"]["links"])
            self.afd.seen.copy_(state["attention"]["seen"])
        torch.set_rng_state(state["rng"])
        self.history, self.links = state["history"], state["links"]
        self.run.write_history(self.history, self.links)
        self.say(f"{self.run.name}: going on after epoch {self.epoch}, step {self.step}")

    def finish(self) -> Run:
        last, best = self.history[-1], max(self.history, key=lambda row: row["test_top1"])
        teacher = self.distiller.teacher
        result = self.config | {
            "top1": last["test_top1"],
            "top5": last["test_top5"],
            "best": {"epoch": best["epoch"], "top1": best["test_top1"], "top5": best["test_top5"]},
            "epoch_seconds": statistics.median(row["seconds"] for row in self.history),
            "total_seconds": sum(row["seconds"] for row in self.history),
            "parameters": parameter_count(self.distiller.student),
            "teacher_parameters": parameter_count(teacher) if teacher is not None else None,
            "train_images": len(self.train.set),
            "test_images": len(self.test.set),
            "left_out": self.distiller.left_out,
            **environment(str(self.device)),
        }
        self.run.finish(result, {name: part.state_dict() for name, part in self.trained.items()})
        return self.run


class StopButton:
    """Turns the first interrupt (JupyterLab's stop button, Ctrl-C) into a wish that is met between two steps.

    In the middle of a step the weights are half updated and not worth keeping. A second interrupt stops at once.
    """

    def __enter__(self) -> StopButton:
        self.pressed = False
        self.listening = threading.current_thread() is threading.main_thread()
        if self.listening:
            self.before = signal.signal(signal.SIGINT, self.press)
        return self

    def press(self, *_) -> None:
        if self.pressed:
            raise KeyboardInterrupt
        self.pressed = True

    def __exit__(self, *_) -> None:
        if self.listening:
            signal.signal(signal.SIGINT, self.before)
