"""The energy of maps inside boxes, against values that can be computed by hand."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import image_set
from drawing import crowded
from PIL import Image
from test_survey import networks

from kdnb import analysis, plots
from kdnb.analysis import boxes
from kdnb.data.loader import Loader


class Photographs(list):
    classes, targets = ("a",), [0]


def test_the_energy_inside_a_box_is_compared_with_that_of_other_images_in_the_same_box():
    feat = torch.zeros(2, 3, 2, 2)
    feat[0, :, 0, 0] = 2.0  # all energy in one of four cells
    feat[1] = 1.0
    # Half of the active cell, an eighth of the map; and three eighths of the map, a half of the
    # active cell.
    corners = torch.tensor([[0, 0, 0.5, 0.25], [0.25, 0, 1, 0.5]])
    excess = boxes.excess_energy((feat,), corners)
    assert excess.tolist() == [pytest.approx([0.5 - 0.125]), pytest.approx([0.375 - 0.5])]
    target = 0, torch.tensor([50.0, 0, 100, 100])
    assert boxes.box_fractions(Image.new("RGB", (200, 100)), target).tolist() == [0.25, 0, 0.5, 1]


def test_energy_in_boxes_is_that_of_the_crop_that_the_networks_see(networks):
    loader = Loader(image_set(n=22, size=10, aspect=torch.ones(22)), 8, 8)
    networks = networks._replace(loader=loader)
    survey = analysis.survey_images(networks)
    assert boxes.box_energy(networks, survey, None) is None
    assert plots.box_energy(None) is None
    n = len(loader.images)
    plan = loader.plan(0) | {"box": torch.tensor([[1, 1, 8, 8]]).repeat(n, 1)}
    loader.plan = lambda epoch: plan
    # Of 100 x 100 pixels: the left half of the crop, and some pixels outside it.
    edges = torch.tensor([0.0, 10, 50, 90])
    photographs = Photographs((Image.new("RGB", (100, 100)), (0, edges)) for _ in range(n + 1))
    photographs.names = [f"{i}.jpg" for i in range(len(photographs))]
    photographs[0] = None  # a damaged one, which the loader does not have
    files = [Path("JPEGImages", name) for name in photographs.names[1:]]
    loader.images = replace(loader.images, files=files)
    result = boxes.box_energy(networks, survey, photographs, max_images=12)
    # The last maps, of 2 x 2 pixels, are left out.
    assert [excess.shape for excess in result.excess.values()] == [(12, 4), (12, 2), (12, 2)]
    assert result.depth["teacher"].tolist() == pytest.approx([0, 0.2, 0.4, 0.6])
    chosen = np.linspace(0, n - 1, 12).round().astype(int)
    chosen = np.random.default_rng(0).permutation(chosen)
    with torch.no_grad():
        maps = networks.models["teacher"](loader.take(chosen).images).feats[0].square().sum(1)
    left = (maps[..., :4].sum((1, 2)) / maps.sum((1, 2))).numpy()
    assert loader.batch_size < 12
    batches = np.array_split(left, 2)  # images are compared within a batch
    expected = [
        share - np.delete(batch, i).mean() for batch in batches for i, share in enumerate(batch)
    ]
    assert result.excess["teacher"][:, 0] == pytest.approx(expected, abs=1e-5)
    correct = survey.predictions.correct("baseline")[chosen]
    assert (result.correct["baseline"] == correct).all()
    fig = plots.box_energy(result, title="data, student, afd, from teacher, seed 0")
    assert len(fig.axes) == 2 and crowded(fig) == []
