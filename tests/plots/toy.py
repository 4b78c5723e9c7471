"""Small random inputs for plots."""

import numpy as np
import pandas as pd

from kdnb import plots
from kdnb.analysis import Survey
from kdnb.analysis.compare import Predictions
from kdnb.analysis.maps import Gallery

SHAPES = [(64, 56, 56), (128, 28, 28), (256, 14, 14), (512, 7, 7)]
CLASSES = ["writing_on_a_book", "looking_through_a_microscope", "running"]


def blocks(groups, per_group):
    """Blocks (name, shape): "1.1", "1.2", ..., with a shape per group."""
    return [(f"{g + 1}.{b + 1}", SHAPES[g]) for g in range(groups) for b in range(per_group)]


def random_links(*shape, seed=0):
    """Random attention of a shape (..., T, S), whose rows sum to one."""
    return np.random.default_rng(seed).dirichlet(np.full(shape[-1], 0.5), shape[:-1])


def survey_of(links, labels, names):
    """A survey with links (n, T, S) and labels alone."""
    return Survey(links, {}, np.zeros(links.shape[:2]), Predictions(names, labels, {}))


def normalised(maps):
    """Maps (n, h, w), L2-normalised over height and width."""
    return (maps / np.sqrt((maps**2).sum((1, 2), keepdims=True))).astype(np.float32)


def random_gallery(n=3):
    """A gallery of n images; the teacher has six blocks, each student three."""
    rng = np.random.default_rng(0)
    sides = {"teacher": (8, 8, 4, 4, 2, 2), "baseline": (8, 4, 2), "distilled": (8, 4, 2)}
    maps = {}
    for role, role_sides in sides.items():
        maps[role] = [normalised(rng.random((n, side, side))) for side in role_sides]
    likeliest = {
        role: [[(CLASSES[i], 0.6), (CLASSES[i - 1], 0.25)] for i in classes[:n]]
        for role, classes in {"baseline": (1, 1, 0), "distilled": (0, 1, 2)}.items()
    }
    per_pair = np.arange(6)[:, None] / 10 + np.arange(3) / 100  # t s
    distances = dict.fromkeys(("baseline", "distilled"), np.broadcast_to(per_pair, (n, 6, 3)))
    pixels = [rng.integers(0, 256, (side, side, 3)).astype(np.uint8) for side in (8, 300, 262)[:n]]
    return Gallery(CLASSES[:n], pixels, maps, distances, likeliest, (blocks(3, 2), blocks(3, 1)))


def epochs(line, role, run, top1, **columns):
    """The table of a run for `learning_curves`, with an epoch per accuracy in `top1`."""
    table = {
        "line": line,
        "order": [*plots.ROLES].index(role),
        "run": run,
        "epoch": np.arange(len(top1)) + 1,
        "test_top1": top1,
    }
    return pd.DataFrame({**table, **columns})
