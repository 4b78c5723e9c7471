"""Which block taught which, and where the networks look: finished runs in, NumPy arrays out.

Every pass is without gradients, in eval mode and in float32. T and S count the blocks of teacher and student, shallow
to deep. Networks are called by their roles: teacher, baseline (the student without a teacher), distilled.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdnb import parameters
from kdnb.analysis.compare import Predictions
from kdnb.data.loader import Loader
from kdnb.device import pick_device
from kdnb.errors import InputError
from kdnb.losses.afd import AFD, energy
from kdnb.models import Block, Output, blocks, example_output, load_weights, read_state_dict
from kdnb.paths import located, output_folder
from kdnb.prepare import load_images
from kdnb.progress import counted
from kdnb.results import or_warn
from kdnb.run import Run
from kdnb.teacher import load_teacher
from kdnb.train import train

STUDENTS = ("baseline", "distilled")
LINKED = 0.1  # mean attention from which on two blocks are shown as a pair


class Networks(NamedTuple):
    """A teacher and its students after training, and the test images."""

    models: dict[str, nn.Module]  # by role or method, "teacher" first, in eval mode
    blocks: tuple[list[Block], list[Block]]  # the teacher's and the student's
    loader: Loader  # the test images in order, whole, in float32, whatever the precision of training
    same_classes: bool = True  # whether the teacher knows the data set's classes
    afd: AFD | None = None  # of `load`: what links teacher and distilled student
    history: np.ndarray | None = None  # (epochs, T, S), mean links over the training images of each epoch

    @property
    def classifiers(self) -> dict[str, nn.Module]:
        """Those that know the data set's classes."""
        return {name: model for name, model in self.models.items() if self.same_classes or name != "teacher"}

    def distances(self, outputs: Mapping[str, Output]) -> dict[str, Tensor]:
        """(n, T, S) of each student: 1 - cosine of teacher's and student's maps, pooled to the same size."""
        teacher = outputs["teacher"]
        # Of maps of length 1 the mean squared difference, AFD's distance, is 2 / hw times 1 - cosine.
        half = torch.tensor([h[0, 0].numel() / 2 for h in teacher.feats], device=self.loader.device)[:, None]  # t 1
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
    where = {name: parameters.checked(name, value, known[name]) for name, value in given.items() if value}
    if (photograph := where.pop("photograph", "")) and not located(photograph).is_file():
        raise InputError(f"photograph {photograph!r}: no such file")
    if name := where.pop("run", ""):
        return Run.open(name, **where)
    kept = output_folder(where.get("outputs", "")).glob("runs/*/losses.safetensors")
    newest_first = sorted(kept, key=lambda path: path.stat().st_mtime, reverse=True)
    runs = (or_warn("the search", partial(Run.open, **where), path.parent) for path in newest_first)
    newest = next((run for run in runs if run and run.done and "afd" in {term.loss for term in run.terms}), None)
    if newest is None:
        print("There is no finished run with AFD: one of the digits is trained first.")
    return newest or Run(**where)


def load(run: Run) -> Networks:
    """The networks of a run with AFD and of its baseline, as training left them; what is missing is trained first.

    Raises InputError for a run without AFD, and for one that did not keep its weights.
    """
    if "afd" not in {term.loss for term in run.terms}:
        raise InputError(f"method {run.label!r} has no afd: nothing is linked; choose a run whose method has it")
    run, baseline = train(run), train(run.baseline)
    found = networks({"baseline": baseline, "distilled": run})
    images = found.loader.take([0, 1]).images
    outputs = (example_output(found.models[role], images) for role in ("distilled", "teacher"))
    with torch.random.fork_rng([]):
        afd = AFD(*outputs, **next(term.options for term in run.terms if term.loss == "afd"))
    kept = read_state_dict(run.loss_weights)
    afd.load_state_dict({key.removeprefix("afd."): kept[key] for key in kept if key.startswith("afd.")})
    return found._replace(afd=afd.to(found.loader.device).eval(), history=run.history["afd.links"])


def networks(runs: Mapping[str, Run]) -> Networks:
    """The students of finished runs of one student, by name, with the teacher of the first that has one."""
    taught = next(run for run in runs.values() if run.teacher)
    teacher, (_, test), device = load_teacher(taught), load_images(taught), pick_device(taught.device)
    models = {"teacher": teacher.model} | {name: load_weights(run.student, run.weights) for name, run in runs.items()}
    for model in models.values():
        model.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)
    both = tuple(blocks(models[name], taught.image_size) for name in ("teacher", next(iter(runs))))
    loader = Loader(test, 100, taught.image_size, device=device)  # few: several networks' maps at 224 pixels
    return Networks(models, both, loader, teacher.same_classes(test.classes)[0])


class Survey(NamedTuple):
    """What the networks make of every test image, in order; by role where it is a dictionary."""

    links: np.ndarray  # (n, T, S), AFD's attention between teacher and distilled student, rows sum to one
    distances: dict[str, np.ndarray]  # (n, T, S), 1 - cosine of teacher's and student's maps, pooled to the same size
    flat: np.ndarray  # (n, T), the same of the teacher's maps and one that is even everywhere
    predictions: Predictions  # without a teacher that knows other classes

    def pairs(self, blocks: tuple[list[Block], list[Block]], most: int = 8) -> list[tuple[int, int]]:
        """Student blocks, shallow to deep, each with the teacher block that listens to it most: [(t, s)].

        blocks: the teacher's and the student's. Left out are those that show no place, and, unless all are, those to
        which no other listens with `LINKED` of its attention.
        """
        teachers, students = map(np.array, map(placing, blocks))
        means = self.links.mean(0)
        listener = teachers[means[teachers].argmax(0)]  # of each student block
        linked = students[means[listener[students], students] >= LINKED]
        students = linked if len(linked) else students
        students = students[np.unique(np.linspace(0, len(students) - 1, most).round().astype(int))]
        return [(int(listener[s]), int(s)) for s in students]


@torch.no_grad()
def survey(networks: Networks) -> Survey:
    """Links, map distances and predictions of all test images, in one pass."""
    loader, afd, parts = networks.loader, networks.afd, []
    for batch in counted(loader.epoch(), len(loader), "survey"):
        outputs = {role: model(batch.images) for role, model in networks.models.items()}
        attention = afd.attention(outputs["distilled"], outputs["teacher"])
        parts.append((attention, networks.distances(outputs), networks.flat(outputs), networks.logits(outputs)))
    *found, logits = map(joined, zip(*parts, strict=True))
    return Survey(*found, Predictions(loader.images.classes, loader.images.labels.numpy(), logits))


def placing(blocks: Sequence[Block]) -> list[int]:
    """Which blocks have maps of 4 x 4 pixels or more; smaller ones show no place. All, if none has."""
    return [i for i, (_, shape) in enumerate(blocks) if min(shape[1:]) >= 4] or [*range(len(blocks))]


def joined(parts: Sequence) -> np.ndarray | dict:
    """The batches of a tensor, or of a dictionary of tensors, as one array each."""
    if isinstance(parts[0], dict):
        return {key: joined([part[key] for part in parts]) for key in parts[0]}
    return torch.cat(parts).cpu().numpy()


class ClassLinks(NamedTuple):
    """Links by class, of the n classes that have images."""

    names: list[str]
    links: np.ndarray  # (n, T, S), means
    mean: np.ndarray  # (T, S), over all images
    deviation: np.ndarray  # (n,), the share of attention that goes to other links than the mean's
    chance: np.ndarray  # (n,), below which 19 of 20 deviations are for as many images of any class


def by_class(survey: Survey, draws: int = 40) -> ClassLinks:
    """What the links are in each class; chance: from so many random `draws`."""
    there, labels, sizes = np.unique(survey.predictions.labels, return_inverse=True, return_counts=True)
    shares = np.eye(len(there), dtype=np.float32)[labels] / sizes.astype(np.float32)  # n classes
    mean, rng = survey.links.mean(0), np.random.default_rng(0)

    def means(shares: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        links = np.tensordot(shares.T, survey.links, 1)  # classes t s
        return links, 0.5 * np.abs(links - mean).sum(-1).mean(-1)

    links, deviation = means(shares)
    chance = np.quantile([means(rng.permutation(shares))[1] for _ in range(draws)], 0.95, axis=0)
    return ClassLinks([survey.predictions.classes[c] for c in there], links, mean, deviation, chance)


def choose_images(survey: Survey, n: int) -> np.ndarray:
    """Indices of n test images, the first ones of classes spread evenly over the set."""
    _, first = np.unique(survey.predictions.labels, return_index=True)
    return first[np.linspace(0, len(first) - 1, min(n, len(first))).round().astype(int)]


def mistakes(survey: Survey) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the images that only the distilled student, or only the baseline, gets right; the clearest first."""
    told = survey.predictions
    baseline, distilled = map(told.correct, STUDENTS)
    of_label = {role: np.exp(told.log_probabilities(role))[range(len(told.labels)), told.labels] for role in STUDENTS}
    gain = of_label["distilled"] - of_label["baseline"]
    corrected, degraded = np.flatnonzero(distilled & ~baseline), np.flatnonzero(baseline & ~distilled)
    return corrected[np.argsort(-gain[corrected])], degraded[np.argsort(gain[degraded])]


def one_a_pair(survey: Survey, index: np.ndarray, role: str) -> np.ndarray:
    """Of the images at `index` the first of every pair of classes: its own, and what the network `role` says."""
    pairs = np.stack([survey.predictions.labels[index], survey.predictions.top1(role)[index]])
    return index[np.sort(np.unique(pairs, axis=1, return_index=True)[1])]
