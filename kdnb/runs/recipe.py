"""The optimiser, schedule, augmentation and views of a run: their canonical values."""

from collections.abc import Sequence

from kdnb.data.augment import POLICIES
from kdnb.data.mixing import MIXES
from kdnb.data.preset import OPTIMIZERS, SCHEDULES, STEPS
from kdnb.errors import InputError, choose
from kdnb.losses import LOSSES
from kdnb.losses.mix import Term, views_needed
from kdnb.runs.identity import Identity

SHARES = ("momentum", "label_smoothing", "ema", "validation")  # below 1


def resolve_recipe(run: Identity, terms: Sequence[Term]) -> None:
    """Set the fields of a run's recipe to their canonical values.

    The preset's are known already. Raises InputError for an impossible value, and for one that this
    method or schedule cannot have.
    """
    if run.schedule == "onecycle":  # the spelling that a shell needs no quotes for
        run.set_fields(schedule="one cycle")
    if run.mix == "none":
        run.set_fields(mix="")
    # For a method that needs two, 2 stays: it is then compared with others at equal views.
    if run.views == 1 and views_needed(terms) == 1:
        run.set_fields(views=0)  # it says the same
    check_recipe(run, terms)


def check_recipe(run: Identity, terms: Sequence[Term]) -> None:
    """Raises InputError for a recipe that is impossible."""
    choose("optimizer", run.optimizer, OPTIMIZERS)
    choose("schedule", run.schedule, (STEPS, *SCHEDULES))
    if run.augment:
        choose("augment", run.augment, ("none", *POLICIES))
    if run.mix:
        choose("mix", run.mix, ("none", *MIXES))
    for name in SHARES:
        if getattr(run, name) >= 1:
            raise InputError(f"{name} is {getattr(run, name)}: it must be a share below 1")
    for name in ("momentum", "weight_decay"):
        if getattr(run, name) < 0:
            raise InputError(f"{name} is {getattr(run, name)}: it must be 0 or more, or -1")
    if run.optimizer == "nesterov" and not run.momentum:
        raise InputError("momentum is 0: nesterov needs one above 0")
    if run.schedule == STEPS and not run.preset.milestones:
        raise InputError(
            f"schedule is {STEPS!r}: the preset of {run.dataset} has no milestones; choose one of "
            f"{', '.join(SCHEDULES)}"
        )
    if run.warmup_epochs and run.schedule == "one cycle":
        raise InputError(
            "warmup_epochs applies to the schedules steps and cosine: one cycle rises by itself"
        )
    if run.warmup_epochs >= run.epochs:
        raise InputError(
            f"warmup_epochs is {run.warmup_epochs}: it must be less than epochs, {run.epochs}"
        )
    check_labels(run, [term.loss for term in terms])
    if run.views == 1:
        names = ", ".join(term.loss for term in terms if LOSSES[term.loss].views == 2)
        raise InputError(f"views is 1: {names} compares 2 views of each image")


def check_labels(run: Identity, losses: Sequence[str]) -> None:
    """Raises InputError for labels, smoothed or mixed, that a method cannot use."""
    if run.label_smoothing and "ce" not in losses:
        raise InputError(
            f"label_smoothing is {run.label_smoothing}: it applies to ce, which the method "
            f"{run.method} does not contain"
        )
    names = [name for name in losses if LOSSES[name].needs_labels and name != "ce"]
    if run.mix and names:
        raise InputError(
            f"mix is {run.mix!r}: {', '.join(names)} needs one label per image, and a mixed image "
            "has two; choose a method without it, or no mix"
        )
