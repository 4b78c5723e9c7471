"""Which block taught which, and where the networks look: finished runs in, arrays out.

Every pass is without gradients, in eval mode, in float32 and in batches. Arrays are NumPy's; T and S count the blocks
of the teacher and of the student, shallow to deep.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdnb.batches import Batches
from kdnb.data import ImageSet
from kdnb.distill import Distiller
from kdnb.errors import InputError
from kdnb.experiment import Experiment
from kdnb.losses import AFD, energy
from kdnb.models import create_model, read_state_dict
from kdnb.progress import counted
from kdnb.runs import Run

__all__ = [
    "Gallery",
    "Networks",
    "Survey",
    "block_labels",
    "chance_deviation",
    "choose_images",
    "class_links",
    "deviation",
    "entropy",
    "eval_batches",
    "load_networks",
    "load_student",
    "look",
    "map_distance",
    "mistakes",
    "rebuild",
    "settled",
    "spatial_maps",
    "survey",
    "views",
]

BATCH = 100  # images a pass: the maps of three networks have to fit in memory, at 224 pixels too


# Networks out of runs


@dataclass(frozen=True, eq=False, repr=False)
class Networks:
    """An experiment's networks after training, in eval mode, and the AFD that links two of them."""

    teacher: nn.Module
    plain: nn.Module
    distilled: nn.Module
    afd: AFD
    teacher_blocks: list[str]  # names and sizes, for the axes of plots: "2.3  64×16×16"
    student_blocks: list[str]
    history: np.ndarray  # (epochs, T, S): mean links over the training images of each epoch

    @property
    def students(self) -> dict[str, nn.Module]:
        return {"plain student": self.plain, "distilled student": self.distilled}

    @property
    def named(self) -> dict[str, nn.Module]:
        return {"teacher": self.teacher, **self.students}


def load_networks(experiment: Experiment) -> Networks:
    """The teacher, the plain and the distilled student, read from their runs; what is missing is trained first.

    Raises InputError for an experiment without AFD, and for a distilled run that did not keep AFD's own weights.
    """
    if not experiment.beta:
        raise InputError("beta is 0: without AFD nothing is linked; set beta to what the run was distilled with")
    run = experiment.distilled_run()
    distiller = rebuild(experiment, run)
    plain = load_student(experiment, experiment.plain_run())
    teacher, student = distiller.teacher, distiller.student
    size = experiment.recipe.image_size
    blocks = block_labels(teacher, size), block_labels(student, size)
    return Networks(teacher, plain, student, distiller.losses["afd"], *blocks, run.links)


def rebuild(experiment: Experiment, run: Run) -> Distiller:
    """The Distiller of a finished distilled run, as training left it: the student and the losses' own weights."""
    batches = eval_batches(experiment)
    distiller = experiment.distiller(run.config["model"], run.config["seed"], True, batches)
    distiller.student.load_state_dict(read_state_dict(run.weights))
    distiller.losses.load_state_dict(read_state_dict(run.loss_weights))
    return distiller.to(batches.device).eval()


def load_student(experiment: Experiment, run: Run) -> nn.Module:
    """The trained network of a finished run, on the experiment's device."""
    model = create_model(run.config["model"], len(experiment.data[0].classes))
    model.load_state_dict(read_state_dict(run.weights))
    return model.to(experiment.torch_device, memory_format=torch.channels_last).eval()


@torch.no_grad()
def block_labels(model: nn.Module, image_size: int) -> list[str]:
    """Name and size, channels×height×width, of each block's map."""
    parameter = next(model.parameters())
    feats = model.eval()(torch.zeros(2, 3, image_size, image_size, device=parameter.device)).feats
    return [f"{n}  {'×'.join(map(str, f.shape[1:]))}" for n, f in zip(model.block_names, feats, strict=True)]


# Images as the networks see them


def eval_batches(experiment: Experiment) -> Batches:
    """The test images in order, whole, in float32, whatever precision the runs were trained in."""
    return Batches(experiment.data[1], BATCH, experiment.recipe.image_size, device=experiment.torch_device)


def choose_images(images: ImageSet, n: int) -> np.ndarray:
    """Indices of n images, the first ones of classes spread evenly over the set."""
    labels = images.labels.numpy()
    there = np.unique(labels)
    spread = there[np.linspace(0, len(there) - 1, min(n, len(there))).round().astype(int)]
    return np.array([np.flatnonzero(labels == label)[0] for label in spread])


def views(batches: Batches, index: np.ndarray) -> tuple[Tensor, np.ndarray]:
    """Some images, as networks see them, (n, 3, size, size) normalised, and as people do, (n, size, size, 3) uint8."""
    rows = torch.as_tensor(np.asarray(index), device=batches.device)
    images, _ = batches.make({key: value[rows] for key, value in batches.plan(0).items()})
    pixels = (images.float() - batches.shift) / batches.scale
    return images.float(), pixels.round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()


# Links


def entropy(links: np.ndarray) -> np.ndarray:
    """Bits by which each row of links (..., S) is spread: 0 for one link alone, log2(S) for all alike."""
    return -(links * np.log2(np.clip(links, 1e-12, None))).sum(-1)


def settled(history: np.ndarray, share: float = 0.9) -> int:
    """The first epoch (from 1) from which on the links (epochs, T, S) are within 1 - share of the way from their end.

    The way is the distance between the links of the first and the last epoch.
    """
    left = np.abs(history - history[-1]).sum((1, 2))
    return int(np.flatnonzero(left > (1 - share) * left[0]).max(initial=-1)) + 2


def class_links(links: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """Mean links of each class: (n, T, S) -> (classes, T, S); NaN for a class without images."""
    members = (np.arange(classes)[:, None] == labels).astype(links.dtype)  # c n
    with np.errstate(invalid="ignore"):
        means = members @ links.reshape(len(links), -1) / members.sum(1, keepdims=True)
    return means.reshape(classes, *links.shape[1:])


def deviation(by_class: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """The share of its attention that a teacher block, on average, gives to other links in each class: (classes,)."""
    return 0.5 * np.abs(by_class - mean).sum(-1).mean(-1)


def chance_deviation(links: np.ndarray, labels: np.ndarray, classes: int, draws: int = 40) -> np.ndarray:
    """What `deviation` comes to for as many images of any class, (classes,): 19 of 20 random draws stay below it."""
    rng, mean = np.random.default_rng(0), links.mean(0)
    drawn = [deviation(class_links(links, rng.permutation(labels), classes), mean) for _ in range(draws)]
    return np.quantile(drawn, 0.95, axis=0)


# One pass over the test images


@dataclass(frozen=True, eq=False, repr=False)
class Survey:
    """What the networks make of every test image, in order.

    labels: (n,); links: (n, T, S), AFD's attention between teacher and distilled student, rows sum to one.
    distances: {student: (n, T, S)}, see `map_distance`.
    answers: {network: (n,)}, the class it says; certainty: {network: (n,)}, its probability of the right one. The
    teacher is missing in both if it knows other classes.
    """

    labels: np.ndarray
    links: np.ndarray
    distances: dict[str, np.ndarray]
    answers: dict[str, np.ndarray]
    certainty: dict[str, np.ndarray]

    def linked_distance(self, student: str) -> np.ndarray:
        """Mean distance of each teacher block to the student's blocks, weighted by the mean links: (T,).

        Both students are weighed by the same links, so that what differs is their maps.
        """
        return (self.links.mean(0) * self.distances[student].mean(0)).sum(1)

    def pairs(self, most: int = 8) -> list[tuple[int, int]]:
        """Student blocks, shallow to deep, each with the teacher block that listens to it most: [(t, s)]."""
        S = self.links.shape[2]
        chosen = np.unique(np.linspace(0, S - 1, min(S, most)).round().astype(int))
        return [(int(self.links.mean(0)[:, s].argmax()), int(s)) for s in chosen]

    @property
    def middle(self) -> tuple[int, int]:
        """The middle one of `pairs`: deep enough to mean something, and its maps large enough to see something."""
        pairs = self.pairs()
        return pairs[len(pairs) // 2]


@torch.no_grad()
def survey(networks: Networks, batches: Batches) -> Survey:
    """Links, map distances and answers of all images in `batches`, in one pass."""
    classes = len(batches.set.classes)
    models = {name: model.eval() for name, model in networks.named.items()}
    networks.afd.eval()
    labels, links = [], []
    distances = {name: [] for name in networks.students}
    answers = {name: [] for name, model in models.items() if model.fc.out_features == classes}
    certainty = {name: [] for name in answers}
    for images, right in counted(batches.epoch(), len(batches), "survey"):
        outputs = {name: model(images.float()) for name, model in models.items()}
        guide = outputs["teacher"]
        labels.append(right)
        links.append(networks.afd.attention(outputs["distilled student"], guide))
        halves = torch.tensor([f.shape[2] * f.shape[3] / 2 for f in guide.feats], device=right.device)
        for name, rows in distances.items():  # AFD takes the mean over hw; see map_distance
            rows.append((networks.afd.distances(outputs[name], guide) * halves[:, None]).clamp(min=0))
        for name, rows in answers.items():
            rows.append(outputs[name].logits.argmax(1))
            certainty[name].append(outputs[name].logits.softmax(1).gather(1, right[:, None])[:, 0])

    def whole(parts: list[Tensor]) -> np.ndarray:
        return torch.cat(parts).cpu().numpy()

    tables = ({name: whole(parts) for name, parts in rows.items()} for rows in (distances, answers, certainty))
    return Survey(whole(labels), whole(links), *tables)


def mistakes(survey: Survey) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the images that only the distilled student gets right, and of those that only the plain one does.

    First those where the two differ most in how probable they find the right class.
    """
    plain, distilled = (survey.answers[name] == survey.labels for name in ("plain student", "distilled student"))
    gain = survey.certainty["distilled student"] - survey.certainty["plain student"]
    corrected, broken = np.flatnonzero(distilled & ~plain), np.flatnonzero(plain & ~distilled)
    return corrected[np.argsort(-gain[corrected])], broken[np.argsort(gain[broken])]


# Maps


@torch.no_grad()
def spatial_maps(model: nn.Module, images: Tensor) -> list[np.ndarray]:
    """Where each block is active: its channel energy, L2-normalised over height and width; (n, h, w) per block."""
    maps = [[energy(feat) for feat in model.eval()(part).feats] for part in images.split(BATCH)]
    whole = (torch.cat(block) for block in zip(*maps, strict=True))
    return [F.normalize(m.flatten(1), dim=1).view_as(m).cpu().numpy() for m in whole]


def map_distance(student: np.ndarray, teacher: np.ndarray) -> np.ndarray:
    """Half the squared distance between maps (n, h, w) of one block each, after pooling to the teacher's size: (n,).

    It is 1 - cosine: 0 for the same map, 1 for two that are never active at one place. AFD's term is this times 2/hw,
    which makes blocks of different sizes hard to compare.
    """
    pooled = F.adaptive_avg_pool2d(torch.from_numpy(student), teacher.shape[1:]).flatten(1)
    difference = F.normalize(pooled, dim=1) - F.normalize(torch.from_numpy(teacher).flatten(1), dim=1)
    return (difference.square().sum(1) / 2).numpy()


@dataclass(frozen=True, eq=False, repr=False)
class Gallery:
    """Some images and every network's maps of them, as arrays, so that pictures need no network.

    index: (n,) among the test images; names: their classes; pixels: (n, size, size, 3) uint8, what the networks saw.
    maps: {network: [(n, h, w) per block]}, see `spatial_maps`.
    """

    index: np.ndarray
    names: list[str]
    pixels: np.ndarray
    maps: dict[str, list[np.ndarray]]
    teacher_blocks: list[str]
    student_blocks: list[str]

    def distance(self, student: str, t: int, s: int) -> np.ndarray:
        """How far block s of a student is from the teacher's block t on each image: (n,)."""
        return map_distance(self.maps[student][s], self.maps["teacher"][t])


def look(networks: Networks, batches: Batches, index: np.ndarray) -> Gallery:
    """The networks' maps of the images at `index`."""
    images, pixels = views(batches, index)
    maps = {name: spatial_maps(model, images) for name, model in networks.named.items()}
    names = [batches.set.classes[label] for label in batches.set.labels[torch.as_tensor(np.asarray(index))].tolist()]
    return Gallery(np.asarray(index), names, pixels, maps, networks.teacher_blocks, networks.student_blocks)
