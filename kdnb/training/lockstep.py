"""Runs that are trained side by side in one process: a step of each, then the next step of each."""

from collections.abc import Callable, Iterator

from torch import Tensor
from tqdm import tqdm

from kdnb.device import system_errors
from kdnb.progress import StopButton
from kdnb.training.joint_step import JointStep
from kdnb.training.loop import Training

Steps = dict[Training, Iterator[dict[str, Tensor]]]


def train_in_lockstep(
    trainings: list[Training],
    stop: StopButton,
    progress: tqdm,
    end: Callable[[Training, Exception | None], None],
) -> None:
    """Train runs to their ends, or until they are stopped. One that fails leaves the others going.

    Args:
        trainings: the runs, from where each of them is. It is emptied, so that only `end` decides
            how long one that has ended stays in memory.
        stop: stops all of them.
        progress: a bar of the batches of all.
        end: called when a run ends, with the error that ended it, or None.
    """
    steps: Steps = {training: training.steps(stop, progress) for training in trainings}
    trainings.clear()
    joint_step = None

    def leave(ended: dict[Training, Exception | None]) -> None:
        nonlocal joint_step
        if ended and joint_step is not None:
            joint_step.close()
            joint_step = None
        for training, error in ended.items():
            steps.pop(training).close()
            end(training, error)

    try:
        while steps:
            inputs, ended = advance(steps)
            leave(ended)
            if not inputs:
                break
            joint_step = joint_step or join([*inputs])
            errors = joint_step([*inputs.values()])
            leave({[*inputs][position]: error for position, error in errors.items()})
    finally:  # also after a second Ctrl-C: the threads of their batches end
        for each in steps.values():
            each.close()


def advance(
    steps: Steps,
) -> tuple[dict[Training, dict[str, Tensor]], dict[Training, Exception | None]]:
    """The inputs of the next step of each run, and the runs that have ended, with their errors."""
    inputs, ended = {}, {}
    for training, each in steps.items():
        try:
            with system_errors(), training.engine.turn():
                found = next(each, None)
        except Exception as error:
            ended[training] = error
        else:
            (ended if found is None else inputs)[training] = found
    return inputs, ended


def join(trainings: list[Training]) -> JointStep:
    """The joint step of runs that are about to make their next one."""
    places = [(id(each.batches), each.epoch, each.step) for each in trainings]
    return JointStep([each.engine for each in trainings], [*map(places.index, places)])
