"""The teacher of a run: a trained network, the source of its weights, and its classes."""

from dataclasses import dataclass

from torch import nn

from kdnb.errors import InputError
from kdnb.models import (
    class_count,
    create_model,
    fingerprint,
    imagenet_model,
    load_weights,
    read_metadata,
    timm_model,
)
from kdnb.runs.identity import describe_overrides
from kdnb.runs.run import Run
from kdnb.runs.stored_names import with_current_names
from kdnb.runs.weights import file_hash, weights_file
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
        if self.classes:
            return tuple(self.classes) == tuple(classes), False
        equal = class_count(self.model) == len(classes)
        return equal, equal


def load_teacher(run: Run) -> Teacher:
    """The teacher of a run: torchvision's or timm's weights, a file, or a finished run.

    Raises InputError for weights that are missing, of another network, or not those with which the
    run was described or begun.
    """
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
        model = load_weights(run.teacher, path, size, "teacher")
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
    if run.teacher_weights_hash != digest or stored_hash(run) not in (None, about["sha256"]):
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
    size = teacher_image_size(run)
    if run.teacher_weights_hash in ("imagenet", "pretrained"):
        return Teacher(create_model(run.teacher, IMAGENET_CLASSES, size))
    if run.teacher_weights_hash == "trained":
        return Teacher(create_model(run.teacher, len(classes), size), classes)
    return load_teacher(run)
