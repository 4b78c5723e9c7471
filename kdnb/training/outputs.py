"""What training writes to a run's folder besides checkpoints: config.json, weights, result.json."""

import json
import statistics
from dataclasses import asdict

from safetensors.torch import save
from torch import nn

from kdnb.data.crops import CENTRE_SHARE
from kdnb.device import has_compiler
from kdnb.errors import InputError
from kdnb.models import Preprocessing, parameter_count
from kdnb.runs.files import damaged, write_atomically
from kdnb.runs.folder import FORMAT
from kdnb.runs.identity import training_facts
from kdnb.runs.run import Run
from kdnb.training.setup import TrainingSetup

PLACES = ("student_weights", "teacher_weights", "data_root")  # fields that say where things were


def make_config(run: Run, setup: TrainingSetup | None = None) -> dict:
    """What config.json says of a training; setup: of a run that is about to be trained."""
    config = {
        "run": run.identity,
        "preset": asdict(run.preset),
        "overrides": run.reported_overrides,
        "label": run.label,
    }
    if setup:
        config |= {
            "terms": [term._asdict() for term in setup.distiller.terms],
            "left_out": list(setup.distiller.left_out),
            "classes": list(setup.train.images.classes),
            "same_classes_assumed": setup.same_classes_assumed,
            "teacher": setup.teacher and setup.teacher.about,
        }
    return json.loads(json.dumps(config))  # as it is read back: JSON has lists for tuples


def check_config_matches(run: Run, config: dict) -> None:
    """Raises InputError if the folder of a run holds another training.

    config: of `make_config`.
    """

    def facts(config: dict) -> dict:
        classes = {"classes": config["classes"]} if "classes" in config else {}
        return training_facts(config) | classes

    try:
        stored, current = facts(run.config), facts(config)
    except (KeyError, TypeError, AttributeError) as error:
        raise damaged(run.folder / "config.json", f"it lacks {error}") from None
    differences = [
        f"{name} was {stored[name]!r} and is now {value!r}"
        for name, value in current.items()
        if name in stored and stored[name] != value
    ]
    if differences:
        raise InputError(
            f"{run.folder} holds another run: {', '.join(differences)}; move it away or change back"
        )


def write_config(run: Run, setup: TrainingSetup, machine: dict) -> bool:
    """Write config.json before the first step; returns whether steps are compiled.

    machine: device, versions, commit, threads, and whether steps are to be compiled. A run that
    continues is compiled if it was when it began, unless compile is off. Raises InputError if the
    folder holds another run.
    """
    path = run.folder / "config.json"
    config = make_config(run, setup)
    machines = [machine]
    if path.is_file():
        check_config_matches(run, config)
        machines = run.config.get("machines") or machines
        last = machines[-1]
        if last["device_type"] == machine["device_type"]:
            may_compile = has_compiler() and run.compile != "off"
            machine["compile"] = last["compile"] and may_compile
        if {**machine, "started": last["started"]} != last:
            machines = [*machines, machine]
    config["where"] = {name: getattr(run, name) for name in PLACES}
    config["machines"] = machines
    write_atomically(path, json.dumps({"format": FORMAT} | config, indent=2))
    return machine["compile"]


def record_fallback(run: Run) -> None:
    """Record in config.json that steps are not compiled, so that no later process tries again."""
    config = run.config
    if config["machines"][-1]["compile"]:
        config["machines"][-1]["compile"] = False
        write_atomically(run.folder / "config.json", json.dumps(config, indent=2))


def write_weights(run: Run, setup: TrainingSetup, trainable: nn.ModuleDict, top1: float) -> None:
    """Write student.safetensors and losses.safetensors, with metadata that says how to use them.

    top1: the accuracy after the last epoch, in percent. A method whose losses have no parameters
    has no second file.
    """
    images = setup.train.images
    crop = 1.0 if images.aspect is None else CENTRE_SHARE
    preprocessing = Preprocessing(images.mean, images.std, run.image_size, crop)
    metadata = preprocessing._asdict() | {
        "network": run.student,
        "dataset": run.dataset,
        "classes": images.classes,
        "top1": top1,
        "overrides": run.reported_overrides,
        "method": run.label,
        "teacher": run.teacher,
        "run": run.name,
        "commit": run.config["machines"][-1]["commit"],
    }
    for name, module in trainable.items():
        state = {key: value.cpu().contiguous() for key, value in module.state_dict().items()}
        if state:
            data = save(state, {"kdnb": json.dumps(metadata)})
            write_atomically(run.folder / f"{name}.safetensors", data)


def make_result(rows: list[dict], setup: TrainingSetup) -> dict:
    """What result.json says: accuracies after the last and the best epoch, seconds and counts.

    rows: of metrics.csv, one per epoch.
    """
    last = rows[-1]
    best = max(rows, key=lambda row: row["test_top1"])
    seconds = [row["seconds"] for row in rows]
    teacher = setup.distiller.teacher
    return {
        "top1": last["test_top1"],
        "top5": last["test_top5"],
        "best": {"epoch": best["epoch"], "top1": best["test_top1"], "top5": best["test_top5"]},
        "epoch_seconds": statistics.median(seconds),
        "total_seconds": sum(seconds),
        "parameters": parameter_count(setup.distiller.student),
        "teacher_parameters": parameter_count(teacher) if teacher is not None else None,
        "train_images": len(setup.train.images),
        "test_images": len(setup.test.images),
    }
