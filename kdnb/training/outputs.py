"""What training writes to a run's folder besides checkpoints: config.json, weights, result.json."""

import json
import math
import os
import statistics
from collections.abc import Callable
from pathlib import Path

from safetensors.torch import save

from kdnb.data import Images
from kdnb.data.crops import TEST_CROP
from kdnb.data.image_file import VERSION
from kdnb.device import has_compiler, set_threads
from kdnb.losses.predicting import student_state
from kdnb.models import Preprocessing, parameter_count
from kdnb.runs.code import definitions, has_outside_code
from kdnb.runs.config import check_config_matches, make_config
from kdnb.runs.digests import digests
from kdnb.runs.files import write_atomically, write_json
from kdnb.runs.folder import FORMAT
from kdnb.runs.plugins import LOADED
from kdnb.runs.run import Run
from kdnb.training.setup import TrainingSetup
from kdnb.training.step import Engine

# Fields that say where things were.
PLACES = ("student_weights", "teacher_weights", "data_root", "plugins")


def training_config(run: Run, setup: TrainingSetup) -> dict:
    """What config.json says of a run that is about to be trained."""
    config = make_config(run) | {
        "terms": [term._asdict() for term in setup.distiller.terms],
        "left_out": list(setup.distiller.left_out),
        "classes": list(setup.train.images.classes),
        "unlabelled_images": setup.train.images.unlabelled,
        "same_classes_assumed": setup.same_classes_assumed,
        "teacher": describe_teacher(setup),
    }
    if setup.train.batch_size != run.batch_size:
        config["batch_size"] = setup.train.batch_size  # that fits the number of images
    if setup.train.has_photographs:
        config["decoding"] = VERSION
        config |= photograph_facts(setup.train.images, setup.test.images)
    return config


def photograph_facts(train: Images, test: Images) -> dict[str, list]:
    """What config.json says of the photographs that were really decoded."""
    # With a validation split, both are parts of the training images.
    return {
        "damaged_images": sorted({*train.damaged, *test.damaged}),
        "decoded_images": [train.pixels_digest, test.pixels_digest],
    }


def describe_teacher(setup: TrainingSetup) -> dict | None:
    """What config.json says of a teacher, and of the images that it gets."""
    if setup.teacher is None or setup.teacher.about is None:
        return None
    return setup.teacher.about | {"images": setup.teacher_images._asdict()}


def write_config(
    run: Run, setup: TrainingSetup, machine: dict, log: Callable[[str], None] = print
) -> bool:
    """Write config.json before the first step; returns whether steps are compiled.

    machine: device, versions, commit, threads, and whether steps are to be compiled. A run that
    continues is compiled if it was when it began, unless compile is off; and on CPUs it keeps its
    threads, because another number gives other bits. Raises InputError if the folder holds another
    run.
    """
    path = run.folder / "config.json"
    config = training_config(run, setup)
    networks = (run.student, *run.teacher.split(","))
    used = definitions(run.terms, networks, run.dataset)
    if has_outside_code(used) and not machine["commit"].endswith("+changes"):
        machine["commit"] += "+changes"
    machines = [machine]
    if path.is_file():
        check_config_matches(run, config)
        machines = run.config.get("machines") or machines
        last = machines[-1]
        if last["device_type"] == machine["device_type"]:
            may_compile = has_compiler() and run.compile != "off"
            machine["compile"] = last["compile"] and may_compile
            keep_threads(run, last, machine, log)
        if {**machine, "started": last["started"]} != last:
            machines = [*machines, machine]
    config["where"] = {name: getattr(run, name) for name in PLACES}
    config["plugins"] = {Path(name).name: digest for name, digest in LOADED.items()}
    config["machines"] = machines
    write_json(path, {"format": FORMAT} | config)
    return machine["compile"]


def keep_threads(run: Run, last: dict, machine: dict, log: Callable[[str], None]) -> None:
    """Give a run that continues on CPUs the number of threads that it had, or log that it differs.

    last: the machine that has trained it so far. machine: this one, whose "threads" are set.
    """
    threads = last.get("threads", machine["threads"])
    if machine["device_type"] != "cpu" or threads == machine["threads"]:
        return
    if not run.threads and threads <= (os.cpu_count() or 1):
        set_threads(threads)
        machine["threads"] = threads
        return
    log(
        f"{run.name}: it was trained with {threads} CPU threads so far, and now with "
        f"{machine['threads']}: its weights will differ in their last bits"
    )


def record_fallback(run: Run) -> None:
    """Record in config.json that steps are not compiled, so that no later process tries again."""
    config = run.config
    if config["machines"][-1]["compile"]:
        config["machines"][-1]["compile"] = False
        write_json(run.folder / "config.json", config)


def write_weights(run: Run, setup: TrainingSetup, engine: Engine, top1: float) -> None:
    """Write student.safetensors and losses.safetensors, with metadata that says how to use them.

    A run with an average of its weights has that in student.safetensors, since that was tested, and
    the student's own weights in student_last.safetensors.

    top1: the accuracy after the last epoch, in percent. A method whose losses have no parameters
    has no second file.
    """
    states = {
        "student": student_state(engine.tested),
        "losses": setup.distiller.losses.state_dict(),
    }
    if engine.average:
        states["student_last"] = student_state(setup.distiller.model)
    images = setup.train.images
    crop = 1.0 if images.aspect is None else TEST_CROP
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
    if setup.distiller.predictor_metadata:
        metadata["predictor"] = setup.distiller.predictor_metadata
    for name, state in states.items():
        state = {key: value.cpu().contiguous() for key, value in state.items()}
        if state:
            tested = metadata | ({"top1": None} if name == "student_last" else {})
            data = save(state, {"kdnb": json.dumps(tested)})
            write_atomically(run.folder / f"{name}.safetensors", data)


def write_result(run: Run, rows: list[dict], setup: TrainingSetup) -> None:
    """Write result.json, the last file of a run, with the digests of the other ones.

    rows: of metrics.csv, one per epoch.
    """
    result = make_result(rows, setup) | {"files": digests(run.folder)}
    write_json(run.folder / "result.json", result)


def make_result(rows: list[dict], setup: TrainingSetup) -> dict:
    """Accuracies after the last and the best epoch, seconds and counts.

    The best epoch is one of those that were tested.

    rows: of metrics.csv, one per epoch.
    """
    last = rows[-1]
    tested = [row for row in rows if not math.isnan(row["test_top1"])]
    best = max(tested, key=lambda row: row["test_top1"])
    seconds = [row["seconds"] for row in rows]
    teacher = setup.distiller.teacher
    return {
        "top1": last["test_top1"],
        "top5": last["test_top5"],
        "best": {"epoch": best["epoch"], "top1": best["test_top1"], "top5": best["test_top5"]},
        "epoch_seconds": statistics.median(seconds),
        "total_seconds": sum(seconds),
        "parameters": parameter_count(setup.distiller.model),
        "teacher_parameters": parameter_count(teacher) if teacher is not None else None,
        "train_images": len(setup.train.images) - setup.train.images.unlabelled,
        "unlabelled_images": setup.train.images.unlabelled,
        "test_images": len(setup.test.images),
    }
