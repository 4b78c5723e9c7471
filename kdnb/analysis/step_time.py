"""Where a training step's time goes, and how far it is from the least that this machine could need.

Timings on a shared machine are noisy: candidates run in turn, in one process, and medians are compared.
"""

import statistics
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from itertools import cycle, islice

import pandas as pd
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from kdnb.device import PRECISIONS, environment
from kdnb.models import Output, create_model
from kdnb.results.frame import LABELS_ONLY
from kdnb.runs.run import Run
from kdnb.training.setup import build_setup, load_images
from kdnb.training.step import Engine, evaluate
from kdnb.training.teacher import Teacher


def alternate(
    functions: dict[str, Callable], device: torch.device, repeats: int = 10
) -> dict[str, float]:
    """Median seconds of each function, called in turn, there and back, `repeats` times after two warm-ups each."""
    wait = partial(torch.accelerator.synchronize, device) if device.type != "cpu" else lambda: None
    seconds = {name: [] for name in functions}
    for turn in range(repeats + 2):
        for name in list(functions)[
            :: 1 if turn % 2 else -1
        ]:  # nobody always follows the same neighbour
            wait()
            start = time.perf_counter()
            functions[name]()
            wait()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values[2:]) for name, values in seconds.items()}


class Speed:
    """The step of a run, whole and in parts; the teacher's weights are random, which takes as long as trained ones."""

    def __init__(self, run: Run, repeats: int = 20):
        self.run, self.repeats, self.images = run, repeats, load_images(run)
        self.trainings = ({run.label: run} if run.teacher else {}) | {
            LABELS_ONLY: replace(run, method="none")
        }
        self.distiller, self.loader, self.test = self.fresh(run)
        self.device, self.batches = self.loader.device, list(islice(self.loader.epoch(), 4))
        found = environment(str(self.device))
        versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
        self.machine = f"{torch.get_num_threads()} threads, {versions}, commit {found['commit']}"
        taught = f"{run.label}, {run.teacher} → {run.student}" if run.teacher else run.student
        how = f"{run.image_size} px, batch {run.batch_size}, {run.precision}, {found['device']}"
        self.title = f"{run.dataset}, {taught}, {how}"
        words = [
            "speed",
            run.dataset,
            run.teacher,
            run.student,
            run.label.replace(" ", ""),
            self.device.type,
        ]
        self.name = "-".join(filter(None, words))  # of its table and figure

    def fresh(self, run: Run) -> tuple:
        """A new Distiller, whose teacher's weights are not looked for, and the batches of both splits."""
        teacher = (
            Teacher(create_model(run.teacher, len(self.images[0].classes))) if run.teacher else None
        )
        return build_setup(run, self.images, teacher)[:3]

    def engine_step(self, run: Run, compiled: bool) -> Callable:
        """The step of kdnb.engine, over some batches again and again."""
        engine = Engine(self.fresh(run)[0], run, self.device, compiled)
        batches = cycle(self.batches)
        return lambda: engine(next(batches))

    def reference_step(self, run: Run) -> Callable:
        """The step as one writes it first: float32, channels first, eager."""
        distiller, preset = self.fresh(run)[0].train(), run.preset
        own = {"momentum": preset.momentum, "weight_decay": preset.weight_decay}
        optimizer = torch.optim.SGD(distiller.trainable().parameters(), run.lr, **own)
        batches = cycle(
            [batch._replace(images=batch.images.float().contiguous()) for batch in self.batches]
        )

        def step() -> None:
            optimizer.zero_grad()
            distiller(*next(batches))[0]["total"].backward()
            optimizer.step()

        return step

    def whole(self, compiled: bool = True) -> pd.DataFrame:
        """Steps of each training in turn, as a reference and the engine's: ms, images/s, times the reference's rate."""
        engine, steps = f"engine, {self.run.precision}", {}
        for training, run in self.trainings.items():
            steps[training, "reference, float32"] = self.reference_step(run)
            steps[training, engine] = self.engine_step(run, False)
            steps |= (
                {(training, f"{engine}, compiled"): self.engine_step(run, True)} if compiled else {}
            )
        seconds, images = alternate(steps, self.device, self.repeats), len(self.batches[0].labels)
        rows = [
            (*of, 1000 * s, images / s, seconds[of[0], "reference, float32"] / s)
            for of, s in seconds.items()
        ]
        return pd.DataFrame(rows, columns=["training", "step", "ms", "images/s", "speed-up"])

    def parts(self) -> pd.DataFrame:
        """Milliseconds of each part of the eager engine's step, losses with their way back, and their shares."""
        distiller, batch = self.fresh(self.run)[0], self.batches[0]
        distiller.to(self.device, memory_format=torch.channels_last).train()
        rows = {name: choice[: len(batch.labels)] for name, choice in self.loader.plan(0).items()}
        autocast = torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.run.precision == "bfloat16"
        )
        student = partial(autocast(distiller.student), batch.images)
        teacher = distiller.teacher and partial(
            torch.no_grad()(autocast(distiller.teacher)), batch.images
        )
        of_student, of_teacher = Output(*leaves(student())), teacher and teacher()

        def loss(name: str) -> None:
            autocast(distiller.losses[name])(of_student, of_teacher, batch).backward()

        functions = {
            "batch": lambda: self.loader.make(rows),
            "student": lambda: nn.functional.cross_entropy(
                student().logits.float(), batch.labels
            ).backward(),
        }
        functions |= {"teacher": teacher} if teacher else {}
        functions |= {
            name: partial(loss, name) for name in distiller.losses if name != "ce"
        }  # the student's has it
        seconds = alternate(functions, self.device, self.repeats)
        table = pd.DataFrame({"part": seconds.keys(), "ms": [1000 * s for s in seconds.values()]})
        return table.assign(**{"share (%)": 100 * table["ms"] / table["ms"].sum()})

    def floor(self) -> pd.DataFrame:
        """The arithmetic of the convolutions at the best rate of a large matrix product: the least for a step."""
        images, n, rows = self.batches[0].images.float(), 2048, []
        a, b = torch.randn(2, n, n, device=self.device, dtype=PRECISIONS[self.run.precision])
        rate = (
            2
            * n**3
            / min(
                alternate({"product": lambda: a @ b}, self.device, 1)["product"] for _ in range(10)
            )
        )
        for training, run in self.trainings.items():
            with FlopCounterMode(display=False) as counted:
                self.distiller.student(images).logits.sum().backward()
                if run.teacher:
                    self.distiller.teacher(images)  # whose weights are frozen
            flops = counted.get_total_flops()
            rows.append((training, flops / 1e9, rate / 1e9, 1000 * flops / rate))
        return pd.DataFrame(rows, columns=["training", "GFLOP", "GFLOP/s", "ms"])

    def loaders(self) -> pd.DataFrame:
        """Augmented training images a second from the batches alone, and test images a second through the student."""
        steps = min(len(self.loader), 100)
        images = min(steps * self.loader.batch_size, len(self.loader.images)), len(self.test.images)
        functions = {
            "training batches": lambda: deque(islice(self.loader.epoch(), steps), maxlen=0),
            "evaluation": partial(evaluate, self.distiller.student, self.test, self.run.precision),
        }
        rates = [
            n / s
            for n, s in zip(images, alternate(functions, self.device, 2).values(), strict=True)
        ]
        return pd.DataFrame({"what": list(functions), "images/s": rates})

    def page(self, *tables: pd.DataFrame) -> str:
        """Tables as one Markdown page that says where they were measured."""
        texts = (table.round(2).to_markdown(index=False) for table in tables)
        return "\n\n".join([f"# A training step: {self.title}", self.machine, *texts]) + "\n"


def method_costs(runs: Mapping[str, Run]) -> pd.DataFrame:
    """What a step of each method costs: a row per name, the run "none" being the baseline's.

    ms, measured in turn, uncompiled; times the baseline's; and MB of tensors, weights included, saved for the backward
    pass.
    """
    speed = Speed(next(run for run in runs.values() if run.teacher))
    steps = {name: speed.engine_step(run, False) for name, run in runs.items()}
    saved = {
        name: kept(step) / 1e6 for name, step in steps.items()
    }  # of their first, which no GPU replays
    seconds = alternate(steps, speed.device)
    rows = [(name, 1000 * s, s / seconds["none"], saved[name]) for name, s in seconds.items()]
    return pd.DataFrame(rows, columns=["method", "ms", "times", "MB saved"])


def kept(step: Callable) -> int:
    """Bytes of the tensors that autograd keeps in a step; each counts once."""
    sizes = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        step()
    return sum(sizes.values())


def leaves(values: tuple) -> tuple:
    """Tensors, in tuples in tuples, as if nothing had come before them."""
    return tuple(leaves(v) if isinstance(v, tuple) else v.detach().requires_grad_() for v in values)
