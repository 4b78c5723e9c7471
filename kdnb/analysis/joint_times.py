"""How long a joint step of several runs takes, and what training them together gains."""

from collections.abc import Sequence
from functools import cache
from itertools import islice

import pandas as pd
import torch

from kdnb.analysis.measure import time_alternately
from kdnb.device import set_threads
from kdnb.runs.run import Run
from kdnb.training.cuda_graph import WARM_UPS
from kdnb.training.joint_step import JointStep
from kdnb.training.setup import build_setup, load_images, load_splits
from kdnb.training.step import Engine
from kdnb.training.teacher import untrained_teacher

STEPS = 10  # that are timed at a time: a GPU should have more to do than to be waited for


class Trial:
    """Joint steps of some runs on batches that are repeated.

    Teachers have random weights, and runs with the same teacher share it, as in training.

    Args:
        runs: of one device.
        compiled: whether to compile their steps.
    """

    def __init__(self, runs: Sequence[Run], compiled: bool):
        load, teachers = cache(load_splits), {}
        setups = []
        for run in runs:
            images = load_images(run, load)
            teacher = None
            if run.teacher:
                key = run.teacher, run.teacher_weights_hash, run.teacher_size, run.image_size
                if key not in teachers:
                    teachers[key] = untrained_teacher(run, images[0].classes)
                teacher = teachers[key]
            setups.append(build_setup(run, images, teacher))
        keys = [setup.train.key for setup in setups]
        self.device = setups[0].train.device
        self.engines = [
            Engine(setup.distiller, run, self.device, compiled, setup.train)
            for run, setup in zip(runs, setups, strict=True)
        ]
        self.step = JointStep(self.engines, [*map(keys.index, keys)])
        self.inputs = [*zip(*(islice(setup.train.inputs(), 4) for setup in setups), strict=True)]
        for engine in self.engines:
            engine.start_epoch(0)
        for _ in range(WARM_UPS + 1):  # compiled, warmed up and captured
            self.make(1)

    def make(self, steps: int = STEPS) -> None:
        """Make some joint steps. Raises what a run's own step raises."""
        for number in range(steps):
            for error in self.step(self.inputs[number % len(self.inputs)]).values():
                raise error

    def close(self) -> None:
        """Let go of the memory."""
        self.step.close()
        for engine in self.engines:
            engine.close()


def joint_times(groups: Sequence[Sequence[Run]], compiled: bool, repeats: int = 5) -> pd.DataFrame:
    """The time of a joint step of each group of runs, one group after the other.

    Columns: runs, their number; ms, of a step of all of them; steps/s, of all; and gain, how many
    times those of the first group.

    Args:
        groups: of runs, such as seeds of one training, that are trained together.
        compiled: whether to compile their steps.
        repeats: measurements of which the median is taken.
    """
    rows = []
    for runs in groups:
        set_threads(runs[0].threads)
        with torch.random.fork_rng():
            trial = Trial(runs, compiled)
            seconds = time_alternately({"steps": trial.make}, trial.device, repeats)["steps"]
            trial.close()
        rows.append((len(runs), 1000 * seconds / STEPS, len(runs) * STEPS / seconds))
    table = pd.DataFrame(rows, columns=["runs", "ms", "steps/s"])
    return table.assign(gain=table["steps/s"] / table["steps/s"].iloc[0])


def seeds(run: Run, count: int) -> list[Run]:
    """The run with so many seeds."""
    return [run.with_changes(seed=seed) for seed in range(count)]
