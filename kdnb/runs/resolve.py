"""From the parameters of a run to the values that they stand for.

Here the file system and the device are looked at: for weights, data and plug-ins.
"""

from collections.abc import Sequence
from dataclasses import fields

from kdnb.data import DATASETS, dataset_name
from kdnb.device import pick_device, pick_precision, system_errors
from kdnb.errors import InputError, choose
from kdnb.losses.mix import Term, applicable_terms, canonical, needs_teacher, parse
from kdnb.models import input_size, model_name
from kdnb.paths import data_folder
from kdnb.runs import parameters
from kdnb.runs.identity import Identity
from kdnb.runs.plugins import load_plugins
from kdnb.runs.recipe import resolve_recipe
from kdnb.runs.weights import (
    default_student_weights,
    several_sources,
    student_source,
    teacher_source,
)

LOGS = ("", "tensorboard", "wandb", "mlflow")  # kdnb.training.tracking has one class each


@system_errors()
def resolve(run: Identity) -> None:
    """Set every field of a run to its canonical value. Raises InputError for an impossible one."""
    checked = {
        f.name: parameters.check(f.name, getattr(run, f.name), f.default) for f in fields(run)
    }
    run.set_fields(**checked)
    run.set_fields(plugins=load_plugins(run.plugins))  # they may define any of the others
    run.set_fields(dataset=dataset_name(run.dataset))
    preset = run.preset
    # The teacher's name is checked even if the method needs none: a misspelt name is an error.
    run.set_fields(
        student=model_name(run.student or preset.student),
        teacher=",".join(map(model_name, (run.teacher or preset.teacher).split(","))),
    )
    terms = parse(run.method, run.methods)
    run.set_fields(method=canonical(terms))
    given = {name: getattr(run, name) for name in run.defaults}
    run.set_fields(
        **{
            name: value if given[name] == getattr(type(run), name) else given[name]
            for name, value in run.defaults.items()
        }
    )
    run.set_fields(precision=pick_precision(run.precision, pick_device(run.device)))
    check_values(run)
    resolve_recipe(run, terms)
    if not run.student_weights_hash:
        default = default_student_weights(preset, run.student)
        source, digest = student_source(run.student_weights, run.student, default)
        run.set_fields(student_weights=source, student_weights_hash=digest)
    if not run.student_weights_hash:
        run.set_fields(student_head="")  # it is random in any case
    if not run.data_hash:
        run.set_fields(data_hash=DATASETS[run.dataset].digest(data_folder(run.data_root)))
    if needs_teacher(terms):
        resolve_teacher(run, terms)
    else:
        run.set_fields(
            teacher="",
            teacher_weights="",
            teacher_seed=0,
            teacher_epochs=0,
            teacher_size=0,
            teacher_weights_hash="",
        )


def check_values(run: Identity) -> None:
    """Raises InputError for values that no data set or device allows."""
    run.preset.stored(run.image_size)  # raises for a size that the data set does not have
    choose("compile", run.compile, ["auto", "on", "off"])
    choose("log", run.log, LOGS)
    choose("student_head", run.student_head, ["", "new"])
    choose("data_on_device", run.data_on_device, ["auto", "yes", "no"])
    choose("teacher_cache", run.teacher_cache, ["auto", "on", "off"])
    if run.batch_size == 1:
        raise InputError("batch_size is 1: batch norm needs at least 2 images")
    if run.test_every == 0:
        raise InputError("test_every is 0: it must be 1 or more; the last epoch is always tested")


def resolve_teacher(run: Identity, terms: Sequence[Term]) -> None:
    """Set the fields of a run's teacher. Raises InputError if it cannot teach these terms."""
    preset = run.preset
    names = run.teacher.split(",")
    if not run.teacher_weights_hash and len(names) > 1:
        sources = several_sources(run.teacher_weights, names)
        sources, hashes = (",".join(each) for each in zip(*sources, strict=True))
        run.set_fields(teacher_weights=sources, teacher_weights_hash=hashes)
    if not run.teacher_weights_hash:
        source, digest = teacher_source(
            run.teacher_weights, run.teacher, preset.teacher_weights, run.short_teacher
        )
        run.set_fields(teacher_weights=source, teacher_weights_hash=digest)
    if run.teacher_weights_hash == "trained":
        default = preset.defaults(run.teacher, teacher=True)["epochs"]
        run.set_fields(teacher_epochs=run.teacher_epochs or default)
    elif run.teacher_seed or run.teacher_epochs:
        raise InputError(
            "teacher_seed and teacher_epochs apply to a teacher that is trained first "
            "(teacher_weights 'none')"
        )
    if run.teacher_size == run.image_size and not any(map(input_size, names)):
        run.set_fields(teacher_size=0)  # it says the same
    if run.teacher_knows_other_classes:
        applicable_terms(terms, same_classes=False, allow_partial=run.has_named_method)
