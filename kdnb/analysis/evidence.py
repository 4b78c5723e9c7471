"""Are the links real, do the networks look where they should, and what pulls at the student? Runs in, arrays out."""

import glob
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from kdnb.analysis import STUDENTS, Networks, Survey, load
from kdnb.analysis.compare import cka, interval
from kdnb.analysis.maps import Gallery, look
from kdnb.losses.afd import AFD, energy
from kdnb.methods import weight_at
from kdnb.models import load_weights, read_state_dict
from kdnb.prepare import ready
from kdnb.progress import counted
from kdnb.run import Run
from kdnb.train import train


def siblings(run: Run) -> list[Run]:
    """The finished runs beside a run that differ from it in their seed alone, by seed; itself included."""
    pattern = f"{glob.escape(run.name.rpartition('-seed=')[0])}-seed=*/result.json"
    where = {name: getattr(run, name) for name in ("device", "threads", "data_root", "teacher_weights")}
    found = [Run.open(path.parent, **where) for path in run.folder.parent.glob(pattern)]
    return sorted((r for r in found if replace(r, seed=run.seed) == run), key=lambda r: r.seed)


def links_of_seeds(runs: Sequence[Run]) -> np.ndarray:
    """The mean links of the training images in the last epoch of each run: (runs, T, S)."""
    return np.stack([run.links[0][-1] for run in runs])


@torch.no_grad()
def link_controls(networks: Networks, survey: Survey, seeds: np.ndarray) -> dict[str, np.ndarray]:
    """The links (T, S) that were learned, and two that were not, as means over the test images, by name.

    seeds: `links_of_seeds`; of several, mean and standard deviation stand first.

    An attention as it is initialised (with the statistics of each batch, having none of its own) tells what the
    networks' maps bring about without learning; the learned one, given the teacher's maps of another image, how much
    of a link belongs to the image.
    """
    loader, afd = networks.loader, networks.afd
    teacher, student = networks.models["teacher"], networks.models["distilled"]
    sums, fresh = {"untrained attention": 0.0, "the teacher sees another image": 0.0}, None
    order = np.random.default_rng(0).permutation(len(loader.images))  # of its class alone, another would be much alike
    parts = np.array_split(order, -(-len(order) // loader.batch_size))  # none is one lone image
    for rows in counted(parts, len(parts), "controls"):
        images = loader.take(rows).images
        s, t = student(images), teacher(images)
        if fresh is None:
            with torch.random.fork_rng():
                torch.manual_seed(0)
                fresh = AFD(s, t, qk_dim=afd.qk_dim).to(loader.device).train()
        other = t._replace(feats=tuple(feat.roll(1, 0) for feat in t.feats))
        for name, links in zip(sums, (fresh.attention(s, t), afd.attention(s, other)), strict=True):
            sums[name] = sums[name] + links.sum(0)
    means = {name: (links / len(loader.images)).cpu().numpy() for name, links in sums.items()}
    found = {"this run": survey.links.mean(0), **means}
    if len(seeds) > 1:
        found = {f"mean of {len(seeds)} seeds": seeds.mean(0), "their standard deviation": seeds.std(0, ddof=1)} | found
    return found


def links_and_cka(runs: Sequence[Run]) -> pd.DataFrame:
    """Correlation of each run's links with `compare.cka`, over all pairs of blocks: a row per run.

    With the baseline's: do links follow a likeness that is there without distilling? With the distilled student's: do
    the blocks end alike that were linked? Below several runs stand their mean and its interval.
    """
    rows = {}
    for run in runs:
        networks = load(run)
        alike = cka(networks.models, networks.loader)
        rows[f"seed {run.seed}"] = {r: np.corrcoef(networks.history[-1].flat, alike[r].flat)[0, 1] for r in STUDENTS}
    table = pd.DataFrame.from_dict(rows, "index").add_prefix("CKA with the ")
    told = table.round(3).astype(str)
    if len(runs) > 1:
        told.loc["mean, 95 %"] = [interval(table[name].to_numpy()) for name in table]
    return told


class Inside(NamedTuple):
    """How much of the networks' energy lies inside the box around the person who acts, for n test images."""

    box: np.ndarray  # (n,), the box's share of what the networks see
    shares: dict[str, np.ndarray]  # (n, blocks) by role, 0..1
    right: dict[str, np.ndarray]  # (n,) by role, whether the prediction is right; without a teacher of other classes


@torch.no_grad()
def inside(networks: Networks, survey: Survey, photographs, most: int = 1000) -> Inside | None:
    """Energy inside the person's box, for up to `most` test images; None for None, a data set without boxes.

    photographs: the test images as a Stanford40 with boxes.
    """
    if photographs is None:
        return None
    loader, told = networks.loader, survey.predictions
    place = {name: i for i, name in enumerate(photographs.names)}  # damaged ones may have been left out of the loader
    own = [place[file.name] for file in loader.images.files]
    chosen = np.linspace(0, len(own) - 1, min(most, len(own))).round().astype(int)
    cuts, parts = loader.plan(0)["box"].cpu().numpy(), []
    for first in counted(range(0, len(chosen), loader.batch_size), -(-len(chosen) // loader.batch_size), "boxes"):
        rows = chosen[first : first + loader.batch_size]
        boxes = np.stack([fractions(*photographs[own[i]]) for i in rows])  # b 4: left, top, right, bottom
        corner, size = np.tile(cuts[rows, :2], 2), np.tile(cuts[rows, 2:], 2)
        boxes = torch.from_numpy(((boxes - corner) / size).clip(0, 1)).to(loader.device)
        images = loader.take(rows).images
        shares = {r: share_inside(model(images).feats, boxes) for r, model in networks.models.items()}
        parts.append(((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]), shares))
    box = torch.cat([area for area, _ in parts]).cpu().numpy()
    seen = box > 0  # by the networks, who see the middle of each photograph
    joined = {r: torch.cat([shares[r] for _, shares in parts]).cpu().numpy()[seen] for r in networks.models}
    return Inside(box[seen], joined, {role: told.right(role)[chosen][seen] for role in told.logits})


def fractions(image, target) -> np.ndarray:
    """A box (left, top, right, bottom) as fractions of its photograph."""
    return np.asarray(target[1]) / np.array([image.width, image.height] * 2)


def share_inside(feats: Sequence[Tensor], boxes: Tensor) -> Tensor:
    """(batch, blocks): the share of each map's energy in the boxes (batch, 4); cells count by their part that is in."""
    shares = []
    for e in map(energy, feats):  # b h w
        cover = []
        for axis, cells in ((1, e.shape[1]), (0, e.shape[2])):
            starts = torch.arange(cells, device=e.device) / cells
            low = torch.maximum(boxes[:, axis, None], starts)
            cover.append((torch.minimum(boxes[:, axis + 2, None], starts + 1 / cells) - low).clamp(min=0) * cells)
        within = (e * cover[0][:, :, None] * cover[1][:, None]).sum((1, 2))
        shares.append(within / e.sum((1, 2)).clamp(min=1e-12))
    return torch.stack(shares, 1)


def grad_cam(networks: Networks, survey: Survey, index: np.ndarray) -> Gallery | None:
    """The gallery of `maps.look` with, as maps, Grad-CAM of each network's predicted class at its last block."""
    gallery = look(networks, survey, index)
    if gallery is None:
        return None
    images, cams = networks.loader.take(index).images.requires_grad_(), {}  # the teacher's weights are frozen
    for role, model in networks.models.items():
        output = model(images)
        (slope,) = torch.autograd.grad(output.logits.max(1).values.sum(), output.feats[-1])
        cam = (slope.mean((2, 3), keepdim=True) * output.feats[-1]).sum(1).relu()  # b h w
        cams[role] = [torch.nn.functional.normalize(cam, dim=(1, 2)).detach().cpu().numpy()]
    last = tuple([blocks[-1]] for blocks in gallery.blocks)
    return gallery._replace(maps=cams, blocks=last, distances={r: d[:, -1:, -1:] for r, d in gallery.distances.items()})


def loss_shares(run: Run) -> pd.DataFrame:
    """The share of each weighted term in the training loss: a row per epoch, a column per term, rows sum to 1."""
    terms, metrics = run.config["terms"], run.metrics.set_index("epoch")
    epochs = metrics.index.to_numpy() - 1
    weighted = {t["loss"]: metrics[f"train_{t['loss']}"] * weight_at(t["loss"], t["weight"], epochs) for t in terms}
    table = pd.DataFrame(weighted).abs()  # VID's may be below 0
    return table.div(table.sum(axis=1), axis=0)


def gradient_norms(run: Run, batches: int = 4) -> pd.DataFrame:
    """The norm of each weighted term's gradient for the student's weights, before its first step and after its last.

    Mean over the first training batches, in float32, with the losses' own parameters as they are at that time.
    """
    start = ready(train(run))
    distiller, rows = start.distiller.train(), []
    for when in ("first step", "last step"):
        if when == "last step":
            distiller.student.load_state_dict(load_weights(run.student, run.weights).state_dict())
            if distiller.losses.state_dict():
                distiller.losses.load_state_dict(read_state_dict(run.loss_weights))
        distiller.start_epoch(run.epochs - 1 if when == "last step" else 0)
        weights = [p for p in distiller.student.parameters() if p.requires_grad]
        for batch, _ in zip(start.train.epoch(), range(batches), strict=False):
            terms, _ = distiller(batch.images.float(), batch.labels, batch.index)
            for term, weight in zip(distiller.terms, distiller.weights, strict=True):
                slopes = torch.autograd.grad(weight * terms[term.loss], weights, retain_graph=True, allow_unused=True)
                norm = torch.stack([s.square().sum() for s in slopes if s is not None]).sum().sqrt()
                rows.append((when, term.loss, float(norm)))
    table = pd.DataFrame(rows, columns=["when", "term", "norm"])
    return table.groupby(["when", "term"], sort=False)["norm"].mean().unstack("term")
