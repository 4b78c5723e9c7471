"""Controls, boxes and terms: against what can be known of small cases."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from drawing import crowded
from helpers import quiet, tiny, tiny_run
from PIL import Image
from test_analysis import networks

from kdnb import analysis, plots, train
from kdnb.analysis import evidence
from kdnb.losses.mix import weight_at


class Photographs(list):
    classes, targets = ("a",), [0]


def test_the_energy_inside_a_box_is_compared_with_that_of_other_images_in_the_same_box():
    feat = torch.zeros(2, 3, 2, 2)
    feat[0, :, 0, 0], feat[1] = 2.0, 1.0
    boxes = torch.tensor(
        [[0, 0, 0.5, 0.25], [0.25, 0, 1, 0.5]]
    )  # half of the one active cell; three eighths of all
    excess = evidence.excess_inside(
        (feat,), boxes
    )  # of the even map an eighth is in the first, of the other a half
    assert excess.tolist() == [pytest.approx([0.5 - 0.125]), pytest.approx([0.375 - 0.5])]
    box = evidence.fractions(Image.new("RGB", (200, 100)), (0, torch.tensor([50.0, 0, 100, 100])))
    assert box.tolist() == [0.25, 0, 0.5, 1]


def test_energy_in_boxes_is_that_of_the_crop_that_the_networks_see(networks):
    survey, loader = analysis.survey_images(networks), networks.loader
    assert evidence.inside(networks, survey, None) is None and plots.box_energy(None) is None
    whole = np.tile([0.1, 0.1, 0.8, 0.8], (len(loader.images), 1)).astype(np.float32)
    plan = loader.plan(0)
    loader.plan = lambda epoch: plan | {"box": torch.from_numpy(whole)}
    edges = torch.tensor(
        [0.0, 10, 50, 90]
    )  # of 100 x 100 pixels: the left half of what is seen, and some that is not
    photographs = Photographs(
        (Image.new("RGB", (100, 100)), (0, edges)) for _ in range(len(loader.images) + 1)
    )
    photographs.names = [f"{i}.jpg" for i in range(len(photographs))]
    photographs[0] = None  # a damaged one, which the loader does not have
    loader.images = replace(
        loader.images, files=[Path("JPEGImages", name) for name in photographs.names[1:]]
    )
    found = evidence.inside(networks, survey, photographs, most=12)
    assert [excess.shape for excess in found.excess.values()] == [
        (12, 4),
        (12, 2),
        (12, 2),
    ]  # the last maps are 2 x 2
    assert found.depth["teacher"].tolist() == pytest.approx([0, 0.2, 0.4, 0.6])
    chosen = np.random.default_rng(0).permutation(
        np.linspace(0, len(loader.images) - 1, 12).round().astype(int)
    )
    with torch.no_grad():
        maps = networks.models["teacher"](loader.take(chosen).images).feats[0].square().sum(1)
    left = (maps[..., :4].sum((1, 2)) / maps.sum((1, 2))).numpy()
    assert loader.batch_size < 12
    parts = np.array_split(left, 2)  # batches, within which images are compared
    expected = [own - np.delete(part, i).mean() for part in parts for i, own in enumerate(part)]
    assert found.excess["teacher"][:, 0] == pytest.approx(expected, abs=1e-5)
    assert (found.right["baseline"] == survey.predictions.correct("baseline")[chosen]).all()
    fig = plots.box_energy(found, title="data, student, afd, from teacher, seed 0")
    assert len(fig.axes) == 2 and crowded(fig) == []


def test_controls_and_grad_cam(networks):
    survey = analysis.survey_images(networks)
    controls = evidence.link_controls(networks, survey, [])
    assert all(links.sum(1) == pytest.approx(np.ones(6), rel=1e-4) for links in controls.values())
    near = evidence.likeness(survey, {})["nearness of maps, distilled"]
    with torch.no_grad():
        feats = networks.models["teacher"](networks.loader.take(range(22)).images).feats
    maps = [torch.nn.functional.normalize(evidence.energy(h).flatten(1), dim=1) for h in feats]
    flat = np.array([float((1 - m.mean(1) * m.shape[1] ** 0.5).mean()) for m in maps])
    expected = 1 - survey.distances["distilled"].mean(0) / flat[:, None]
    assert near == pytest.approx(expected.clip(0, 1), abs=1e-3) and near.shape == (6, 3)
    assert np.abs(controls["the teacher sees another image"] - controls["this run"]).max() > 1e-4
    gallery = evidence.grad_cam(networks, survey, np.array([4, 9]))
    (cam,) = gallery.maps["distilled"]
    assert cam.shape == (2, 4, 4) and (cam >= 0).all()  # not the last block's, of 2 x 2
    assert (
        gallery.blocks == ([networks.blocks[0][3]], [networks.blocks[1][1]])
        and gallery.quantity == "Grad-CAM"
    )
    blocks = tuple([(name, (1, 4, 4)) for name, _ in its] for its in networks.blocks)
    gallery = evidence.grad_cam(networks._replace(blocks=blocks), survey, np.array([4, 9]))
    (cam,) = gallery.maps["distilled"]
    model, images = networks.models["distilled"], networks.loader.take([4, 9]).images
    output = model(images)  # of a linear classifier over a mean the slope is the class's weights
    weights = model.fc.weight[output.logits.argmax(1)][:, :, None, None]
    expected = (weights * output.feats[-1]).sum(1).relu().flatten(1)
    expected = torch.nn.functional.normalize(expected, dim=1).detach().numpy()
    np.testing.assert_allclose(cam.reshape(2, -1), expected, atol=1e-4)
    assert evidence.grad_cam(networks, survey, np.array([], int)) is None


def test_what_runs_tell_of_their_seeds_and_terms(tmp_path):
    runs = [train(tiny_run(tmp_path, seed=seed), log=quiet) for seed in range(2)]
    train(tiny_run(tmp_path, lr=0.03), log=quiet)
    train(runs[0].baseline, log=quiet)
    assert evidence.links_and_cka(runs).index.tolist() == [
        "seed 0"
    ]  # of the other there is no baseline, nor made one
    train(runs[1].baseline, log=quiet)
    assert evidence.seed_replicates(runs[1]) == runs
    table = evidence.links_and_cka(runs)
    assert (
        table.index.tolist() == ["seed 0", "seed 1", "mean, 95 %"]
        and table.iloc[2].str.contains(", ").all()
    )
    shares, norms = evidence.loss_shares(runs[0]), evidence.gradient_norms(runs[0], batches=1)
    assert list(shares) == ["ce", "kd", "afd"] and shares.sum(axis=1).tolist() == pytest.approx(
        [1] * 3
    )
    metrics, weights = runs[0].metrics, {"ce": 1, "kd": 0.9, "afd": 20}
    expected = (
        weights["kd"]
        * metrics["train_kd"]
        / sum(w * metrics[f"train_{n}"] for n, w in weights.items())
    )
    assert shares["kd"].tolist() == pytest.approx(expected.tolist())
    assert norms.index.tolist() == ["first step", "last step"] and (norms > 0).all(axis=None)
    assert weight_at("ce", 3.0, np.arange(2)) == 3
    plots.loss_terms(shares, norms)
