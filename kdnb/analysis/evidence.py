"""Are the links real, do the networks look where they should, and what pulls at the student? Runs in, arrays out."""

import glob
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from kdnb.analysis.compare import cka
from kdnb.analysis.maps import Gallery, look
from kdnb.analysis.networks import STUDENTS, Networks, load_run
from kdnb.analysis.survey import Survey, joined, placing
from kdnb.losses.afd import AFD, energy
from kdnb.losses.mix import weight_at
from kdnb.models import load_weights, read_state_dict
from kdnb.progress import with_progress
from kdnb.results.intervals import interval
from kdnb.runs.run import Run
from kdnb.training.loop import train
from kdnb.training.setup import build_setup


def seed_replicates(run: Run) -> list[Run]:
    """The finished runs beside a run that differ from it in their seed alone, by seed; itself included."""
    pattern = f"{glob.escape(run.name.rpartition('-seed=')[0])}-seed=*/result.json"
    where = {
        name: getattr(run, name) for name in ("device", "threads", "data_root", "teacher_weights")
    }
    found = [Run.open(path.parent, **where) for path in run.folder.parent.glob(pattern)]
    return sorted((r for r in found if replace(r, seed=run.seed) == run), key=lambda r: r.seed)


@torch.no_grad()
def link_controls(
    networks: Networks, survey: Survey, seeds: Sequence[Run]
) -> dict[str, np.ndarray]:
    """The links (T, S) that were learned, and two that were not, as means over the test images, by name.

    seeds: of several runs the last epoch's links stand first, mean and standard deviation, of the training images.

    An attention as it is initialised (with the statistics of each batch, having none of its own) tells what the
    networks' maps bring about without learning; the learned one, given the teacher's maps of another image, how much
    of a link belongs to the image.
    """
    loader, afd = networks.loader, networks.afd
    teacher, student = networks.models["teacher"], networks.models["distilled"]
    sums, fresh = {"untrained attention": 0.0, "the teacher sees another image": 0.0}, None
    order = np.random.default_rng(0).permutation(
        len(loader.images)
    )  # of its class alone, another would be much alike
    parts = np.array_split(order, -(-len(order) // loader.batch_size))  # none is one lone image
    for rows in with_progress(parts, len(parts), "controls"):
        images = loader.take(rows).images
        s, t = student(images), teacher(images)
        if fresh is None:
            with torch.random.fork_rng([]):
                torch.default_generator.manual_seed(0)
                fresh = AFD(s, t, qk_dim=afd.qk_dim).to(loader.device).train()
        other = t._replace(feats=tuple(feat.roll(1, 0) for feat in t.feats))
        for name, links in zip(sums, (fresh.attention(s, t), afd.attention(s, other)), strict=True):
            sums[name] = sums[name] + links.sum(0)
    means = {name: (links / len(loader.images)).cpu().numpy() for name, links in sums.items()}
    found = {"this run": survey.links.mean(0), **means}
    if len(seeds) > 1:
        links = np.stack([run.links[0][-1] for run in seeds])
        found = {
            f"mean of {len(seeds)} seeds": links.mean(0),
            "their standard deviation": links.std(0, ddof=1),
        } | found
    return found


def likeness(survey: Survey, alike: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """{name: (T, S)} of the test images: links, how near each student's maps are to the teacher's (0: no nearer than a
    flat map, 1: the same), and `alike`, of `compare.cka`."""
    panels, flat = {"links": survey.links.mean(0)}, survey.flat.mean(0).clip(1e-12)[:, None]
    for role, apart in survey.distances.items():
        panels[f"nearness of maps, {role}"] = (1 - apart.mean(0) / flat).clip(0, 1)
    return panels | {f"CKA with the {role}": values for role, values in alike.items()}


def links_and_cka(runs: Sequence[Run]) -> pd.DataFrame:
    """Correlation of each run's links in its last epoch with `compare.cka`, over all pairs of blocks: a row per run.

    With the baseline's: do links follow a likeness that is there without distilling? With the distilled student's: do
    the blocks end alike that were linked? With closeness in depth: is that all there is to it? A teacher block divides
    its attention, whatever it is like: the mean of each row is taken away. Below several runs stand their mean and its
    interval. Runs that have not kept their weights, or have no finished baseline, are left out.
    """
    rows = {}
    for run in runs:
        needed = run.folder / "losses.safetensors", run.baseline.folder / "student.safetensors"
        if not all(path.is_file() for path in needed):
            continue
        networks = load_run(run)
        links, alike = networks.history[-1], cka(networks.models, networks.loader)
        columns = {f"CKA with the {role}": alike[role] for role in STUDENTS}
        columns["closeness in depth"] = -np.abs(
            np.subtract.outer(*(np.linspace(0, 1, n) for n in links.shape))
        )
        centred = {name: values - values.mean(1, keepdims=True) for name, values in columns.items()}
        rows[f"seed {run.seed}"] = {
            name: np.corrcoef(links.flat, c.flat)[0, 1] for name, c in centred.items()
        }
    table = pd.DataFrame.from_dict(rows, "index")
    told = table.round(3).astype(str)
    if len(table) > 1:
        told.loc["mean, 95 %"] = [interval(table[name].to_numpy()) for name in table]
    return told


class Inside(NamedTuple):
    """How much of each map's energy lies inside the box around the person who acts, minus what other images' maps have
    in the same box, which may be large, or in the middle. Of n test images and the blocks that show a place, by role.
    """

    excess: dict[str, np.ndarray]  # (n, blocks), of the map's energy
    depth: dict[str, np.ndarray]  # (blocks,), from 0, the network's first, to 1, its last
    right: dict[
        str, np.ndarray
    ]  # (n,) by role, whether the prediction is right; without a teacher of other classes


@torch.no_grad()
def inside(networks: Networks, survey: Survey, photographs, most: int = 1000) -> Inside | None:
    """Energy inside the person's box, for up to `most` test images; None for None, a data set without boxes.

    photographs: the test images as a Stanford40 with boxes.
    """
    if photographs is None:
        return None
    loader, told = networks.loader, survey.predictions
    place = {
        name: i for i, name in enumerate(photographs.names)
    }  # damaged ones may have been left out of the loader
    own = [place[file.name] for file in loader.images.files]
    chosen = np.linspace(0, len(own) - 1, min(most, len(own))).round().astype(int)
    chosen = np.random.default_rng(0).permutation(chosen)  # other images are of other classes
    places = {role: placing(networks.blocks[role != "teacher"]) for role in networks.models}
    cuts, parts = loader.plan(0)["box"].cpu().numpy(), []
    batches = np.array_split(chosen, -(-len(chosen) // loader.batch_size))  # none is one lone image
    for rows in with_progress(batches, len(batches), "boxes"):
        boxes = np.stack(
            [fractions(*photographs[own[i]]) for i in rows]
        )  # b 4: left, top, right, bottom
        corner, size = np.tile(cuts[rows, :2], 2), np.tile(cuts[rows, 2:], 2)
        boxes = torch.from_numpy(((boxes - corner) / size).clip(0, 1)).float().to(loader.device)
        images = loader.take(rows).images
        feats = {role: model(images).feats for role, model in networks.models.items()}
        within = {
            role: excess_inside([feats[role][i] for i in its], boxes)
            for role, its in places.items()
        }
        parts.append((boxes, within))
    boxes, excess = map(joined, zip(*parts, strict=True))
    seen = (boxes[:, 2:] > boxes[:, :2]).all(
        1
    )  # by the networks, who see the middle of each photograph
    depth = {
        role: np.array(its) / max(len(networks.blocks[role != "teacher"]) - 1, 1)
        for role, its in places.items()
    }
    right = {role: told.correct(role)[chosen][seen] for role in told.logits}
    return Inside({role: values[seen] for role, values in excess.items()}, depth, right)


def fractions(image, target) -> np.ndarray:
    """A box (left, top, right, bottom) as fractions of its photograph."""
    return np.asarray(target[1]) / np.array([image.width, image.height] * 2)


def excess_inside(feats: Sequence[Tensor], boxes: Tensor) -> Tensor:
    """(batch, blocks): the share of each map's energy in its box, minus that of the others' maps in the same box.

    boxes: (batch, 4), as fractions of the map; cells count by their part that is in.
    """
    found = []
    for e in map(energy, feats):  # b h w
        cover = []
        for axis, cells in ((1, e.shape[1]), (0, e.shape[2])):
            starts = torch.arange(cells, device=e.device) / cells
            low = torch.maximum(boxes[:, axis, None], starts)
            cover.append(
                (torch.minimum(boxes[:, axis + 2, None], starts + 1 / cells) - low).clamp(min=0)
                * cells
            )
        own = e / e.sum((1, 2), keepdim=True).clamp(min=1e-12)
        others = (own.sum(0) - own) / max(len(own) - 1, 1)
        found.append(((own - others) * cover[0][:, :, None] * cover[1][:, None]).sum((1, 2)))
    return torch.stack(found, 1)


def grad_cam(networks: Networks, survey: Survey, index: np.ndarray) -> Gallery | None:
    """The gallery of `maps.look` with, as maps, Grad-CAM of each network's predicted class at its last block that shows
    a place (Selvaraju et al., ICCV 2017)."""
    gallery = look(networks, survey, index)
    if gallery is None:
        return None
    images, cams = networks.loader.take(index).images.requires_grad_(), {}  # weights are frozen
    t, s = (placing(its)[-1] for its in gallery.blocks)
    for role, model in networks.models.items():
        output, place = model(images), t if role == "teacher" else s
        (slope,) = torch.autograd.grad(output.logits.max(1).values.sum(), output.feats[place])
        cam = (slope.mean((2, 3), keepdim=True) * output.feats[place]).sum(1).relu()  # b h w
        cams[role] = [F.normalize(cam, dim=(1, 2)).detach().cpu().numpy()]
    distances = {role: values[:, [[t]], [[s]]] for role, values in gallery.distances.items()}
    blocks = [gallery.blocks[0][t]], [gallery.blocks[1][s]]
    return gallery._replace(maps=cams, blocks=blocks, distances=distances, quantity="Grad-CAM")


def loss_shares(run: Run) -> pd.DataFrame:
    """The share of each weighted term in the training loss: a row per epoch, a column per term, rows sum to 1."""
    terms, metrics = run.config["terms"], run.metrics.set_index("epoch")
    epochs = metrics.index.to_numpy() - 1
    weighted = {
        t["loss"]: metrics[f"train_{t['loss']}"] * weight_at(t["loss"], t["weight"], epochs)
        for t in terms
    }
    table = pd.DataFrame(weighted).abs()  # VID's may be below 0
    return table.div(table.sum(axis=1), axis=0)


def gradient_norms(run: Run, batches: int = 4) -> pd.DataFrame:
    """The norm of each weighted term's gradient for the student's weights, before its first step and after its last.

    Mean over the first training batches, in float32, with the losses' own parameters as they are at that time.
    """
    start = build_setup(train(run))
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
                slopes = torch.autograd.grad(
                    weight * terms[term.loss], weights, retain_graph=True, allow_unused=True
                )
                norm = torch.stack([s.square().sum() for s in slopes if s is not None]).sum().sqrt()
                rows.append((when, term.loss, float(norm)))
    table = pd.DataFrame(rows, columns=["when", "term", "norm"])
    return table.groupby(["when", "term"], sort=False)["norm"].mean().unstack("term")
