"""How trained networks differ: what they predict and what their blocks represent, as arrays and tables.

Networks are called by names, such as teacher, baseline, distilled, or those of methods. Intervals are of 95 %.
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
    """What networks predict for the n test images, in order."""

    classes: tuple[str, ...]
    labels: np.ndarray  # (n,)
    logits: dict[str, np.ndarray]  # by network, (n, classes) float32

    def top1(self, name: str) -> np.ndarray:
        """(n,) predicted classes."""
        return self.logits[name].argmax(1)

    def correct(self, name: str) -> np.ndarray:
        """(n,) whether each prediction is right."""
        return self.top1(name) == self.labels

    def log_probabilities(self, name: str) -> np.ndarray:
        """(n, classes), in float64."""
        return special.log_softmax(self.logits[name].astype(np.float64), axis=1)

    def confidence(self, name: str) -> np.ndarray:
        """(n,) the probability that each prediction is given."""
        return np.exp(self.log_probabilities(name).max(1))


@torch.no_grad()
def predict(models: Mapping[str, nn.Module], loader: Loader) -> Predictions:
    """One pass of networks in eval mode over the images of a loader."""
    logits = {name: [] for name in models}
    for batch in with_progress(loader.epoch(), len(loader), "predict"):
        for name, model in models.items():
            logits[name].append(model(batch.images).logits.float().cpu())
    labels = loader.images.labels.numpy()
    return Predictions(
        loader.images.classes, labels, {n: torch.cat(parts).numpy() for n, parts in logits.items()}
    )


def fidelity(predictions: Predictions, teacher: str = "teacher") -> pd.DataFrame:
    """A row per network: accuracy, cross-entropy, calibration and, if the teacher knows the classes, likeness to it.

    agreement: the share of images for which both predict the same class; KL: of the teacher's probabilities and the
    network's (Stanton et al., Does Knowledge Distillation Really Work?, NeurIPS 2021); ECE: see `calibration`.
    """
    rows = {}
    for name in predictions.logits:
        log_q = predictions.log_probabilities(name)
        of_labels = -np.take_along_axis(log_q, predictions.labels[:, None], 1)[:, 0]
        row = {"top-1 (%)": share(predictions.correct(name)), "cross-entropy": interval(of_labels)}
        row["ECE (%)"] = f"{100 * calibration(predictions, name)[1]:.3g}"
        if teacher in predictions.logits and name != teacher:
            log_p, same = (
                predictions.log_probabilities(teacher),
                predictions.top1(teacher) == predictions.top1(name),
            )
            row["agreement with the teacher (%)"] = share(same)
            row["KL from the teacher"] = interval((np.exp(log_p) * (log_p - log_q)).sum(1))
        rows[name] = row
    return pd.DataFrame.from_dict(rows, "index").fillna("")


def calibration(predictions: Predictions, name: str, bins: int = 15) -> tuple[pd.DataFrame, float]:
    """Confidence against accuracy in bins of confidence, and their mean distance, the expected calibration error.

    The table has confidence, accuracy and images of each bin that has any (Guo et al., ICML 2017).
    """
    table = pd.DataFrame(
        {"confidence": predictions.confidence(name), "accuracy": 1.0 * predictions.correct(name)}
    )
    place = np.minimum((table["confidence"] * bins).astype(int), bins - 1)
    table = table.groupby(place).agg(
        confidence=("confidence", "mean"),
        accuracy=("accuracy", "mean"),
        images=("accuracy", "size"),
    )
    apart = (table["confidence"] - table["accuracy"]).abs()
    return table, float((apart * table["images"]).sum() / table["images"].sum())


def class_accuracy(predictions: Predictions, before: str, after: str) -> pd.DataFrame:
    """A row per class with images: its name, images, accuracy (%) of both networks, and their `Difference`."""
    rows = []
    for label in np.unique(predictions.labels):
        of_class = predictions.labels == label
        one, other = (predictions.correct(name)[of_class] for name in (before, after))
        means = {before: 100 * one.mean(), after: 100 * other.mean()}
        own = difference(one, other)._asdict()
        rows.append(
            {"class": predictions.classes[label], "images": int(of_class.sum()), **means, **own}
        )
    return pd.DataFrame(rows)


def class_correlations(predictions: Predictions, teacher: str = "teacher") -> dict[str, np.ndarray]:
    """{network: (classes, classes)}: correlations of its logits over images minus the teacher's (CRD, ICLR 2020).

    Empty if the teacher knows other classes.
    """
    of = {name: np.corrcoef(logits.T) for name, logits in predictions.logits.items()}
    return (
        {name: matrix - of[teacher] for name, matrix in of.items() if name != teacher}
        if teacher in of
        else {}
    )


@torch.no_grad()
def cka(
    models: Mapping[str, nn.Module], loader: Loader, teacher: str = "teacher", most: int = 1000
) -> dict:
    """Linear CKA of every teacher block with every block of each other network: {name: (T, S)}; 1: alike, 0: unrelated.

    From unbiased estimates over shuffled batches of up to `most` images of the loader (Kornblith et al., ICML 2019;
    Nguyen et al., ICLR 2021), so that neither their number nor the size of the maps raises it.
    """
    size, order = loader.batch_size, np.random.default_rng(0).permutation(len(loader.images))[:most]
    sums = {name: [0.0, 0.0, 0.0] for name in models if name != teacher}
    starts = range(
        0, max(len(order) - size, 0) + 1, size
    )  # the last, smaller batch would weigh as much as a whole one
    for start in with_progress(starts, len(starts), "CKA"):
        images = loader.take(order[start : start + size]).images
        grams = {name: centred_grams(model(images).feats) for name, model in models.items()}
        for name, parts in sums.items():
            t, s = grams[teacher], grams[name]
            for i, part in enumerate((t @ s.T, t.square().sum(1), s.square().sum(1))):
                parts[i] = parts[i] + part
    return {
        name: (cross / (t[:, None] * s).sqrt().clamp(min=1e-12)).cpu().numpy()
        for name, (cross, t, s) in sums.items()
    }


def centred_grams(feats: tuple[Tensor, ...]) -> Tensor:
    """U-centred Gram matrices of the maps of some images: (blocks, b * b); their products estimate HSIC unbiased."""
    grams = []
    for feat in feats:
        x = feat.flatten(1).float()
        gram = (x @ x.T).fill_diagonal_(0)  # b b
        b, rows = len(x), gram.sum(1)
        gram += rows.sum() / ((b - 1) * (b - 2)) - (rows[:, None] + rows) / (b - 2)
        grams.append(gram.fill_diagonal_(0).flatten())
    return torch.stack(grams)
