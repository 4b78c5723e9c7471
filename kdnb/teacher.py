"""The teacher: where its weights come from, what it knows, and whether it knows the student's classes."""

import hashlib
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from kdnb.errors import InputError
from kdnb.models import class_count, fingerprint, has_imagenet_weights, imagenet_model, load_weights, read_metadata
from kdnb.parameters import words
from kdnb.paths import located

if TYPE_CHECKING:
    from kdnb.run import Run

OTHERWISE = {"teacher_weights": "'none' trains a teacher first", "student_weights": "'none' begins from scratch"}


@dataclass(frozen=True)
class Teacher:
    """A trained network that teaches. `about` is what a run's config.json keeps of it."""

    model: nn.Module
    classes: tuple[str, ...] = ()  # their names; (): the file does not know them
    about: dict | None = None

    def __str__(self) -> str:
        """The network, its weights, and what their file tells of their training and accuracy."""
        network, weights, dataset, top1 = (self.about[name] for name in ("network", "weights", "dataset", "top1"))
        told = [dataset, f"top-1 {top1:.2f} %" if top1 else "", words(self.about["changes"] or {})]
        return f"{network}, weights {weights} ({', '.join(filter(None, told)) or 'it is not known of what'})"

    def same_classes(self, classes: tuple[str, ...]) -> tuple[bool, bool]:
        """Whether it knows these classes; and whether that is assumed, because only their number can be compared."""
        if self.classes:
            return tuple(self.classes) == tuple(classes), False
        same = class_count(self.model) == len(classes)
        return same, same


def load_teacher(run: "Run") -> Teacher:
    """The teacher of a run, from ImageNet's weights, its file or its own finished run. Raises InputError.

    A run that was begun has the teacher that it began with, or none.
    """
    if run.teacher_id == "imagenet":
        model, classes = imagenet_model(run.teacher)
        kept, weights, found = {"dataset": "imagenet"}, "imagenet", "imagenet"
    else:
        own = run.teacher_run if run.teacher_weights in ("", "none") else None  # else it was moved
        path = own.weights if own else weights_file(run.teacher_weights, "teacher_weights")
        model, kept = load_weights(run.teacher, path), read_metadata(path)
        classes, weights = kept.get("classes") or (), own.name if own else path.name
        found = "trained" if run.teacher_id == "trained" else digest(path)  # a trained one may have been moved
    kinds = {"dataset": str, "top1": float, "changes": dict}
    told = {name: value if isinstance(value := kept.get(name), kind) else None for name, kind in kinds.items()}
    about = {"network": run.teacher, "weights": weights, "sha256": fingerprint(model), "classes": class_count(model)}
    begun = (run.config.get("teacher") or {}).get("sha256") if (run.folder / "config.json").is_file() else None
    if begun not in (None, about["sha256"]) or run.teacher_id != found:
        raise InputError(
            f"{weights} does not hold the weights that teach {run.name}: set teacher_weights to their file, or delete "
            "that run's folder to begin anew"
        )
    return Teacher(model, tuple(classes), about | told)


def teacher_source(run: "Run") -> dict[str, str]:
    """{"teacher_weights": imagenet, none or a file; "teacher_id": what it is}. Raises InputError for a missing file.

    "" means: ImageNet's for a data set whose preset says so; the teacher that comes with the study,
    outputs/teachers/NETWORK-DATASET.safetensors, if the run asks for no other; else one that is trained first.
    """
    weights, preset = run.teacher_weights, run.preset
    if run.teacher_id:  # known from the start: the run is opened, or beside another
        return {}
    if not weights:
        kept = run.output_folder / "teachers" / f"{run.teacher}-{run.dataset}.safetensors"
        asked = run.teacher_seed or run.teacher_epochs or run.validation or run.image_size != preset.image_size
        weights = preset.teacher_weights if asked or not kept.is_file() else str(kept)
    source, found = (weights, "trained") if weights == "none" else known(weights, run.teacher, "teacher_weights")
    return {"teacher_weights": source, "teacher_id": found}


def student_source(run: "Run") -> dict[str, str]:
    """{"student_weights": imagenet, a file or ""; "pretrained": what it is}. Raises InputError for a missing file."""
    if run.pretrained:
        return {}
    scratch = run.student_weights in ("", "none")
    source, found = ("", "") if scratch else known(run.student_weights, run.student, "student_weights")
    return {"student_weights": source, "pretrained": found}


def known(weights: str, network: str, parameter: str) -> tuple[str, str]:
    """What a parameter means, "imagenet" or the path of a file, and what tells it from others. Raises InputError for a
    file that is not there and a network without ImageNet's weights."""
    if weights == "imagenet" and not has_imagenet_weights(network):
        raise InputError(
            f"there are no ImageNet weights for {network}: set {parameter} to a file with trained weights (of this or "
            f"another data set, such as CIFAR-100); {OTHERWISE[parameter]}"
        )
    if weights == "imagenet":
        return weights, weights
    path = weights_file(weights, parameter)
    return str(path), digest(path)


def weights_file(weights: str, parameter: str) -> Path:
    """The file that a parameter means, itself or in a run's folder. Raises InputError if it is not there."""
    path = located(weights)
    path = path / "student.safetensors" if path.is_dir() else path
    if not path.is_file():
        raise InputError(f"{parameter} {weights!r}: no such file; {OTHERWISE[parameter]}")
    return Path(os.path.abspath(path))


def begin(student: nn.Module, run: "Run", classes: tuple[str, ...]) -> None:
    """Give a fresh student the weights that it begins with; the classifier's only if their file names these classes.

    Raises InputError for weights that are not what they were when the run was described.
    """
    if run.pretrained == "imagenet":
        model, theirs = imagenet_model(run.student)
    else:
        path = Path(run.student_weights)
        if not path.is_file() or digest(path) != run.pretrained:
            told = f"student_weights {run.student_weights!r} does not hold the weights that {run.name} begins with"
            raise InputError(f"{told}: set it to their file")
        model, theirs = load_weights(run.student, path), read_metadata(path).get("classes") or ()
    state, head = model.state_dict(), student.classifier_name
    if tuple(theirs) != tuple(classes):
        state |= {key: value for key, value in student.state_dict().items() if key.rpartition(".")[0] == head}
    student.load_state_dict(state)


def digest(path: Path) -> str:
    """The start of the SHA-256 of a file's bytes, read again only if the file has changed."""
    status = path.stat()
    return digest_once(path, status.st_size, status.st_mtime_ns)


@lru_cache
def digest_once(path: Path, size: int, mtime: int) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
