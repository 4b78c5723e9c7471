"""What the networks of a run make of every test image: links, distances of maps and predictions, as arrays."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from kdnb.analysis.compare import Predictions
from kdnb.analysis.networks import STUDENTS, Networks
from kdnb.models import Block
from kdnb.progress import with_progress

LINKED = 0.1  # mean attention from which on two blocks are shown as a pair


class Survey(NamedTuple):
    """What the networks make of every test image, in order; by role where it is a dictionary."""

    links: (
        np.ndarray
    )  # (n, T, S), AFD's attention between teacher and distilled student, rows sum to one
    distances: dict[
        str, np.ndarray
    ]  # (n, T, S), 1 - cosine of teacher's and student's maps, pooled to the same size
    flat: np.ndarray  # (n, T), the same of the teacher's maps and one that is even everywhere
    predictions: Predictions  # without a teacher that knows other classes

    def pairs(
        self, blocks: tuple[list[Block], list[Block]], most: int = 8
    ) -> list[tuple[int, int]]:
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
def survey_images(networks: Networks) -> Survey:
    """Links, map distances and predictions of all test images, in one pass."""
    loader, afd, parts = networks.loader, networks.afd, []
    for batch in with_progress(loader.epoch(), len(loader), "survey"):
        outputs = {role: model(batch.images) for role, model in networks.models.items()}
        attention = afd.attention(outputs["distilled"], outputs["teacher"])
        parts.append(
            (
                attention,
                networks.distances(outputs),
                networks.flat(outputs),
                networks.logits(outputs),
            )
        )
    *found, logits = map(joined, zip(*parts, strict=True))
    return Survey(*found, Predictions(loader.images.classes, loader.images.labels.numpy(), logits))


def placing(blocks: Sequence[Block]) -> list[int]:
    """Which blocks have maps of 4 x 4 pixels or more; smaller ones show no place. All, if none has."""
    return [i for i, (_, shape) in enumerate(blocks) if min(shape[1:]) >= 4] or [
        *range(len(blocks))
    ]


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
    there, labels, sizes = np.unique(
        survey.predictions.labels, return_inverse=True, return_counts=True
    )
    shares = np.eye(len(there), dtype=np.float32)[labels] / sizes.astype(np.float32)  # n classes
    mean, rng = survey.links.mean(0), np.random.default_rng(0)

    def means(shares: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        links = np.tensordot(shares.T, survey.links, 1)  # classes t s
        return links, 0.5 * np.abs(links - mean).sum(-1).mean(-1)

    links, deviation = means(shares)
    chance = np.quantile([means(rng.permutation(shares))[1] for _ in range(draws)], 0.95, axis=0)
    return ClassLinks(
        [survey.predictions.classes[c] for c in there], links, mean, deviation, chance
    )


def choose_images(survey: Survey, n: int) -> np.ndarray:
    """Indices of n test images, the first ones of classes spread evenly over the set."""
    _, first = np.unique(survey.predictions.labels, return_index=True)
    return first[np.linspace(0, len(first) - 1, min(n, len(first))).round().astype(int)]


def mistakes(survey: Survey) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the images that only the distilled student, or only the baseline, gets right; the clearest first."""
    told = survey.predictions
    baseline, distilled = map(told.correct, STUDENTS)
    of_label = {
        role: np.exp(told.log_probabilities(role))[range(len(told.labels)), told.labels]
        for role in STUDENTS
    }
    gain = of_label["distilled"] - of_label["baseline"]
    corrected, degraded = (
        np.flatnonzero(distilled & ~baseline),
        np.flatnonzero(baseline & ~distilled),
    )
    return corrected[np.argsort(-gain[corrected])], degraded[np.argsort(gain[degraded])]


def one_a_pair(survey: Survey, index: np.ndarray, role: str) -> np.ndarray:
    """Of the images at `index` the first of every pair of classes: its own, and what the network `role` says."""
    pairs = np.stack([survey.predictions.labels[index], survey.predictions.top1(role)[index]])
    return index[np.sort(np.unique(pairs, axis=1, return_index=True)[1])]
