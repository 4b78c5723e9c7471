"""What a run starts from: its images, its networks, its teacher, on their device; and what is kept of that."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from kdnb.data import Images, load_data
from kdnb.data.loader import Loader
from kdnb.data.stanford40 import Stanford40
from kdnb.device import PRECISIONS, pick_device
from kdnb.errors import InputError
from kdnb.models import create_model, imagenet_model, load_weights, read_metadata
from kdnb.paths import data_folder
from kdnb.runs.folder import damaged
from kdnb.runs.run import Run
from kdnb.runs.weights import file_hash
from kdnb.training.distiller import Distiller
from kdnb.training.teacher import Teacher, load_teacher

# Of a preset, what changes no step of a run.
NO_STEP = ("teacher_weights", "for_teacher", "lrs", "methods", "fixed_size")


class Ready(NamedTuple):
    """A run before its first step: fresh networks, and the batches of both splits."""

    distiller: Distiller
    train: Loader
    test: Loader
    teacher: Teacher | None = None
    assumed: bool = (
        False  # that the teacher knows the same classes: only their number could be compared
    )


def load_images(run: Run) -> tuple[Images, Images]:
    """The training images of a run, limited, and what it is tested on. Raises InputError if they are not there."""
    train, test = load_data(
        run.dataset, run.data_root, run.preset.stored(run.image_size), run.skip_damaged
    )
    train, test = train.split(run.validation) if run.validation else (train, test)
    return train.limit(run.train_limit), test


def loaders(run: Run, images: tuple[Images, Images]) -> tuple[Loader, Loader]:
    """The augmented training batches of a run and its test batches, on its device."""
    common = {"device": pick_device(run.device), "dtype": PRECISIONS[run.precision]}
    augment = {
        "train": True,
        "seed": run.seed,
        "padding": run.preset.padding,
        "flip": run.preset.flip,
    }
    train = Loader(images[0], run.batch_size, run.image_size, **augment, **common)
    many = (
        2**19 // run.image_size**2 if train.device.type != "cpu" else 0
    )  # launching takes as long as computing there
    return train, Loader(images[1], max(run.batch_size, 250, many), run.image_size, **common)


def photographs(run: Run, split: str = "train") -> Stanford40 | None:
    """A run's photographs as they lie on disk, with their boxes; None for data sets without boxes, or their files."""
    if run.dataset != "stanford40":
        return None
    found = Stanford40(data_folder(run.data_root), "train" if run.validation else split)
    return (
        Stanford40(found.root, found.split, boxes=True)
        if (found.folder / "XMLAnnotations").is_dir()
        else None
    )


def ready(
    run: Run, images: tuple[Images, Images] | None = None, teacher: Teacher | None = None
) -> Ready:
    """What a run starts from, on its device; its teacher, unless one is given, has to be trained. Raises InputError."""
    images = images or load_images(run)
    train, test = loaders(run, images)
    classes = images[0].classes
    teacher = teacher or (load_teacher(run) if run.teacher else None)
    same, assumed = teacher.same_classes(classes) if teacher else (None, False)
    example = test.take(
        [0, 0]
    ).images.float()  # of two for batch norm's sake; losses look at shapes alone
    with torch.random.fork_rng([]):  # networks and losses draw on the CPU
        torch.default_generator.manual_seed(run.seed)
        student = create_model(run.student, len(classes))
        if run.pretrained:
            load_pretrained(student, run, classes)
        student = student.to(train.device)
        model = teacher.model.to(train.device) if teacher else None
        known = {"same_classes": same, "labels": images[0].labels}
        distiller = Distiller(student, model, run.terms, example, allow_partial=run.named, **known)
    return Ready(distiller, train, test, teacher, assumed)


def load_pretrained(student: nn.Module, run: Run, classes: tuple[str, ...]) -> None:
    """Give a fresh student the weights that it begins with; the classifier's only if their file names these classes.

    Raises InputError for weights that are not what they were when the run was described.
    """
    if run.pretrained == "imagenet":
        model, theirs = imagenet_model(run.student)
    else:
        path = Path(run.student_weights)
        if not path.is_file() or file_hash(path) != run.pretrained:
            told = f"student_weights {run.student_weights!r} does not hold the weights that {run.name} begins with"
            raise InputError(f"{told}: set it to their file")
        model, theirs = load_weights(run.student, path), read_metadata(path).get("classes") or ()
    state, head = model.state_dict(), student.classifier_name
    if tuple(theirs) != tuple(classes):
        state |= {
            key: value
            for key, value in student.state_dict().items()
            if key.rpartition(".")[0] == head
        }
    student.load_state_dict(state)


def check(run: Run, images: tuple[Images, Images] | None = None) -> None:
    """Raises InputError for a run that cannot be trained, before its teacher is: a pair that its method cannot serve,
    a network that the images are too small for."""
    images = images or load_images(run)
    own = run.teacher_run
    with torch.random.fork_rng([]):
        ready(
            run, images, Teacher(create_model(run.teacher, len(images[0].classes))) if own else None
        )
    try:
        if own and not own.done:
            check(own)
    except InputError as error:
        alone = f"train it by itself (student {own.student}, method none), then set teacher_weights to its folder"
        raise InputError(
            f"its teacher cannot be trained by the preset ({error}): {alone}"
        ) from None


def description(run: Run, start: Ready | None = None) -> dict:
    """What config.json keeps of what is trained; start: where it starts from, if it is to be trained."""
    asked = {
        "run": run.identity,
        "preset": asdict(run.preset),
        "changes": run.departures,
        "label": run.label,
    }
    if start:
        asked |= {
            "terms": [term._asdict() for term in start.distiller.terms],
            "left_out": list(start.distiller.left_out),
            "classes": list(start.train.images.classes),
            "same_classes_assumed": start.assumed,
            "teacher": start.teacher and start.teacher.about,
        }
    return json.loads(json.dumps(asked))  # as it will be read back: tuples are lists


def check_same(run: Run, asked: dict) -> None:
    """Raises InputError if the folder of a run holds another one than `asked`, a description."""

    def facts(config: dict) -> dict:
        found = {
            name: value for name, value in config["preset"].items() if name not in NO_STEP
        } | config["run"]
        return found | {name: config[name] for name in ("classes",) if name in config}

    try:
        was, now = facts(run.config), facts(asked)
    except (KeyError, TypeError, AttributeError) as error:
        raise damaged(run.folder / "config.json", f"it lacks {error}") from None
    if differ := [name for name in now if name in was and was[name] != now[name]]:
        changes = ", ".join(f"{name} was {was[name]!r} and is now {now[name]!r}" for name in differ)
        raise InputError(f"{run.folder} holds another run: {changes}; move it away or change back")
