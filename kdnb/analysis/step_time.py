"""How long a training step takes, as a whole and part by part, and the least that it could take."""

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from itertools import cycle, islice

import pandas as pd
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from kdnb.analysis.measure import in_float32, saved_bytes, time_alternately
from kdnb.device import PRECISIONS, environment, set_threads
from kdnb.models import Output
from kdnb.results.frame import LABELS_ONLY
from kdnb.runs.run import Run
from kdnb.training.distiller import Distiller
from kdnb.training.evaluation import evaluate
from kdnb.training.recipe import make_optimizer
from kdnb.training.setup import TrainingSetup, build_setup, load_images
from kdnb.training.step import Engine
from kdnb.training.teacher import untrained_teacher

MATRIX_SIZE = 2048  # rows of the matrices whose product measures the arithmetic rate
REFERENCE = "reference, float32"  # the step that speed-ups are relative to


class StepTimer:
    """Measures the training step of a run and its parts.

    The teacher need not be trained or downloaded: a network with random weights and as many classes
    stands in for it. So the losses that training leaves out are left out here, too.

    Args:
        run: the run whose step is measured, and compared with its student's on labels alone.
        repeats: calls of which the median is taken.

    Attributes:
        left_out: names of the losses that the teacher cannot serve.
        title: what is measured: data set, method, networks, image size, batch size, device.
        machine: threads, versions and commit.
        name: of the files with its table and figure.
    """

    def __init__(self, run: Run, repeats: int = 20):
        set_threads(run.threads)
        self.run = run
        self.repeats = repeats
        self.images = load_images(run)
        self.trainings = {LABELS_ONLY: replace(run, method="none")}
        if run.teacher:
            self.trainings = {run.label: run} | self.trainings
        setup = self.build(run)
        self.distiller = setup.distiller
        self.loader = setup.train
        self.test = setup.test
        self.device = self.loader.device
        self.batches = list(islice(self.loader.epoch(), 4))
        self.left_out = self.distiller.left_out
        machine = environment(str(self.device))
        versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
        self.machine = f"{torch.get_num_threads()} threads, {versions}, commit {machine['commit']}"
        self.title = f"{run.dataset}, {self.training_title()}, {machine['device']}"
        method = run.label.replace(" ", "")
        parts = ["speed", run.dataset, run.teacher, run.student, method, self.device.type]
        self.name = "-".join(filter(None, parts))

    def training_title(self) -> str:
        """Method, networks, image size, batch size and precision."""
        parts = [self.run.student]
        if self.run.teacher:
            method = " ".join([self.run.label, *(f"without {name}" for name in self.left_out)])
            parts = [method, f"{self.run.teacher} → {self.run.student}"]
        size = f"{self.run.image_size} px"
        views = f"{self.run.view_count} views of " if self.run.view_count > 1 else ""
        batch = f"batch {views}{self.run.batch_size}"
        return ", ".join([*parts, size, batch, self.run.precision])

    def build(self, run: Run) -> TrainingSetup:
        """A new setup of a run, with an untrained teacher."""
        teacher = untrained_teacher(run, self.images[0].classes) if run.teacher else None
        return build_setup(run, self.images, teacher)

    def engine_step(self, run: Run, compiled: bool) -> Callable[[], None]:
        """A training step of `Engine`, which takes some batches in turn that are made before."""
        engine = Engine(self.build(run).distiller, run, self.device, compiled, self.loader)
        inputs = cycle([batch.tensors() for batch in self.batches])
        return lambda: engine(next(inputs))

    def reference_step(self, run: Run) -> Callable[[], None]:
        """A training step in plain PyTorch: float32, channels first, eager."""
        distiller = self.build(run).distiller.train()
        optimizer = make_optimizer(run, distiller.trainable().parameters(), run.lr)
        batches = cycle([in_float32(batch, torch.contiguous_format) for batch in self.batches])

        def step() -> None:
            optimizer.zero_grad()
            losses, _ = distiller(*next(batches))
            losses["total"].backward()
            optimizer.step()

        return step

    def whole_steps(self, compiled: bool = True) -> pd.DataFrame:
        """Times of whole steps: ms, images/s, and the speed-up over the reference.

        Each training has a row for the reference, one for the eager engine and, if `compiled`, one
        for the compiled engine.
        """
        engine = f"engine, {self.run.precision}"
        steps = {}
        for training, run in self.trainings.items():
            steps[training, REFERENCE] = self.reference_step(run)
            steps[training, engine] = self.engine_step(run, compiled=False)
            if compiled:
                steps[training, f"{engine}, compiled"] = self.engine_step(run, compiled=True)
        seconds = time_alternately(steps, self.device, self.repeats)
        n_images = len(self.batches[0].labels)
        rows = []
        for (training, step), s in seconds.items():
            speed_up = seconds[training, REFERENCE] / s
            rows.append((training, step, 1000 * s, n_images / s, speed_up))
        return pd.DataFrame(rows, columns=["training", "step", "ms", "images/s", "speed-up"])

    def parts(self) -> pd.DataFrame:
        """Times of the parts of the eager engine's step: ms and share.

        The student's part is forward, cross-entropy and backward. A loss's part includes its
        backward pass down to the student's outputs.
        """
        distiller = self.build(self.run).distiller
        distiller.to(self.device, memory_format=torch.channels_last).train()
        functions = self.part_functions(distiller)
        seconds = time_alternately(functions, self.device, self.repeats)
        table = pd.DataFrame({"part": seconds.keys(), "ms": [1000 * s for s in seconds.values()]})
        return table.assign(**{"share (%)": 100 * table["ms"] / table["ms"].sum()})

    def part_functions(self, distiller: Distiller) -> dict[str, Callable[[], object]]:
        """{part of the step: a function that computes it}."""
        batch = self.batches[0]
        plan = {name: rows[: len(batch.labels)] for name, rows in self.loader.plan(0).items()}
        is_autocast = self.run.precision == "bfloat16"
        autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=is_autocast)
        student = partial(autocast(distiller.student), batch.images)

        def student_part() -> None:
            logits = student().logits.float()
            nn.functional.cross_entropy(logits, batch.labels, ignore_index=-1).backward()

        functions = {"batch": lambda: self.loader.make(plan), "student": student_part}
        student_output = Output(*detach_all(student()))
        teacher_output = None
        if distiller.teacher is not None:
            teacher = partial(torch.no_grad()(autocast(distiller.teacher)), batch.for_teacher)
            functions["teacher"] = teacher
            teacher_output = teacher()

        def loss_part(name: str) -> None:
            loss = distiller.losses[name]
            teacher = distiller.teacher_output(loss, teacher_output)
            autocast(loss)(student_output, teacher, batch).backward()

        for name in distiller.losses:
            if name != "ce":  # the student's part includes it
                functions[name] = partial(loss_part, name)
        return functions

    def floor(self) -> pd.DataFrame:
        """The least time of each training's step: its convolutions at the peak arithmetic rate.

        The rate is that of a large matrix product in the run's precision.
        """
        batch = in_float32(self.batches[0])
        rate = self.arithmetic_rate()
        rows = []
        for training, run in self.trainings.items():
            with FlopCounterMode(display=False) as counter:
                self.distiller.student(batch.images).logits.sum().backward()
                if run.teacher:
                    self.distiller.teacher(batch.for_teacher)
            flops = counter.get_total_flops()
            rows.append((training, flops / 1e9, rate / 1e9, 1000 * flops / rate))
        return pd.DataFrame(rows, columns=["training", "GFLOP", "GFLOP/s", "ms"])

    def arithmetic_rate(self) -> float:
        """Operations per second of a large matrix product, the best of ten measurements."""
        n = MATRIX_SIZE
        dtype = PRECISIONS[self.run.precision]
        a, b = torch.randn(2, n, n, device=self.device, dtype=dtype)
        product = {"product": lambda: a @ b}
        seconds = [time_alternately(product, self.device, 1)["product"] for _ in range(10)]
        return 2 * n**3 / min(seconds)

    def loader_rates(self) -> pd.DataFrame:
        """Images per second of the augmented training batches alone, and of an evaluation."""
        steps = min(len(self.loader), 100)
        n_images = {
            "training batches": min(steps * self.loader.batch_size, len(self.loader.images)),
            "evaluation": len(self.test.images),
        }
        functions = {
            "training batches": lambda: deque(islice(self.loader.epoch(), steps), maxlen=0),
            "evaluation": partial(evaluate, self.distiller.student, self.test, self.run.precision),
        }
        seconds = time_alternately(functions, self.device, 2)
        rates = [n_images[name] / seconds[name] for name in functions]
        return pd.DataFrame({"what": list(functions), "images/s": rates})

    def page(self, *tables: pd.DataFrame) -> str:
        """A Markdown page of tables, with what was measured and where."""
        texts = [table.round(2).to_markdown(index=False) for table in tables]
        return "\n\n".join([f"# A training step: {self.title}", self.machine, *texts]) + "\n"


def method_costs(runs: Mapping[str, Run]) -> pd.DataFrame:
    """The time and memory of a training step of each method, uncompiled: a row per run.

    Columns: ms; times, the time relative to the run named "none"; and MB saved, the tensors that
    autograd saves for the backward pass, weights included.

    Args:
        runs: {name: run} of one data set; one of them has a teacher.
    """
    timer = StepTimer(next(run for run in runs.values() if run.teacher))
    steps = {name: timer.engine_step(run, compiled=False) for name, run in runs.items()}
    # Of the first step: a replayed CUDA graph saves nothing.
    megabytes = {name: saved_bytes(step) / 1e6 for name, step in steps.items()}
    seconds = time_alternately(steps, timer.device)
    rows = [(name, 1000 * s, s / seconds["none"], megabytes[name]) for name, s in seconds.items()]
    return pd.DataFrame(rows, columns=["method", "ms", "times", "MB saved"])


def detach_all(values: tuple) -> tuple:
    """Detach tensors, in tuples of any depth, from their graph; they require gradients."""
    return tuple(
        detach_all(value) if isinstance(value, tuple) else value.detach().requires_grad_()
        for value in values
    )
