"""How trained networks differ in their predictions and representations.

Networks are called by names, such as teacher, baseline and distilled, or by their methods. All
intervals are 95 % intervals.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from scipy import special
from torch import Tensor, nn

from kdnb.data.loader import Loader
from kdnb.progress import with_progress
from kdnb.results.intervals import difference, interval, share


class Predictions(NamedTuple):
    """Predictions of several networks for n test images.

    Attributes:
        classes: the names of the classes.
        labels: (n,), the true classes.
        logits: {network: (n, classes)}, float32.
    """

    classes: tuple[str, ...]
    labels: np.ndarray
    logits: dict[str, np.ndarray]

    def top1(self, name: str) -> np.ndarray:
        """The predicted classes, (n,)."""
        return self.logits[name].argmax(1)

    def correct(self, name: str) -> np.ndarray:
        """Whether each prediction is correct, (n,)."""
        return self.top1(name) == self.labels

    def log_probabilities(self, name: str) -> np.ndarray:
        """The logarithms of the predicted probabilities, (n, classes), float64."""
        return special.log_softmax(self.logits[name].astype(np.float64), axis=1)

    def confidence(self, name: str) -> np.ndarray:
        """The probability of each predicted class, (n,)."""
        return np.exp(self.log_probabilities(name).max(1))


@torch.no_grad()
def predict(models: Mapping[str, nn.Module], loader: Loader) -> Predictions:
    """The predictions of networks in eval mode for the images of a loader.

    The network named "teacher" gets the images as the loader makes them for a teacher.
    """
    batches = {name: [] for name in models}
    for batch in with_progress(loader.epoch(), len(loader), "predict"):
        for name, model in models.items():
            images = batch.for_teacher if name == "teacher" else batch.images
            batches[name].append(model(images).logits.float().cpu())
    logits = {name: torch.cat(parts).numpy() for name, parts in batches.items()}
    return Predictions(loader.images.classes, loader.images.labels.numpy(), logits)


def fidelity(predictions: Predictions, teacher: str = "teacher") -> pd.DataFrame:
    """Accuracy, calibration and fidelity to the teacher: a row per network.

    The columns are top-1, cross-entropy and the expected calibration error (ECE, see
    `calibration`). If `predictions` include the teacher's, there are two more: agreement, the share
    of images for which student and teacher predict the same class, and KL, the divergence of the
    network's probabilities from the teacher's (Stanton et al., NeurIPS 2021).
    """
    rows = {}
    for name in predictions.logits:
        log_q = predictions.log_probabilities(name)
        label_log_q = np.take_along_axis(log_q, predictions.labels[:, None], 1)[:, 0]
        _, ece = calibration(predictions, name)
        row = {
            "top-1 (%)": share(predictions.correct(name)),
            "cross-entropy": interval(-label_log_q, positive=True),
            "ECE (%)": f"{100 * ece:.1f}",
        }
        if teacher in predictions.logits and name != teacher:
            log_p = predictions.log_probabilities(teacher)
            is_same = predictions.top1(teacher) == predictions.top1(name)
            row["agreement with the teacher (%)"] = share(is_same)
            row["KL from the teacher"] = interval(
                (np.exp(log_p) * (log_p - log_q)).sum(1), positive=True
            )
        rows[name] = row
    return pd.DataFrame.from_dict(rows, "index").fillna("")


def calibration(predictions: Predictions, name: str, bins: int = 15) -> tuple[pd.DataFrame, float]:
    """Accuracy in bins of confidence, and the expected calibration error (Guo et al., ICML 2017).

    The table has the columns confidence, accuracy and images, and a row per bin that is not empty.
    The error is the mean absolute difference of confidence and accuracy, weighted by images.
    """
    confidence = predictions.confidence(name)
    table = pd.DataFrame({"confidence": confidence, "accuracy": 1.0 * predictions.correct(name)})
    bin_number = np.minimum((table["confidence"] * bins).astype(int), bins - 1)
    table = table.groupby(bin_number).agg(
        confidence=("confidence", "mean"),
        accuracy=("accuracy", "mean"),
        images=("accuracy", "size"),
    )
    gap = (table["confidence"] - table["accuracy"]).abs()
    return table, float((gap * table["images"]).sum() / table["images"].sum())


def class_accuracy(predictions: Predictions, before: str, after: str) -> pd.DataFrame:
    """The accuracies of two networks class by class, and their difference.

    There is a row per class that has images. The columns are class, images, the accuracy of each
    network in percent, and the fields of `Difference`.
    """
    rows = []
    for label in np.unique(predictions.labels):
        is_in_class = predictions.labels == label
        before_correct = predictions.correct(before)[is_in_class]
        after_correct = predictions.correct(after)[is_in_class]
        row = {
            "class": predictions.classes[label],
            "images": int(is_in_class.sum()),
            before: 100 * before_correct.mean(),
            after: 100 * after_correct.mean(),
        }
        rows.append(row | difference(before_correct, after_correct)._asdict())
    return pd.DataFrame(rows)


def class_correlations(predictions: Predictions, teacher: str = "teacher") -> dict[str, np.ndarray]:
    """Correlations between the logits of classes, minus the teacher's (CRD, ICLR 2020).

    Returns {network: (classes, classes)}, which is empty if `predictions` lack the teacher's.
    """
    if teacher not in predictions.logits:
        return {}
    correlations = {name: np.corrcoef(logits.T) for name, logits in predictions.logits.items()}
    teacher_correlations = correlations.pop(teacher)
    return {name: matrix - teacher_correlations for name, matrix in correlations.items()}


@torch.no_grad()
def cka(
    models: Mapping[str, nn.Module],
    loader: Loader,
    teacher: str = "teacher",
    max_images: int = 1000,
) -> dict[str, np.ndarray]:
    """Linear CKA of every teacher block with every block of each other network: {name: (T, S)}.

    A value of 1 means equal representations, 0 unrelated ones (Kornblith et al., ICML 2019). It is
    computed from unbiased estimates over minibatches (Nguyen et al., ICLR 2021), so that it does
    not grow with the size of the maps.

    Args:
        models: networks in eval mode by name, with the teacher's under `teacher`.
        loader: the images, of which up to `max_images` are used, in random order.
    """
    size = loader.batch_size
    order = np.random.default_rng(0).permutation(len(loader.images))[:max_images]
    # The last, smaller batch is left out: it would weigh as much as a full one.
    starts = range(0, max(len(order) - size, 0) + 1, size)
    students = [name for name in models if name != teacher]
    cross = dict.fromkeys(students, 0.0)  # HSIC of teacher and student blocks
    teacher_self = 0.0  # HSIC of each block with itself
    student_self = dict.fromkeys(students, 0.0)
    for start in with_progress(starts, len(starts), "CKA"):
        batch = loader.take(order[start : start + size])
        t = centred_grams(models[teacher](batch.for_teacher).feats)  # T bb
        teacher_self = teacher_self + t.square().sum(1)
        for name in students:
            s = centred_grams(models[name](batch.images).feats)  # S bb
            cross[name] = cross[name] + t @ s.T
            student_self[name] = student_self[name] + s.square().sum(1)
    matrices = {}
    for name in students:
        norm = (teacher_self[:, None] * student_self[name]).sqrt()
        matrices[name] = (cross[name] / norm.clamp(min=1e-12)).cpu().numpy()
    return matrices


def centred_grams(feats: tuple[Tensor, ...]) -> Tensor:
    """U-centred Gram matrices of each block's maps, flattened: (blocks, batch * batch).

    The product of two of them is an unbiased estimate of HSIC, up to a factor.
    """
    grams = []
    for feat in feats:
        x = feat.flatten(1).float()
        b = len(x)
        gram = (x @ x.T).fill_diagonal_(0)  # b b
        rows = gram.sum(1)
        gram += rows.sum() / ((b - 1) * (b - 2)) - (rows[:, None] + rows) / (b - 2)
        grams.append(gram.fill_diagonal_(0).flatten())
    return torch.stack(grams)
