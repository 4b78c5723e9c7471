"""A table of facts about the teacher of a run."""

from dataclasses import replace

import pandas as pd

from kdnb.data import DATASETS
from kdnb.device import set_threads
from kdnb.errors import InputError
from kdnb.models import class_count, parameter_count, stored_precision
from kdnb.progress import percent
from kdnb.runs.identity import describe_overrides
from kdnb.runs.parameters import as_table
from kdnb.runs.run import Run
from kdnb.runs.weights import weights_file
from kdnb.training.evaluation import evaluate
from kdnb.training.setup import load_images, loaders
from kdnb.training.teacher import load_teacher
from kdnb.training.teacher_images import teacher_images


def teacher_table(run: Run) -> pd.DataFrame:
    """A table of facts about the trained teacher of a run, with its accuracy on the test images.

    The accuracy is that of its training, or the one in its weights file, if it is of these test
    images. Else it is measured here. The table names which, and the precision.

    Raises InputError for a run without a teacher, and for a teacher whose weights are missing.
    """
    if not run.teacher:
        raise InputError(
            f"method {run.label!r} has no teacher: choose one that has, or train.ipynb for one "
            "network"
        )
    set_threads(run.threads)
    teacher = load_teacher(run)
    images = load_images(run)
    teacher_sees = teacher_images(run, images[1])
    _, test = loaders(run, images)
    test = replace(test, test_crop=teacher_sees.crop, **teacher_sees.loader_options)
    model = teacher.model.to(test.device)
    facts = {
        "network": run.teacher,
        "weights": teacher.about["weights"],
        "parameters": f"{parameter_count(model):,}",
    }
    if len(run.teachers) > 1:
        return as_table("teachers", facts)
    top1 = "it knows other classes" if class_count(model) else "it has no classifier"
    if teacher.same_classes(images[1].classes)[0]:
        is_same_test = teacher.about["dataset"] == run.dataset and not run.validation
        if is_same_test and teacher.about["top1"] is not None:
            n_images = DATASETS[run.dataset].test_images or len(images[1])
            top1 = f"{percent(teacher.about['top1'], n_images)}, {accuracy_source(run)}"
        else:
            measured = evaluate(model, test, run.precision, is_teacher=True)["top1"]
            top1 = f"{percent(measured, len(images[1]))}, measured now in {run.precision}"
    facts |= {"blocks": len(model.block_names), "top-1 (%)": top1}
    if test.teacher_differs:
        facts["sees"] = str(teacher_sees)
    if overrides := describe_overrides(teacher.about["overrides"] or {}):
        facts["trained with"] = overrides
    return as_table("teacher", facts)


def accuracy_source(run: Run) -> str:
    """Where a teacher's known accuracy comes from, with the precision."""
    if run.teacher_run is not None:
        return f"measured when it was trained, in {run.teacher_run.precision}"
    weights = weights_file(run.teacher_weights, "teacher_weights")
    return f"as its file says, whose weights are {stored_precision(weights)}"
