"""The teacher: where its weights come from, what it knows, and whether it knows the student's classes."""

from dataclasses import dataclass

from torch import nn

from kdnb.errors import InputError
from kdnb.models import class_count, fingerprint, imagenet_model, load_weights, read_metadata
from kdnb.runs.parameters import words
from kdnb.runs.run import Run
from kdnb.runs.weights import file_hash, weights_file


@dataclass(frozen=True)
class Teacher:
    """A trained network that teaches. `about` is what a run's config.json keeps of it."""

    model: nn.Module
    classes: tuple[str, ...] = ()  # their names; (): the file does not know them
    about: dict | None = None

    def __str__(self) -> str:
        """The network, its weights, and what their file tells of their training and accuracy."""
        network, weights, dataset, top1 = (
            self.about[name] for name in ("network", "weights", "dataset", "top1")
        )
        told = [dataset, f"top-1 {top1:.2f} %" if top1 else "", words(self.about["changes"] or {})]
        return f"{network}, weights {weights} ({', '.join(filter(None, told)) or 'it is not known of what'})"

    def same_classes(self, classes: tuple[str, ...]) -> tuple[bool, bool]:
        """Whether it knows these classes; and whether that is assumed, because only their number can be compared."""
        if self.classes:
            return tuple(self.classes) == tuple(classes), False
        same = class_count(self.model) == len(classes)
        return same, same


def load_teacher(run: Run) -> Teacher:
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
        found = (
            "trained" if run.teacher_id == "trained" else file_hash(path)
        )  # a trained one may have been moved
    kinds = {"dataset": str, "top1": float, "changes": dict}
    told = {
        name: value if isinstance(value := kept.get(name), kind) else None
        for name, kind in kinds.items()
    }
    about = {
        "network": run.teacher,
        "weights": weights,
        "sha256": fingerprint(model),
        "classes": class_count(model),
    }
    begun = (
        (run.config.get("teacher") or {}).get("sha256")
        if (run.folder / "config.json").is_file()
        else None
    )
    if begun not in (None, about["sha256"]) or run.teacher_id != found:
        raise InputError(
            f"{weights} does not hold the weights that teach {run.name}: set teacher_weights to their file, or delete "
            "that run's folder to begin anew"
        )
    return Teacher(model, tuple(classes), about | told)
