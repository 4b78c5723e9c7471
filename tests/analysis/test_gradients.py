"""The terms of the loss: their shares, and their gradients."""

import numpy as np
import pytest
from helpers import quiet, tiny, tiny_run

from kdnb import plots, train
from kdnb.analysis.gradients import gradient_norms, loss_shares
from kdnb.losses.mix import weight_at


def test_shares_and_gradients_of_the_terms(tmp_path):
    run = train(tiny_run(tmp_path), log=quiet)
    shares = loss_shares(run)
    assert list(shares) == ["ce", "kd", "afd"]
    assert shares.sum(axis=1).tolist() == pytest.approx([1] * 3)
    metrics = run.metrics
    weights = {"ce": 1, "kd": 0.9, "afd": 20}
    total = sum(weight * metrics[f"train_{name}"] for name, weight in weights.items())
    expected = weights["kd"] * metrics["train_kd"] / total
    assert shares["kd"].tolist() == pytest.approx(expected.tolist())
    norms = gradient_norms(run, batches=1)
    assert norms.index.tolist() == ["first step", "last step"] and (norms > 0).all(axis=None)
    assert weight_at("ce", 3.0, np.arange(2)) == 3
    plots.loss_terms(shares, norms)
