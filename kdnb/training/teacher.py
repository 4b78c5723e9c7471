"""The teacher of a run: a trained network, the source of its weights, and its classes."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from kdnb.errors import InputError
from kdnb.losses.predicting import load_network
from kdnb.models import (
    class_count,
    create_model,
    fingerprint,
    imagenet_model,
    read_metadata,
    timm_model,
)
from kdnb.runs.identity import describe_overrides
from kdnb.runs.run import Run
from kdnb.runs.stored_names import with_current_names
from kdnb.runs.weights import file_hash, weights_file
from kdnb.training.loss_terms import Teachers
from kdnb.training.teacher_images import teacher_image_size

IMAGENET_CLASSES = 1000
METADATA = {"dataset": str, "top1": float, "overrides": dict}  # of a weights file, with types


@dataclass(frozen=True)
class Teacher:
    """A network that teaches.

    Attributes:
        model: the network.
        classes: the names of its classes; empty if the weights file does not name them.
        about: what config.json says of it: network, weights, sha256, classes; and of its training:
            dataset, top1, overrides. None for a teacher that is not trained.
    """

    model: nn.Module
    classes: tuple[str, ...] = ()
    about: dict | None = None

    def __str__(self) -> str:
        """The network, its weights, and what their file says of its training and accuracy."""
        facts = [self.about["dataset"]]
        if self.about["top1"]:
            facts.append(f"top-1 {self.about['top1']:.2f} %")
        facts.append(describe_overrides(self.about["overrides"] or {}))
        training = ", ".join(filter(None, facts)) or "their training is not known"
        return f"{self.about['network']}, weights {self.about['weights']} ({training})"

    def same_classes(self, classes: tuple[str, ...]) -> tuple[bool, bool]:
        """Whether the teacher knows these classes, and whether that is assumed.

        It is assumed if the weights file does not name its classes, and there are as many.
        """
        if isinstance(self.model, Teachers):
            answers = [Teacher(each, self.classes).same_classes(classes) for each in self.model]
            return all(same for same, _ in answers), any(assumed for _, assumed in answers)
        if self.classes:
            return tuple(self.classes) == tuple(classes), False
        equal = class_count(self.model) == len(classes)
        return equal, equal


def load_teacher(run: Run) -> Teacher:
    """The teacher of a run, or its teachers: torchvision's or timm's weights, or files.

    Raises InputError for weights that are missing, of another network, or not those with which the
    run was described or begun.
    """
    if len(run.teachers) == 1:
        return load_one(run, stored_hash(run))
    hashes = (stored_hash(run) or "").split(",")
    if len(hashes) != len(run.teachers):
        hashes = [None] * len(run.teachers)
    return join([load_one(each, digest) for each, digest in zip(run.teachers, hashes, strict=True)])


def join(teachers: Sequence[Teacher]) -> Teacher:
    """Several teachers as one, whose facts are those of each with commas between them."""
    about = {
        name: ",".join(str(each.about[name]) for each in teachers)
        for name in ("network", "weights", "sha256")
    }
    for name in ("dataset", "classes"):
        values = {each.about[name] for each in teachers}
        about[name] = values.pop() if len(values) == 1 else None
    classes = {each.classes for each in teachers}
    return Teacher(
        Teachers(each.model for each in teachers),
        classes.pop() if len(classes) == 1 else (),
        about | {"top1": None, "overrides": None},
    )


def load_one(run: Run, digest_before: str | None) -> Teacher:
    """The teacher of a run that has one; digest_before: of config.json, None if it says nothing."""
    size = teacher_image_size(run)
    if run.teacher_weights_hash == "imagenet":
        model, classes = imagenet_model(run.teacher)
        weights, digest, metadata = "imagenet", "imagenet", {"dataset": "imagenet"}
    elif run.teacher_weights_hash == "pretrained":
        model, classes = timm_model(run.teacher, size), ()
        weights, digest, metadata = "pretrained", "pretrained", {"dataset": "timm's"}
    else:
        # A teacher that was trained first may have been moved: then teacher_weights names its file.
        own_run = run.teacher_run if run.teacher_weights in ("", "none") else None
        path = own_run.weights if own_run else weights_file(run.teacher_weights, "teacher_weights")
        model = load_network(run.teacher, path, size, "teacher")
        metadata = with_current_names(read_metadata(path))
        classes = metadata.get("classes") or ()
        weights = own_run.name if own_run else path.name
        digest = "trained" if run.teacher_weights_hash == "trained" else file_hash(path)
    about = {
        "network": run.teacher,
        "weights": weights,
        "sha256": fingerprint(model),
        "classes": class_count(model),
    }
    if run.teacher_weights_hash != digest or digest_before not in (None, about["sha256"]):
        raise InputError(
            f"{weights} does not hold the weights that teach {run.name}: set teacher_weights to "
            "their file, or move that run's folder away to begin anew"
        )
    for name, kind in METADATA.items():
        value = metadata.get(name)
        about[name] = value if isinstance(value, kind) else None
    return Teacher(model, tuple(classes), about)


def stored_hash(run: Run) -> str | None:
    """The hash of the teacher's weights in the config.json of a run that was begun; else None."""
    if not (run.folder / "config.json").is_file():
        return None
    return (run.config.get("teacher") or {}).get("sha256")


def untrained_teacher(run: Run, classes: tuple[str, ...]) -> Teacher:
    """A teacher with random weights that knows as many classes as the run's teacher.

    classes: the data set's.

    For what depends on networks and classes alone, such as the time of a step. Only a weights file
    of the user's is read.
    """
    if len(run.teachers) > 1:
        parts = [untrained_teacher(each, classes) for each in run.teachers]
        return Teacher(Teachers(each.model for each in parts), parts[0].classes)
    size = teacher_image_size(run)
    if run.teacher_weights_hash in ("imagenet", "pretrained"):
        return Teacher(create_model(run.teacher, IMAGENET_CLASSES, size))
    if run.teacher_weights_hash == "trained":
        return Teacher(create_model(run.teacher, len(classes), size), classes)
    return load_teacher(run)
