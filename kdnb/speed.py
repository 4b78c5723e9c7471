"""Where a distillation step's time goes, and how far it is from the least that this machine could need.

Timings on a shared machine are noisy: candidates run in turn, in one process, and medians are compared.
"""

from __future__ import annotations

import ctypes
import gc
import math
import statistics
import time
from collections.abc import Callable
from itertools import cycle, islice
from pathlib import Path

import pandas as pd
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from kdnb.distill import Distiller
from kdnb.experiment import Experiment
from kdnb.models import Output, create_model
from kdnb.results import markdown
from kdnb.runs import Run, environment
from kdnb.train import PRECISIONS, Training, evaluate

__all__ = ["Speed", "alternate", "copy_rate", "matrix_rate", "peak_memory"]


def wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def alternate(functions: dict[str, Callable], device: torch.device, repeats: int = 10) -> dict[str, float]:
    """Median seconds of each function, called in turn, there and back, `repeats` times after two warm-ups each."""
    seconds = {name: [] for name in functions}
    for turn in range(repeats + 2):
        for name, function in list(functions.items())[:: (-1) ** turn]:  # nobody always follows the same neighbour
            wait(device)
            start = time.perf_counter()
            function()
            wait(device)
            if turn >= 2:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def matrix_rate(device: torch.device, dtype: torch.dtype, size: int = 2048) -> float:
    """FLOP per second of a large square matrix product: the most that the arithmetic units give here."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return 2 * size**3 / alternate({"product": lambda: a @ b}, device, 5)["product"]


def copy_rate(device: torch.device, megabytes: int = 256) -> float:
    """Bytes per second of a large copy on the device, counting those read and those written."""
    source = torch.ones(megabytes * 2**20, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() / alternate({"copy": lambda: target.copy_(source)}, device, 5)["copy"]


def peak_memory(function: Callable, device: torch.device) -> float | None:
    """Megabytes that `function` takes at its peak above what is in use before it; None where nobody counts them."""
    function()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function()
        wait(device)
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    try:  # Linux: give freed memory back, reset the high-water mark of this process, read it again
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        before = resident("VmRSS")
        function()
        return (resident("VmHWM") - before) / 1024
    except (OSError, AttributeError):
        return None


def resident(entry: str) -> int:
    """Kilobytes, from Linux's account of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(entry + ":")))


def convolution_bytes(model: nn.Module, images: torch.Tensor, itemsize: int) -> int:
    """Bytes of every convolution's input and output, each moved once: the least that a forward pass can move."""
    total = 0

    def count(_, inputs, output):
        nonlocal total
        total += itemsize * (inputs[0].numel() + output.numel())

    handles = [m.register_forward_hook(count) for m in model.modules() if isinstance(m, nn.Conv2d)]
    with torch.no_grad():
        model(images)
    for handle in handles:
        handle.remove()
    return total


class Speed:
    """The distillation step of an Experiment, whole and in parts.

    The teacher's weights are random: that takes as long as trained ones, and needs no training.
    """

    def __init__(self, experiment: Experiment, repeats: int = 20):
        self.experiment, self.repeats = experiment, repeats
        self.device, self.recipe = experiment.torch_device, experiment.recipe
        self.train, self.test = experiment.batches()
        self.some = list(islice(self.train.epoch(), 4))
        self.images, self.labels = self.some[0]

    def distiller(self, beta: float | None = None) -> Distiller:
        torch.manual_seed(0)
        e, classes = self.experiment, len(self.experiment.data[0].classes)
        student, teacher = (
            create_model(n, classes).to(self.device) for n in (self.recipe.student, self.recipe.teacher)
        )
        weights, options = {"kd": e.alpha, "afd": e.beta if beta is None else beta}, {"afd": {"qk_dim": e.qk_dim}}
        return Distiller(student, teacher, weights, self.images[:2].float(), options)

    def training(self, precision: str, compiled: bool, beta: float | None = None) -> Training:
        config = {"precision": precision, "compile": compiled}
        return Training(self.distiller(beta), self.train, self.test, self.recipe, Run("unused"), config, print)

    def engine_step(self, precision: str, compiled: bool, beta: float | None = None) -> Callable:
        """The step of kdnb.train, over some batches again and again."""
        training, batches = self.training(precision, compiled, beta), cycle(self.some)
        return lambda: training.one_step(*next(batches))

    def plain_step(self) -> Callable:
        """The step as one writes it first: float32, channels first, eager."""
        distiller = self.distiller().to(self.device).train()
        r = self.recipe
        optimizer = torch.optim.SGD(distiller.trained().parameters(), r.lr, r.momentum, weight_decay=r.weight_decay)
        batches = cycle([(images.float().contiguous(), labels) for images, labels in self.some])

        def step() -> None:
            terms, _ = distiller(*next(batches))
            optimizer.zero_grad()
            terms["total"].backward()
            optimizer.step()

        return step

    def whole(self, compiled: bool = True) -> pd.DataFrame:
        """Plain and engine steps, in turn: milliseconds, images a second, times the plain step, what of it AFD takes
        (against the same step without it), peak megabytes."""
        precision = self.experiment.run_precision
        steps, without = {"plain, float32": self.plain_step()}, {}
        for name, on in {f"engine, {precision}": False, f"engine, {precision}, compiled": True}.items():
            if compiled or not on:
                steps[name] = self.engine_step(precision, on)
                without[name] = self.engine_step(precision, on, beta=0)
        peaks = {name: peak_memory(step, self.device) for name, step in steps.items()}  # before any of them is recorded
        for step in [*without.values()] * 2:
            step()
        seconds = alternate(
            steps | {(name, "without AFD"): step for name, step in without.items()}, self.device, self.repeats
        )
        rows = {
            name: {
                "ms": 1000 * seconds[name],
                "images/s": len(self.labels) / seconds[name],
                "times plain": seconds["plain, float32"] / seconds[name],
                "AFD (%)": 100 * (1 - seconds.get((name, "without AFD"), math.nan) / seconds[name]),
                "peak MB": peaks[name],
            }
            for name in steps
        }
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis("step").reset_index()

    def parts(self) -> pd.DataFrame:
        """Milliseconds of each part of the eager engine's step, and its share of their sum; evaluation beside it."""
        training = self.training(self.experiment.run_precision, False)
        distiller = training.distiller
        autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=training.precision == "bfloat16")
        images, labels = self.images, self.labels
        plan = self.train.plan(0)
        rows = {name: choice[: len(labels)] for name, choice in plan.items()}
        with torch.no_grad(), autocast:
            outputs = [distiller.student(images), distiller.teacher(images)]

        def student() -> None:
            with autocast:
                logits = distiller.student(images).logits
            nn.functional.cross_entropy(logits.float(), labels).backward()

        def teacher() -> None:
            with torch.no_grad(), autocast:
                distiller.teacher(images)

        def loss_step(loss: nn.Module) -> Callable:
            feats = [feat.detach().requires_grad_() for feat in outputs[0].feats]
            student = Output(outputs[0].logits.detach().requires_grad_(), tuple(feats))
            inputs = [student.logits, *feats, *loss.parameters()]

            def step() -> None:
                with autocast:
                    value = loss(student, outputs[1])
                torch.autograd.grad(value, inputs, allow_unused=True)

            return step

        functions = {"batch": lambda: self.train.make(rows), "teacher": teacher, "student": student}
        functions |= {name: loss_step(loss) for name, loss in distiller.losses.items()}
        training.one_step(images, labels)  # so that there are gradients and momenta
        for parameter in training.trained.parameters():
            parameter.grad = torch.zeros_like(parameter)
        functions["optimiser"] = training.optimizer.step
        seconds = alternate(functions, self.device, self.repeats)
        table = pd.DataFrame({"part": seconds.keys(), "ms": [1000 * s for s in seconds.values()]})
        return table.assign(share=100 * table["ms"] / table["ms"].sum()).rename(columns={"share": "share (%)"})

    def floor(self) -> pd.DataFrame:
        """What the step must compute and move, over the rates measured here: the larger time is the floor."""
        precision = self.experiment.run_precision
        dtype = PRECISIONS[precision]
        distiller = self.distiller()
        images = self.images.float()
        with FlopCounterMode(display=False) as counted, torch.no_grad():
            distiller.teacher(images)
        with FlopCounterMode(display=False) as trained:
            distiller.student(images).logits.sum().backward()
        flops = counted.get_total_flops() + trained.get_total_flops()
        # Forward once through both; backward moves the same maps and their gradients twice more.
        moved = sum(
            times * convolution_bytes(model, images, dtype.itemsize)
            for model, times in ((distiller.teacher, 1), (distiller.student, 3))
        )
        rates = matrix_rate(self.device, dtype), copy_rate(self.device)
        rows = [
            ("arithmetic", flops / 1e9, "GFLOP", rates[0] / 1e9, 1000 * flops / rates[0]),
            ("memory", moved / 1e9, "GB", rates[1] / 1e9, 1000 * moved / rates[1]),
        ]
        return pd.DataFrame(rows, columns=["floor", "amount", "unit", "rate (per s)", "ms"])

    def loaders(self) -> pd.DataFrame:
        """Augmented training images a second from the batches alone, and test images a second through the student."""
        student = self.training(self.experiment.run_precision, False).distiller.student
        steps = min(len(self.train), 100)

        def batches() -> None:
            for _ in islice(self.train.epoch(), steps):
                pass

        functions = {
            "training batches alone": batches,
            "evaluation of the student": lambda: evaluate(student, self.test, self.experiment.run_precision),
        }
        seconds = alternate(functions, self.device, 2)
        images = [min(steps * self.train.batch_size, len(self.train.set)), len(self.test.set)]
        rates = [n / s for n, s in zip(images, seconds.values(), strict=True)]
        return pd.DataFrame({"what": list(functions), "images/s": rates})

    @property
    def name(self) -> str:
        """What its table and figure are called: the data set, the networks and the kind of device."""
        r = self.recipe
        return f"speed-{r.dataset}-{r.teacher}-{r.student}-{self.device.type}"

    def page(self, *tables: pd.DataFrame) -> str:
        """Tables as one Markdown page that says where they were measured."""
        r = self.recipe
        title = f"{r.teacher} teaches {r.student} on {r.dataset}, {r.image_size} px, batch {r.batch_size}"
        return "\n".join([f"# A distillation step: {title}\n", f"{self.machine()}\n", *map(markdown, tables)])

    def machine(self) -> str:
        """Device, precision and versions, in a line."""
        e = environment(str(self.device))
        versions = ", ".join(f"{name} {version}" for name, version in e["versions"].items())
        threads = f", {torch.get_num_threads()} threads" if self.device.type == "cpu" else ""
        return f"{e['device']}{threads}, {self.experiment.run_precision}; {versions}; commit {e['commit']}"
