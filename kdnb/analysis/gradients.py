"""How strongly each term of the loss acts on the student: shares of the loss, and gradients."""

import pandas as pd
import torch

from kdnb.analysis.measure import in_float32
from kdnb.analysis.networks import load_state
from kdnb.losses.mix import weight_at
from kdnb.models import load_weights, read_state_dict
from kdnb.progress import ignore
from kdnb.runs.run import Run
from kdnb.training.distiller import Distiller
from kdnb.training.setup import build_setup
from kdnb.training.train import train


def loss_shares(run: Run) -> pd.DataFrame:
    """The share of each weighted term in the training loss: a row per epoch, a column per term.

    Rows sum to 1. Absolute values are taken, because VID's loss may be negative.
    """
    metrics = run.metrics.set_index("epoch")
    epochs = metrics.index.to_numpy() - 1
    weighted = {}
    for term in run.config["terms"]:
        name = term["loss"]
        weighted[name] = metrics[f"train_{name}"] * weight_at(name, term["weight"], epochs)
    table = pd.DataFrame(weighted).abs()
    return table.div(table.sum(axis=1), axis=0)


def gradient_norms(run: Run, batches: int = 16) -> pd.DataFrame:
    """The norm of each weighted term's gradient with respect to the student's weights.

    There is a row for the weights before the first step and one for those after the last, and a
    column per term. Values are means over the first training batches, in float32; there are at most
    as many as an epoch has.
    """
    setup = build_setup(train(run, log=ignore))
    distiller = setup.distiller.train()
    rows = []
    for when, epoch in {"first step": 0, "last step": run.epochs - 1}.items():
        if when == "last step":
            load_trained(distiller, run)
        distiller.start_epoch(epoch)
        for batch, _ in zip(setup.train.epoch(), range(batches), strict=False):
            terms, _ = distiller(*in_float32(batch))
            for term, weight in zip(distiller.terms, distiller.weights, strict=True):
                norm = gradient_norm(weight * terms[term.loss], distiller.student)
                rows.append((when, term.loss, norm))
    table = pd.DataFrame(rows, columns=["when", "term", "norm"])
    return table.groupby(["when", "term"], sort=False)["norm"].mean().unstack("term")


def load_trained(distiller: Distiller, run: Run) -> None:
    """Load the weights of a finished run's student and losses."""
    trained = load_weights(run.student, run.weights, run.image_size, network_alone=True)
    distiller.student.load_state_dict(trained.state_dict())
    if distiller.losses.state_dict():  # the file is missing if no loss has parameters
        load_state(distiller.losses, read_state_dict(run.loss_weights), run.loss_weights)


def gradient_norm(loss: torch.Tensor, model: torch.nn.Module) -> float:
    """The L2 norm of the gradient of a loss with respect to a model's trainable weights."""
    weights = [p for p in model.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(loss, weights, retain_graph=True, allow_unused=True)
    squares = [g.square().sum() for g in gradients if g is not None]
    return float(torch.stack(squares).sum().sqrt())
