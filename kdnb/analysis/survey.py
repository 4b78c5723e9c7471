"""One pass over the test images: links, distances of maps and predictions of every image."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from kdnb.analysis.compare import Predictions
from kdnb.analysis.networks import STUDENTS, Networks
from kdnb.models import Block
from kdnb.plots.link_rows import attention_that_differs
from kdnb.progress import with_progress

MIN_LINK = 0.1  # mean attention from which on two blocks are shown as a pair
MIN_SIZE = 4  # pixels of a map's side; smaller maps show no place


class Survey(NamedTuple):
    """What the networks compute for each of the n test images, in order.

    Attributes:
        links: (n, T, S), the attention between teacher and distilled student: AFD's rows sum to
            one, SemCKD's columns do, but for those of blocks that it does not compare.
        distances: {student: (n, T, S)}, cosine distance of its maps to the teacher's.
        uniform_map_distance: (n, T), cosine distance of a uniform map to the teacher's.
        predictions: of all networks that know the data set's classes.
    """

    links: np.ndarray
    distances: dict[str, np.ndarray]
    uniform_map_distance: np.ndarray
    predictions: Predictions

    def pairs(
        self, blocks: tuple[list[Block], list[Block]], max_pairs: int = 8
    ) -> list[tuple[int, int]]:
        """Student blocks, each with the teacher block that attends to it most: [(t, s)].

        They are sorted from shallow to deep. Blocks with small maps are left out, and so are
        student blocks that get less than `MIN_LINK` of every teacher block's attention, unless that
        leaves none.

        Args:
            blocks: the teacher's and the student's.
            max_pairs: of more, pairs at evenly spaced depths are returned.
        """
        teachers, students = (np.array(blocks_with_places(network)) for network in blocks)
        mean = self.links.mean(0)
        strongest_teacher = teachers[mean[teachers].argmax(0)]  # of each student block
        linked = students[mean[strongest_teacher[students], students] >= MIN_LINK]
        if len(linked):
            students = linked
        indices = np.linspace(0, len(students) - 1, max_pairs).round().astype(int)
        return [(int(strongest_teacher[s]), int(s)) for s in students[np.unique(indices)]]


@torch.no_grad()
def survey_images(networks: Networks) -> Survey:
    """Links, distances of maps and predictions of all test images, in one pass."""
    loader = networks.loader
    batches = []
    for batch in with_progress(loader.epoch(), len(loader), "survey"):
        outputs = networks.outputs(batch)
        batches.append(
            {
                "links": networks.link_loss.attention(outputs["distilled"], outputs["teacher"]),
                "distances": networks.distances(outputs),
                "uniform_map_distance": networks.uniform_map_distance(outputs),
                "logits": networks.logits(outputs),
            }
        )
    arrays = concatenate(batches)
    logits = arrays.pop("logits")
    predictions = Predictions(loader.images.classes, loader.images.labels.numpy(), logits)
    return Survey(**arrays, predictions=predictions)


def blocks_with_places(blocks: Sequence[Block]) -> list[int]:
    """The indices of blocks whose maps have `MIN_SIZE` x `MIN_SIZE` pixels or more.

    If there is none, the indices of all blocks.
    """
    indices = [i for i, (_, shape) in enumerate(blocks) if min(shape[1:]) >= MIN_SIZE]
    return indices or list(range(len(blocks)))


def concatenate(batches: Sequence) -> np.ndarray | dict:
    """Concatenate tensors, or dictionaries of tensors key by key, into NumPy arrays."""
    if isinstance(batches[0], dict):
        return {key: concatenate([batch[key] for batch in batches]) for key in batches[0]}
    return torch.cat(batches).cpu().numpy()


class LinksByClass(NamedTuple):
    """Links of the n classes that have test images.

    Attributes:
        names: (n,), the classes.
        links: (n, T, S), the mean of each class.
        mean: (T, S), the mean over all images.
        deviation: (n,), the share of attention by which a class differs from the mean.
        chance: (n,), the 95 % quantile of the deviation of as many random images.
    """

    names: list[str]
    links: np.ndarray
    mean: np.ndarray
    deviation: np.ndarray
    chance: np.ndarray


def links_by_class(survey: Survey, draws: int = 40) -> LinksByClass:
    """The mean links of each class, and how far they deviate from the mean of all images.

    draws: number of random permutations of the labels that `chance` is estimated from.
    """
    labels, class_index, counts = np.unique(
        survey.predictions.labels, return_inverse=True, return_counts=True
    )
    # One-hot labels divided by the size of the class: a product with them gives class means.
    weights = np.eye(len(labels), dtype=np.float32)[class_index] / counts.astype(np.float32)
    mean = survey.links.mean(0)

    def class_means(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        links = np.tensordot(weights.T, survey.links, 1)  # n t s
        return links, attention_that_differs(links, mean)

    links, deviation = class_means(weights)
    rng = np.random.default_rng(0)
    random_deviations = [class_means(rng.permutation(weights))[1] for _ in range(draws)]
    chance = np.quantile(random_deviations, 0.95, axis=0)
    names = [survey.predictions.classes[label] for label in labels]
    return LinksByClass(names, links, mean, deviation, chance)


def choose_images(survey: Survey, n: int) -> np.ndarray:
    """Indices of n test images: the first image of each of n classes, evenly spaced."""
    _, first = np.unique(survey.predictions.labels, return_index=True)
    return first[np.linspace(0, len(first) - 1, min(n, len(first))).round().astype(int)]


def mistakes(survey: Survey) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the images that only one student classifies correctly.

    The first array holds those of the distilled student, the second those of the baseline. Both are
    sorted by how much the students' probabilities of the true class differ, largest first.
    """
    predictions = survey.predictions
    baseline, distilled = (predictions.correct(role) for role in STUDENTS)
    images = range(len(predictions.labels))
    baseline_p, distilled_p = (
        np.exp(predictions.log_probabilities(role))[images, predictions.labels] for role in STUDENTS
    )
    gain = distilled_p - baseline_p
    corrected = np.flatnonzero(distilled & ~baseline)
    degraded = np.flatnonzero(baseline & ~distilled)
    return corrected[np.argsort(-gain[corrected])], degraded[np.argsort(gain[degraded])]


def one_per_class_pair(survey: Survey, index: np.ndarray, role: str) -> np.ndarray:
    """Of the images at `index`, the first for each pair of true class and class predicted.

    role: the network that predicts.
    """
    labels = survey.predictions.labels[index]
    predicted = survey.predictions.top1(role)[index]
    _, first = np.unique(np.stack([labels, predicted]), axis=1, return_index=True)
    return index[np.sort(first)]
