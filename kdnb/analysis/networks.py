"""The networks of finished runs, loaded for analysis: the teacher, the baseline and the distilled student."""

from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdnb.data.loader import Loader
from kdnb.device import pick_device
from kdnb.errors import InputError
from kdnb.losses.afd import AFD, energy
from kdnb.models import (
    Block,
    Output,
    blocks,
    example_output,
    load_weights,
    parameter_count,
    read_state_dict,
)
from kdnb.paths import output_folder, resolve_path
from kdnb.results.frame import or_warn
from kdnb.runs import parameters
from kdnb.runs.identity import describe_overrides
from kdnb.runs.parameters import as_table
from kdnb.runs.run import Run
from kdnb.training.loop import train
from kdnb.training.setup import load_images, loaders
from kdnb.training.step import evaluate
from kdnb.training.teacher import load_teacher

STUDENTS = ("baseline", "distilled")


class Networks(NamedTuple):
    """A teacher and its students after training, and the test images."""

    models: dict[str, nn.Module]  # by role or method, "teacher" first, in eval mode
    blocks: tuple[list[Block], list[Block]]  # the teacher's and the student's
    loader: (
        Loader  # the test images in order, whole, in float32, whatever the precision of training
    )
    same_classes: bool = True  # whether the teacher knows the data set's classes
    afd: AFD | None = None  # of `load_run`: what links teacher and distilled student
    history: np.ndarray | None = (
        None  # (epochs, T, S), mean links over the training images of each epoch
    )

    @property
    def classifiers(self) -> dict[str, nn.Module]:
        """Those that know the data set's classes."""
        return {
            name: model
            for name, model in self.models.items()
            if self.same_classes or name != "teacher"
        }

    def distances(self, outputs: Mapping[str, Output]) -> dict[str, Tensor]:
        """(n, T, S) of each student: 1 - cosine of teacher's and student's maps, pooled to the same size."""
        teacher = outputs["teacher"]
        # Of maps of length 1 the mean squared difference, AFD's distance, is 2 / hw times 1 - cosine.
        half = torch.tensor(
            [h[0, 0].numel() / 2 for h in teacher.feats], device=self.loader.device
        )[:, None]  # t 1
        return {role: half * self.afd.distances(outputs[role], teacher) for role in STUDENTS}

    def flat(self, outputs: Mapping[str, Output]) -> Tensor:
        """(n, T): the same of the teacher's maps and one that is even everywhere."""
        maps = (F.normalize(energy(h), dim=(1, 2)) for h in outputs["teacher"].feats)
        return torch.stack([1 - m.mean((1, 2)) * m[0].numel() ** 0.5 for m in maps], 1)

    def logits(self, outputs: Mapping[str, Output]) -> dict[str, Tensor]:
        """(n, classes) of each network that knows the data set's classes."""
        return {role: outputs[role].logits for role in self.classifiers}


def run_from_notebook(namespace: Mapping) -> Run:
    """The run that a notebook's `globals()` name; "": the newest with AFD or, without any, one to be trained.

    Raises InputError for a photograph that is not there.
    """
    known = dict.fromkeys(("run", "photograph", "teacher_weights", "data_root", "outputs"), "")
    known |= {"device": "auto", "threads": 0}
    given = parameters.from_notebook(namespace, known)
    if isinstance(given.get("run"), Run):  # the cell is run again, and the name is taken
        return given["run"]
    where = {
        name: parameters.check(name, value, known[name]) for name, value in given.items() if value
    }
    if (photograph := where.pop("photograph", "")) and not resolve_path(photograph).is_file():
        raise InputError(f"photograph {photograph!r}: no such file")
    if name := where.pop("run", ""):
        return Run.open(name, **where)
    kept = output_folder(where.get("outputs", "")).glob("runs/*/losses.safetensors")
    newest_first = sorted(kept, key=lambda path: path.stat().st_mtime, reverse=True)
    runs = (or_warn("the search", partial(Run.open, **where), path.parent) for path in newest_first)
    newest = next(
        (run for run in runs if run and run.done and "afd" in {term.loss for term in run.terms}),
        None,
    )
    if newest is None:
        print("There is no finished run with AFD: one of the digits is trained first.")
    return newest or Run(**where)


def load_run(run: Run) -> Networks:
    """The networks of a run with AFD and of its baseline, as training left them; what is missing is trained first.

    Raises InputError for a run without AFD, and for one that did not keep its weights.
    """
    if "afd" not in {term.loss for term in run.terms}:
        raise InputError(
            f"method {run.label!r} has no afd: nothing is linked; choose a run whose method has it"
        )
    run, baseline = train(run), train(run.baseline)
    found = load_networks({"baseline": baseline, "distilled": run})
    images = found.loader.take([0, 1]).images
    outputs = (example_output(found.models[role], images) for role in ("distilled", "teacher"))
    with torch.random.fork_rng([]):
        afd = AFD(*outputs, **next(term.options for term in run.terms if term.loss == "afd"))
    kept = read_state_dict(run.loss_weights)
    afd.load_state_dict(
        {key.removeprefix("afd."): kept[key] for key in kept if key.startswith("afd.")}
    )
    return found._replace(afd=afd.to(found.loader.device).eval(), history=run.history["afd.links"])


def load_networks(runs: Mapping[str, Run]) -> Networks:
    """The students of finished runs of one student, by name, with the teacher of the first that has one."""
    taught = next(run for run in runs.values() if run.teacher)
    teacher, (_, test), device = (
        load_teacher(taught),
        load_images(taught),
        pick_device(taught.device),
    )
    models = {"teacher": teacher.model} | {
        name: load_weights(run.student, run.weights) for name, run in runs.items()
    }
    for model in models.values():
        model.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)
    both = tuple(blocks(models[name], taught.image_size) for name in ("teacher", next(iter(runs))))
    loader = Loader(
        test, 100, taught.image_size, device=device
    )  # few: several networks' maps at 224 pixels
    return Networks(models, both, loader, teacher.same_classes(test.classes)[0])


def teacher_table(run: Run) -> pd.DataFrame:
    """What the teacher of a run is and how good it is on the test images; it has to be trained. Raises InputError."""
    if not run.teacher:
        raise InputError(
            f"method {run.label!r} has no teacher: choose one that has, or train.ipynb for one network"
        )
    teacher, images = load_teacher(run), load_images(run)
    _, test = loaders(run, images)
    model = teacher.model.to(test.device)
    same, _ = teacher.same_classes(images[1].classes)
    shown = {
        "network": run.teacher,
        "weights": teacher.about["weights"],
        "parameters": f"{parameter_count(model):,}",
        "blocks": len(model.block_names),
        "top-1 (%)": f"{evaluate(model, test, run.precision)['top1']:.2f}"
        if same
        else "it knows other classes",
    }
    if changed := describe_overrides(teacher.about["overrides"] or {}):
        shown["trained with"] = changed
    return as_table("teacher", shown)
