"""One question to the study, as its notebooks ask it: the parameters, checked before anything trains, and what follows.

experiment = Experiment(dataset="digits")
teacher, plain, distilled = experiment.teacher_run(), experiment.plain_run(), experiment.distilled_run()
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path

import torch

from kdnb import data
from kdnb.batches import Batches
from kdnb.distill import Distiller
from kdnb.errors import InputError
from kdnb.models import (
    RESNETS,
    create_model,
    fingerprint,
    imagenet_weights,
    load_weights,
    model_name,
    parameter_count,
)
from kdnb.parameters import checked, data_folder, injected, project_root
from kdnb.recipes import Recipe, recipe
from kdnb.runs import Run
from kdnb.train import evaluate, fit, pick_compile, pick_device, pick_precision

__all__ = ["Experiment"]


@dataclass(frozen=True)
class Experiment:
    """What `distill.ipynb` varies; the same names, types and defaults as its parameters cell.

    Raises InputError for a value that is not possible.
    """

    dataset: str = "digits"
    data_root: str = ""
    teacher: str = ""
    student: str = ""
    teacher_weights: str = ""
    alpha: float = 0.9
    beta: float = 200.0
    temperature: float = 4.0
    qk_dim: int = 128
    epochs: int = 0
    batch_size: int = 0
    lr: float = 0.0
    image_size: int = 0
    seed: int = 0
    teacher_seed: int = 0
    train_limit: int = 0
    device: str = "auto"
    precision: str = "auto"
    compile: str = "auto"
    outputs: str = ""
    baseline: bool = True

    @classmethod
    def from_notebook(cls, namespace: Mapping) -> Experiment:
        """The experiment that a notebook's parameters describe, given its `globals()`.

        papermill only warns about a misspelt `-p`, and then trains the defaults: here it is an InputError.
        """
        known = [f.name for f in fields(cls)]
        for unknown in injected(namespace.get("In", [])) - set(known):
            raise InputError(f"unknown parameter {unknown!r}: choose from {', '.join(known)}")
        return cls(**{name: namespace[name] for name in known if name in namespace})

    def __post_init__(self):
        for field in fields(self):
            object.__setattr__(self, field.name, checked(field.name, getattr(self, field.name), type(field.default)))
        for name in (
            "alpha",
            "beta",
            "epochs",
            "batch_size",
            "lr",
            "image_size",
            "seed",
            "teacher_seed",
            "train_limit",
        ):
            if getattr(self, name) < 0:
                raise InputError(f"{name} is {getattr(self, name)}: it must be 0 or more")
        for name in ("temperature", "qk_dim"):
            if getattr(self, name) <= 0:
                raise InputError(f"{name} is {getattr(self, name)}: it must be more than 0")
        if not self.alpha and not self.beta:
            raise InputError("alpha and beta are both 0: with no loss to distil by, this is the plain student")
        if self.batch_size == 1:
            raise InputError("batch_size is 1: batch norm needs at least 2 images")
        pick_compile(self.compile, self.torch_device, 0)
        self.recipe, self.run_precision  # noqa: B018  each raises for what it does not know
        if self.teacher_weights not in ("", "none") and not Path(self.teacher_weights).is_file():
            raise InputError(
                f"teacher_weights {self.teacher_weights!r}: no such file; 'none' trains a teacher from scratch"
            )

    # What the parameters come to

    @cached_property
    def recipe(self) -> Recipe:
        """The data set's own recipe, with the parameters that are not 0 or empty in its place."""
        changes = {name: getattr(self, name) for name in ("epochs", "batch_size", "lr", "image_size")}
        models = {name: model_name(getattr(self, name)) for name in ("teacher", "student") if getattr(self, name)}
        return recipe(self.dataset, **changes, **models)

    @cached_property
    def torch_device(self) -> torch.device:
        return pick_device(self.device)

    @cached_property
    def run_precision(self) -> str:
        return pick_precision(self.precision, self.torch_device)

    @cached_property
    def output_folder(self) -> Path:
        return Path(self.outputs).expanduser() if self.outputs else project_root() / "outputs"

    @cached_property
    def data_folder(self) -> Path:
        return data_folder(self.data_root)

    @cached_property
    def data(self) -> tuple[data.ImageSet, data.ImageSet]:
        """Training and test images. Raises InputError if they are not there."""
        train, test = data.load(self.dataset, self.data_folder, self.recipe.canvas_size)
        if self.train_limit > len(train):
            raise InputError(f"train_limit is {self.train_limit}: {self.dataset} has {len(train)} training images")
        return train.limit(self.train_limit), test

    def summary(self):
        """The effective parameters as a pandas table, for the notebook's reader."""
        import pandas as pd

        shown = asdict(self.recipe) | {"device": str(self.torch_device), "precision": self.run_precision}
        shown |= {
            name: getattr(self, name) for name in ("alpha", "beta", "temperature", "qk_dim", "seed", "train_limit")
        }
        return pd.DataFrame({"value": shown.values()}, index=pd.Index(shown, name="parameter")).astype(str)

    # The three trainings

    def teacher_run(self) -> Run:
        """The teacher, trained by the same recipe from `teacher_seed`; read if it was trained before."""
        return self._fit(self.recipe.teacher, self.teacher_seed)

    def plain_run(self) -> Run:
        """The student on its labels alone: what distillation has to beat."""
        return self._fit(self.recipe.student, self.seed)

    def distilled_run(self) -> Run:
        """The student taught by the teacher: CE + alpha * KD + beta * AFD."""
        return self._fit(self.recipe.student, self.seed, distilled=True)

    @cached_property
    def teacher_source(self) -> Path | str:
        """Where the teacher's weights are: a file, or "imagenet". "none", or nothing found: trained here first.

        In order: `teacher_weights`; ImageNet's for a data set whose recipe says so; the full-length teacher that
        comes with the study, outputs/teachers/MODEL-DATASET.safetensors; the run of `teacher_run`.
        """
        if self.teacher_weights not in ("", "none"):
            return Path(self.teacher_weights)
        if self.teacher_weights == "" and self.recipe.pretrained:
            if self.recipe.teacher in RESNETS:
                return "imagenet"
            raise InputError(
                f"there are no ImageNet weights for {self.recipe.teacher}: set teacher_weights to a file with trained "
                f"weights (of {self.dataset} or another data set, such as CIFAR-100), or to 'none' to train one first"
            )
        kept = self.output_folder / "teachers" / f"{self.recipe.teacher}-{self.dataset}.safetensors"
        if self.teacher_weights == "" and kept.is_file():
            return kept
        return self.teacher_run().weights

    @cached_property
    def teacher_model(self) -> torch.nn.Module:
        """The trained teacher. Raises InputError if its weights are not to be had or of another network."""
        name = self.recipe.teacher
        if self.teacher_source == "imagenet":
            model = create_model(name, 1000)
            model.load_state_dict(imagenet_weights(name))
        else:
            model = load_weights(name, self.teacher_source)
        return model.to(self.torch_device, memory_format=torch.channels_last).eval()

    def teacher_accuracy(self) -> dict[str, float] | None:
        """The teacher's accuracy on the test images, or None if it knows other classes."""
        if self.teacher_model.fc.out_features != len(self.data[1].classes):
            return None
        return evaluate(self.teacher_model, self.batches()[1], self.run_precision)

    def teacher_summary(self):
        """What the teacher is and how good it is, as a pandas table; it is loaded, or trained first."""
        import pandas as pd

        accuracy = self.teacher_accuracy()
        shown = {
            "network": self.recipe.teacher,
            "weights": self._shown(self.teacher_source),
            "parameters": f"{parameter_count(self.teacher_model):,}",
            "blocks": len(self.teacher_model.block_names),
            "top-1 (%)": f"{accuracy['top1']:.2f}" if accuracy else "it knows other classes",
        }
        return pd.DataFrame({"value": shown.values()}, index=pd.Index(shown, name="teacher")).astype(str)

    def _shown(self, source: Path | str) -> str:
        """A path as a reader wants it: from the outputs folder on, if it lies there."""
        inside = isinstance(source, Path) and source.resolve().is_relative_to(self.output_folder.resolve())
        return str(source.resolve().relative_to(self.output_folder.resolve())) if inside else str(source)

    def named_runs(self, plain: Run | None = None, distilled: Run | None = None) -> dict[str, Run]:
        """The runs of the study at hand under the names that plots give them, the teacher's first if it is known."""
        named = {"teacher": None, "plain student": plain, "distilled student": distilled}
        source = self.teacher_source
        if isinstance(source, Path) and (source.parent / "result.json").is_file():
            named["teacher"] = Run(source.parent)
            if plain is not None and plain.folder == source.parent:
                named["plain student"] = None  # the same network twice
        return {name: run for name, run in named.items() if run is not None}

    def batches(self, seed: int | None = None) -> tuple[Batches, Batches]:
        """Training and test batches on the device."""
        train, test = self.data
        r = self.recipe
        dtype = torch.bfloat16 if self.run_precision == "bfloat16" else torch.float32
        common = {"size": r.image_size, "device": self.torch_device, "dtype": dtype}
        seed = self.seed if seed is None else seed
        return (
            Batches(train, r.batch_size, train=True, seed=seed, padding=r.padding, flip=r.flip, **common),
            Batches(test, max(r.batch_size, 250), **common),
        )

    def distiller(self, model: str, seed: int, distilled: bool, test: Batches) -> Distiller:
        """A fresh student (and, if `distilled`, the teacher and the losses), from `seed` alone."""
        teacher = self.teacher_model if distilled else None  # first: it may have to be trained, from a seed of its own
        example, _ = next(iter(test.epoch()))
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            student = create_model(model, len(self.data[0].classes)).to(self.torch_device)
            weights = {"kd": self.alpha, "afd": self.beta} if distilled else None
            options = {"kd": {"temperature": self.temperature}, "afd": {"qk_dim": self.qk_dim}}
            return Distiller(student, teacher, weights, example[:2].float(), options)

    def _fit(self, model: str, seed: int, distilled: bool = False) -> Run:
        train, test = self.batches(seed)
        distiller = self.distiller(model, seed, distilled, test)
        for sentence in distiller.left_out:
            print(sentence)
        if distilled and not distiller.losses:
            raise InputError(f"nothing is left to distil by: {'; '.join(distiller.left_out)}; beta is {self.beta}")
        config = {
            "dataset": self.dataset,
            "classes": len(self.data[0].classes),
            "model": model,
            "method": "+".join(distiller.losses) or "plain",
            "seed": seed,
            "train_limit": self.train_limit,
            "recipe": asdict(self.recipe) | {"teacher": self.recipe.teacher if distilled else None, "student": model},
            "losses": distiller.weights,
            "device_type": self.torch_device.type,
            "precision": self.run_precision,
            "compile": pick_compile(self.compile, self.torch_device, self.recipe.epochs * len(train)),
        }
        if self.dataset == "folder":
            config["folder"] = self.data_folder.resolve().name
        if distilled:
            source = self.teacher_source
            config |= {"temperature": self.temperature, "qk_dim": self.qk_dim}
            config["teacher_weights"] = {
                "from": Path(source).name
                if source == "imagenet"
                else Path(source).parent.name + "/" + Path(source).name
            }
            config["teacher_weights"]["sha256"] = fingerprint(self.teacher_model)
        run = Run(self.output_folder / "runs" / self.run_name(model, seed, distilled))
        return fit(distiller, train, test, self.recipe, run, config)

    def run_name(self, model: str, seed: int, distilled: bool) -> str:
        """dataset-model-method, then every parameter that is not as the recipe has it, then the seed."""
        named = ["epochs", "batch_size", "lr", "image_size", "train_limit", "precision", "compile"]
        method = "plain"
        if distilled:
            method = "afd" if self.beta else "kd"
            named += ["alpha", "beta", "temperature", "qk_dim", "teacher", "teacher_seed"]
        own = recipe(self.dataset)
        parts = [self.dataset, model, method]
        if self.dataset == "folder":
            parts[0] += f"={self.data_folder.resolve().name}"
        for field in fields(self):
            value = getattr(self, field.name)
            usual = value == field.default or value == getattr(own, field.name, None)
            if field.name in named and not usual:
                parts.append(f"{field.name}={value:g}" if isinstance(value, float) else f"{field.name}={value}")
        if distilled and self.teacher_weights not in ("", "none"):
            parts.append(f"from={Path(self.teacher_weights).stem}")
        return "-".join([*parts, f"seed={seed}"])
