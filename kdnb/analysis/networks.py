"""The networks of finished runs, loaded for analysis: teacher, baseline and distilled student."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdnb.analysis.finished import link_term
from kdnb.data import Batch
from kdnb.data.loader import Loader
from kdnb.device import pick_device, set_threads
from kdnb.errors import InputError
from kdnb.losses import LOSSES, Loss
from kdnb.losses.afd import AFD, energy
from kdnb.losses.predicting import load_network
from kdnb.models import Block, Output, blocks, example_output, read_state_dict
from kdnb.runs.run import Run
from kdnb.training.setup import holds_data, load_images
from kdnb.training.teacher import load_teacher
from kdnb.training.teacher_images import teacher_images
from kdnb.training.train import train

STUDENTS = ("baseline", "distilled")
BATCH_SIZE = 100  # small: the maps of several networks at 224 pixels fill the memory


class Networks(NamedTuple):
    """A trained teacher, its students, and the test images.

    Attributes:
        models: networks in eval mode by role or method, the teacher first.
        blocks: the teacher's and the students' blocks.
        loader: the test images in order, in float32, whatever the precision of training. Its
            batches have the teacher's images, too, of the same crops.
        same_classes: whether the teacher knows the data set's classes.
        teacher_classes: the names of the teacher's classes; empty if they are not known.
        link_loss: the trained loss with attention between teacher and distilled student, such as
            AFD; only from `load_run`.
        new_link_loss: returns one with initial weights for Outputs of the student and the teacher;
            only from `load_run`.
        links_by_epoch: (epochs, T, S), the attention in each epoch, mean over the training images;
            only from `load_run`.
    """

    models: dict[str, nn.Module]
    blocks: tuple[list[Block], list[Block]]
    loader: Loader
    same_classes: bool = True
    link_loss: Loss | None = None
    new_link_loss: Callable[[Output, Output], Loss] | None = None
    links_by_epoch: np.ndarray | None = None
    teacher_classes: tuple[str, ...] = ()

    def outputs(self, batch: Batch) -> dict[str, Output]:
        """The Output of each network for a batch of the loader: {role: Output}."""
        return {role: model(seen_by(role, batch)) for role, model in self.models.items()}

    @property
    def classifiers(self) -> dict[str, nn.Module]:
        """The networks that know the data set's classes."""
        if self.same_classes:
            return dict(self.models)
        return {name: model for name, model in self.models.items() if name != "teacher"}

    @property
    def class_names(self) -> dict[str, tuple[str, ...]]:
        """The names of the classes that each network predicts, where they are known: {role: ...}.

        A teacher of other classes comes first.
        """
        names = dict.fromkeys(self.classifiers, self.loader.images.classes)
        if "teacher" in names or not self.teacher_classes:
            return names
        return {"teacher": self.teacher_classes} | names

    def distances(self, outputs: Mapping[str, Output]) -> dict[str, Tensor]:
        """Cosine distance (1 - cosine) of each student's maps to the teacher's: {role: (n, T, S)}.

        A student's map is pooled to the size of the teacher's first.
        """
        teacher = outputs["teacher"]
        # Maps have length 1, so AFD's mean squared difference is (2 / hw) * (1 - cosine).
        half_pixels = [feat[0, 0].numel() / 2 for feat in teacher.feats]
        scale = torch.tensor(half_pixels, device=self.loader.device)[:, None]  # t 1
        return {role: scale * AFD.distances(outputs[role], teacher) for role in STUDENTS}

    def uniform_map_distance(self, outputs: Mapping[str, Output]) -> Tensor:
        """Cosine distance of a uniform map to each of the teacher's maps: (n, T)."""
        maps = (F.normalize(energy(feat), dim=(1, 2)) for feat in outputs["teacher"].feats)
        return torch.stack([1 - m.mean((1, 2)) * m[0].numel() ** 0.5 for m in maps], 1)

    def logits(self, outputs: Mapping[str, Output]) -> dict[str, Tensor]:
        """The logits of each network that knows the data set's classes: {role: (n, classes)}."""
        return {role: outputs[role].logits for role in self.classifiers}


def seen_by(role: str, batch: Batch) -> Tensor:
    """The images of a batch that a network gets: the teacher may get others than the students."""
    return batch.for_teacher if role == "teacher" else batch.images


def load_run(run: Run, log: Callable[[str], None] = print) -> Networks:
    """The networks of a run with links and of its baseline, which are trained first if necessary.

    log: that of `train`.

    Raises InputError for a run without links, and for one that did not keep its weights.
    """
    check_one_teacher(run)
    term = link_term(run)
    if term is None:
        names = " or ".join(name for name, loss in LOSSES.items() if hasattr(loss, "attention"))
        raise InputError(
            f"method {run.label!r} has no attention between blocks, so nothing is linked: choose a "
            f"run whose method has {names}"
        )
    run = train(run, log)
    baseline = train(run.baseline, log)
    networks = load_networks({"baseline": baseline, "distilled": run})
    batch = networks.loader.take([0, 1])
    student, teacher = (
        example_output(networks.models[role], seen_by(role, batch))
        for role in ("distilled", "teacher")
    )
    options = dict(term.options)
    if LOSSES[term.loss].needs_batch_size:
        options["batch_size"] = run.config.get("batch_size", run.batch_size) * run.view_count
    new_link_loss = partial(LOSSES[term.loss], **options)
    with torch.random.fork_rng([]):  # initial weights are drawn, and replaced
        loss = new_link_loss(student, teacher)
    state, start = read_state_dict(run.loss_weights), f"{term.loss}."
    own = {key.removeprefix(start): state[key] for key in state if key.startswith(start)}
    load_state(loss, own, run.loss_weights)
    return networks._replace(
        link_loss=loss.to(networks.loader.device).eval(),
        new_link_loss=new_link_loss,
        links_by_epoch=run.history[f"{start}links"],
    )


def check_one_teacher(run: Run) -> None:
    """Raises InputError for a run with several teachers."""
    if len(run.teachers) > 1:
        raise InputError(
            f"{run.name} has several teachers: choose a run with one, whose blocks can be compared "
            "with the student's"
        )


def load_state(module: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Load a state dict from a file. Raises InputError if it is of another module."""
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path} does not fit the losses of its run: {reason}") from None


def load_networks(runs: Mapping[str, Run]) -> Networks:
    """The students of finished runs, and the teacher of the first run that has one.

    Args:
        runs: {name: run}, all of the same student network.
    """
    distilled = next(run for run in runs.values() if run.teacher)
    check_one_teacher(distilled)
    set_threads(distilled.threads)
    device = pick_device(distilled.device)
    teacher = load_teacher(distilled)
    _, test_images = load_images(distilled)
    models = {"teacher": teacher.model}
    for name, run in runs.items():
        models[name] = load_network(run.student, run.weights, run.image_size)
    for model in models.values():
        model.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)
    size = distilled.image_size
    teacher_sees = teacher_images(distilled, test_images)
    first_student = models[next(iter(runs))]
    return Networks(
        models,
        (blocks(teacher.model, teacher_sees.image_size), blocks(first_student, size)),
        Loader(
            test_images,
            BATCH_SIZE,
            size,
            device=device,
            on_device=holds_data(distilled, device, test_images),
            **teacher_sees.loader_options,
        ),
        teacher.same_classes(test_images.classes)[0],
        teacher_classes=teacher.classes,
    )
