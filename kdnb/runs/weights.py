"""What `student_weights` and `teacher_weights` mean: a source of weights, and its hash.

All of it follows from plain values, so that a run can be described without loading a network.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from kdnb.data import DATASETS, Preset
from kdnb.errors import InputError, quote
from kdnb.models import has_imagenet_weights, has_timm_weights, read_metadata
from kdnb.paths import resolve_path
from kdnb.runs.digests import check_file, file_digest

ALTERNATIVES = {
    "teacher_weights": "'none' trains a teacher first",
    "student_weights": "'none' starts from random weights",
}


def default_student_weights(preset: Preset, network: str) -> str:
    """What a network starts from by default: "imagenet", or "" for random weights.

    It is the preset's, if torchvision has such weights for the network.
    """
    if preset.student_weights != "none" and has_imagenet_weights(network):
        return preset.student_weights
    return ""


def student_source(weights: str, network: str, default: str = "") -> tuple[str, str]:
    """The source of a student's initial weights and its hash, which is "" for random weights.

    Args:
        weights: the parameter `student_weights`: "imagenet" or "pretrained", a file or a run's
            folder; "none" for random weights; "" for the default.
        network: name of the student's network.
        default: of `default_student_weights`.

    Raises InputError for a missing file and for a network without ImageNet weights.
    """
    if weights == "none" or not (weights or default):
        return "none" if default else "", ""
    return resolve_weights(weights or default, network, "student_weights")


def teacher_source(
    weights: str, network: str, preset_weights: str, short_teacher: Path | None
) -> tuple[str, str]:
    """The source of a teacher's weights and its hash; "trained" for one that is trained first.

    Args:
        weights: the parameter `teacher_weights`: "imagenet" or "pretrained", "none", a file or a
            run's folder; "" for the default.
        network: name of the teacher's network.
        preset_weights: the data set's default, "imagenet" or "none".
        short_teacher: the file of the teacher that comes with the study, which takes the place of
            the default where it exists; None where the run asks for another one.

    Raises InputError for a missing file and for a network without ImageNet weights.
    """
    if not weights:
        weights = (
            str(short_teacher)
            if short_teacher is not None and short_teacher.is_file()
            else preset_weights
        )
    if weights == "none":
        return "none", "trained"
    return resolve_weights(weights, network, "teacher_weights")


def several_sources(weights: str, networks: Sequence[str]) -> list[tuple[str, str]]:
    """The source of the weights of each of several teachers, and its hash.

    Args:
        weights: the parameter `teacher_weights`: for each teacher "imagenet", "pretrained", a file
            or a run's folder, with commas between them.
        networks: names of the teachers' networks.

    Raises InputError for another number of weights, and for weights that are missing: several
    teachers are not trained first.
    """
    given = [part.strip() for part in weights.split(",") if part.strip()]
    if len(given) != len(networks) or "none" in given:
        raise InputError(
            f"teacher_weights {quote(weights)}: each of the {len(networks)} teachers "
            f"({', '.join(networks)}) needs trained weights (a file, a run's folder, imagenet or "
            "pretrained), with commas between them"
        )
    return [
        resolve_weights(part, network, "teacher_weights")
        for part, network in zip(given, networks, strict=True)
    ]


def resolve_weights(weights: str, network: str, parameter: str) -> tuple[str, str]:
    """The absolute path of a weights file and the start of its SHA-256.

    For torchvision's weights it is twice "imagenet", for timm's twice "pretrained". Raises
    InputError for a missing file and for a network without such weights, naming the parameter.
    """
    if weights in ("imagenet", "pretrained"):
        if has_imagenet_weights(network):
            return "imagenet", "imagenet"
        if weights == "pretrained" and has_timm_weights(network):
            return weights, weights
        kind = "ImageNet" if weights == "imagenet" else "pretrained"
        raise InputError(
            f"there are no {kind} weights for {network}: set {parameter} to a file with trained "
            f"weights (of this or another data set, such as CIFAR-100); {ALTERNATIVES[parameter]}"
        )
    path = weights_file(weights, parameter)
    return str(path), file_hash(path)


def weights_file(weights: str, parameter: str) -> Path:
    """The absolute path of a weights file, given itself or as the folder of its run.

    Raises InputError if it is missing, and for a file of a finished run that is not the one that
    the run wrote.
    """
    path = resolve_path(weights)
    path = path / "student.safetensors" if path.is_dir() else path
    if not path.is_file():
        raise InputError(f"{parameter} {weights!r}: no such file; {ALTERNATIVES[parameter]}")
    return check_file(Path(os.path.abspath(path)))


def know_other_classes(dataset: str, weights: str, digest: str) -> bool:
    """Whether a teacher's weights are known, without images, to be of other classes or of none.

    The names of a data set's classes are read with its images. Where it is known how many they are,
    a file from another data set that names more or fewer has others.

    Args:
        dataset: name of the data set.
        weights: the source of the weights.
        digest: its hash.
    """
    if digest in ("imagenet", "pretrained"):
        return dataset != "imagenet"
    expected = DATASETS[dataset].class_count
    metadata = read_metadata(weights) if expected else {}
    if metadata.get("dataset") == dataset:
        return False
    return len(metadata.get("classes", ())) not in (0, expected)


def file_hash(path: Path) -> str:
    """The first 16 hex digits of the SHA-256 of a file, read again only if it changed."""
    return file_digest(path)[:16]
