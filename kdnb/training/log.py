"""The lines that a training prints: what it starts from, and its epochs."""

import math
from collections.abc import Callable

from kdnb.progress import count, percent
from kdnb.runs.run import Run
from kdnb.training.setup import TrainingSetup


def log_setup(run: Run, setup: TrainingSetup, log: Callable[[str], None]) -> None:
    """Log what is not visible in a run's parameters: which teacher, and what it cannot serve."""
    if setup.distiller.teacher is not None and run.teacher_weights_hash != "trained":
        log(f"its teacher: {setup.teacher}; it sees {setup.teacher_images}")
    if setup.student_head:
        log(setup.student_head)
    images = setup.train.images
    if setup.train.batch_size != run.batch_size:
        log(f"batch_size is {setup.train.batch_size}: there are {len(images)} training images")
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


def cost_line(setup: TrainingSetup, epochs: int) -> str:
    """How many steps a run has, and what one costs if its images have two views."""
    text = f"{count(epochs, 'epoch')} of {count(len(setup.train), 'step')}"
    if setup.train.views == 1:
        return text
    rows = setup.train.views * setup.train.batch_size
    return f"{text} of {rows} images, {setup.train.views} views of {setup.train.batch_size}"


def epoch_line(row: dict, epochs: int, setup: TrainingSetup) -> str:
    """A finished epoch as one line; row: of metrics.csv."""
    train_images = setup.train.images
    terms = [name for name in row if name.startswith("train_")]
    losses = "  ".join(
        f"{name.removeprefix('train_')} {row[name]:.4g}"
        for name in terms
        if name not in ("train_top1", "train_total")
    )
    labelled = len(train_images) - train_images.unlabelled
    accuracy = f"train {percent(row['train_top1'], labelled)} %"
    if not math.isnan(row["test_top1"]):
        accuracy += f"  test {percent(row['test_top1'], len(setup.test.images))} %"
    return f"epoch {row['epoch']}/{epochs}  {losses}  {accuracy}  {row['seconds']:.1f} s"
