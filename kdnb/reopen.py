"""A finished experiment, opened again by the folder of its distilled student."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path

from kdnb.distill import Distiller
from kdnb.errors import InputError
from kdnb.experiment import Experiment
from kdnb.models import fingerprint
from kdnb.parameters import project_root
from kdnb.runs import Run

__all__ = ["Reopened"]

RECIPE = ("teacher", "student", "epochs", "batch_size", "lr", "image_size")


@dataclass(frozen=True)
class Reopened(Experiment):
    """An Experiment that may be told by `run`, the folder of a finished distilled student, in place of its parameters.

    run: a path, or the name of a folder under runs/ of the outputs folder. The parameters are then those of the run,
    whatever device it was trained on. Its plain student and its teacher are looked for beside it, as `distill.ipynb`
    leaves them; a plain student that is missing is trained, a teacher is not.

    Raises InputError for a folder without such a run, and for a parameter that is given and is not as the run's.
    """

    run: str = ""

    def __post_init__(self):
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
        return (path if path.is_dir() else named / "runs" / self.run).resolve()

    @cached_property
    def output_folder(self) -> Path:
        """The one that the run lies in, unless `outputs` names another."""
        return self.folder.parent.parent if self.run and not self.outputs else super().output_folder

    def distilled_run(self) -> Run:
        return Run(self.folder) if self.run else super().distilled_run()

    def plain_run(self) -> Run:
        """The student that differs from the distilled one in nothing but the distillation."""
        if not self.run:
            return super().plain_run()
        own = trained_by(self.distilled_run())
        for path in sorted(self.folder.parent.glob("*/result.json")):
            beside = Run(path.parent)
            if beside.config["method"] == "plain" and trained_by(beside) == own:
                return beside
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
    if "afd" not in losses:
        raise InputError(f"run: {run.folder} was trained without AFD ({config['method']}), so that nothing is linked")
    values = {name: config["recipe"][name] for name in RECIPE}
    values |= {name: config[name] for name in ("dataset", "seed", "train_limit", "temperature", "qk_dim")}
    return values | {"alpha": losses.get("kd", 0.0), "beta": losses["afd"]}


def trained_by(run: Run) -> dict:
    """What decides how a student comes out, but for its teacher."""
    config = run.config
    named = {name: config[name] for name in ("dataset", "model", "seed", "train_limit", "precision")}
    return named | {"recipe": config["recipe"] | {"teacher": None}}
