"""A finished experiment, opened again by the folder of its distilled student."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path

from kdnb.data import ImageSet
from kdnb.distill import Distiller
from kdnb.errors import InputError
from kdnb.experiment import Experiment
from kdnb.models import fingerprint
from kdnb.parameters import checked, project_root
from kdnb.runs import Run

__all__ = ["Reopened"]

RECIPE = ("teacher", "student", "epochs", "batch_size", "lr", "image_size")


@dataclass(frozen=True)
class Reopened(Experiment):
    """An Experiment that may be told by `run`, the folder of a finished distilled student, in place of its parameters.

    run: a path, or the name of a folder under runs/ of the outputs folder. The parameters are then those of the run,
    whatever device it was trained on. Its plain student and its teacher are looked for beside it, as `distill.ipynb`
    leaves them; a plain student that is missing is trained, a teacher is not.

    Raises InputError for a folder without such a run, for a parameter that is given and is not as the run's, and for
    other images.
    """

    run: str = ""

    def __post_init__(self):
        for name in ("run", "outputs"):
            object.__setattr__(self, name, checked(name, getattr(self, name), str))
        if self.run == "none":  # what papermill's None becomes
            object.__setattr__(self, "run", "")
        if self.run and self.teacher_weights == "none":
            raise InputError(
                "teacher_weights is 'none', but a finished run has its teacher: leave it out, or name its file"
            )
        if self.run:
            for name, value in remembered(Run(self.folder)).items():
                given, default = getattr(self, name), next(f.default for f in fields(self) if f.name == name)
                if given not in (default, value):
                    raise InputError(f"{name} is {given!r}, but was {value!r} in {self.run}: leave it out")
                object.__setattr__(self, name, value)
        super().__post_init__()

    @cached_property
    def folder(self) -> Path:
        path = Path(self.run).expanduser()
        named = Path(self.outputs).expanduser() if self.outputs else project_root() / "outputs"
        # Not resolve(): runs/ may be a link, and what lies beside the run lies beside the link.
        return Path(os.path.abspath(path if path.is_dir() else named / "runs" / self.run))

    @cached_property
    def output_folder(self) -> Path:
        """The one that the run lies in, unless `outputs` names another or the run lies somewhere else."""
        inside = self.run and not self.outputs and self.folder.parent.name == "runs"
        return self.folder.parent.parent if inside else super().output_folder

    @cached_property
    def data(self) -> tuple[ImageSet, ImageSet]:
        """As an Experiment's; raises InputError for images that are not those of the run."""
        found = super().data
        if self.run:
            config = self.distilled_run().config
            folder, classes = config.get("folder"), config.get("classes")
            if folder and folder != self.data_folder.resolve().name:
                raise InputError(f"{self.run} was trained on the folder {folder}: set data_root to it")
            if classes and classes != len(found[0].classes):
                raise InputError(
                    f"{self.run} was trained on {classes} classes, {self.data_folder} has {len(found[0].classes)}"
                )
        return found

    def distilled_run(self) -> Run:
        return Run(self.folder) if self.run else super().distilled_run()

    def plain_run(self) -> Run:
        """The student that differs from the distilled one in nothing but the distillation."""
        if not self.run:
            return super().plain_run()
        own = trained_by(self.distilled_run().config)
        for path in sorted(self.folder.parent.glob("*/result.json")):
            beside = Run(path.parent)
            try:
                config = beside.config
                if config["method"] == "plain" and trained_by(config) == own:
                    return beside
            except (InputError, KeyError, TypeError):
                continue  # damaged, or not of the study
        if self.run_precision != own["precision"]:
            raise InputError(
                f"there is no plain student beside {self.run}; to train it as that run was, set precision to "
                f"{own['precision']} (it would be {self.run_precision} here)"
            )
        return super().plain_run()

    @cached_property
    def teacher_source(self) -> Path | str:
        if not self.run or self.teacher_weights:
            return super().teacher_source
        source = self.distilled_run().config["teacher_weights"]["from"]
        if source == "imagenet":
            return source
        places = [self.folder.parent / source, self.output_folder / source]
        for place in places:
            if place.is_file():
                return place
        raise InputError(f"the teacher of {self.run}, {source}, is not beside it: set teacher_weights to its file")

    def distiller(self, *args, **kwargs) -> Distiller:
        """As an Experiment's; raises InputError for a teacher that is not the one of the run."""
        distiller = super().distiller(*args, **kwargs)
        if not self.run or distiller.teacher is None:
            return distiller
        if fingerprint(distiller.teacher) != self.distilled_run().config["teacher_weights"]["sha256"]:
            raise InputError(f"{self.teacher_source} does not hold the weights that taught {self.run}")
        return distiller


def remembered(run: Run) -> dict:
    """The parameters of a finished distilled student, as Experiment names them. Raises InputError for another run."""
    if not run.finished:
        raise InputError(f"run: {run.folder} is not the folder of a finished run (one with result.json)")
    config = run.config
    losses = config["losses"] or {}
    if not (run.folder / "student.safetensors").is_file():
        raise InputError(f"run: {run.folder} is a record without the network's weights; its run has to be made again")
    if "afd" not in losses:
        raise InputError(f"run: {run.folder} was trained without AFD ({config['method']}), so that nothing is linked")
    values = {name: config["recipe"][name] for name in RECIPE}
    values |= {name: config[name] for name in ("dataset", "seed", "train_limit", "temperature", "qk_dim")}
    return values | {"alpha": losses.get("kd", 0.0), "beta": losses["afd"]}


def trained_by(config: dict) -> dict:
    """What decides how a student comes out, but for its teacher."""
    named = {name: config[name] for name in ("dataset", "model", "seed", "train_limit", "precision")}
    return named | {"folder": config.get("folder"), "recipe": config["recipe"] | {"teacher": None}}
