"""A pass over the test images computes what training computes, and what follows from it."""

from functools import partial

import numpy as np
import pytest
import torch
from conftest import image_set

from kdnb import analysis
from kdnb.analysis import Networks, Survey
from kdnb.analysis.compare import Predictions
from kdnb.data import Batch
from kdnb.data.loader import Loader
from kdnb.losses.afd import AFD
from kdnb.models import blocks, create_model


@pytest.fixture
def networks():
    loader = Loader(image_set(n=22), 8, 8)
    names = {"teacher": "wrn_16_1", "baseline": "wrn_10_1", "distilled": "wrn_10_1"}
    models = {role: create_model(name, 4) for role, name in names.items()}
    batch = next(loader.epoch())
    with torch.no_grad():
        # Running statistics change from 0 and 1, so that eval mode matters.
        for model in models.values():
            model.train()(batch.images)
        outputs = models["distilled"](batch.images), models["teacher"](batch.images)
        afd = AFD(*outputs, qk_dim=8)
        afd(*outputs, batch)
    network_blocks = blocks(models["teacher"], 8), blocks(models["distilled"], 8)
    models = {role: model.eval() for role, model in models.items()}
    links_by_epoch = np.zeros((1, 6, 3))
    return Networks(
        models,
        network_blocks,
        loader,
        link_loss=afd.eval(),
        new_link_loss=partial(AFD, qk_dim=8),
        links_by_epoch=links_by_epoch,
    )


def survey_of(links, labels, classes, logits=None):
    predictions = Predictions(classes, np.asarray(labels), logits or {})
    return Survey(links, {}, np.zeros(links.shape[:2]), predictions)


def blocks_of(*sides):
    """Blocks with maps of these sides."""
    return [("", (8, side, side)) for side in sides]


def test_a_survey_in_batches_equals_one_pass_over_all_images(networks):
    survey = analysis.survey_images(networks)
    batch = Loader(networks.loader.images, 22, 8).make({"index": torch.arange(22)})
    with torch.no_grad():
        outputs = {role: model(batch.images) for role, model in networks.models.items()}
        links = networks.link_loss.attention(outputs["distilled"], outputs["teacher"])
        loss = networks.link_loss(outputs["distilled"], outputs["teacher"], batch)
    predictions = survey.predictions
    assert (predictions.labels == batch.labels.numpy()).all()
    np.testing.assert_allclose(survey.links, links, rtol=1e-4, atol=1e-6)
    for role, output in outputs.items():
        np.testing.assert_allclose(predictions.logits[role], output.logits, rtol=1e-4, atol=1e-5)
        confidence = output.logits.softmax(1).max(1).values
        np.testing.assert_allclose(predictions.confidence(role), confidence, rtol=1e-4, atol=1e-6)
    half_pixels = [feat[0, 0].numel() / 2 for feat in outputs["teacher"].feats]
    weighted = survey.links * survey.distances["distilled"] / np.array(half_pixels)[:, None]
    assert weighted.sum((1, 2)).mean() == pytest.approx(loss.item(), rel=1e-4)


def test_predictions_of_a_teacher_of_other_classes_are_left_out(networks):
    survey = analysis.survey_images(networks._replace(same_classes=False))
    assert list(survey.predictions.logits) == ["baseline", "distilled"]


def test_a_student_block_is_paired_with_the_teacher_block_that_attends_to_it_most(networks):
    survey = analysis.survey_images(networks)
    teacher = blocks_of(8, 8, 8, 8, 4, 2)
    strongest = survey.links.mean(0)[:5].argmax(0)
    expected = [(strongest[0], 0), (strongest[1], 1)]
    assert survey.pairs((teacher, blocks_of(8, 4, 2))) == expected
    # No map is large enough: all blocks count.
    assert [s for _, s in survey.pairs((teacher, blocks_of(2, 2, 2)), max_pairs=2)] == [0, 2]


def test_blocks_without_links_have_no_pair():
    links = np.array([[[0.95, 0.05], [0.5, 0.5], [0.02, 0.98]]])
    survey = survey_of(links, [0], "a")
    assert survey.pairs((blocks_of(4, 4, 2), blocks_of(8, 4))) == [(0, 0), (1, 1)]
    # The one teacher block that is left attends to student block 1 with 0.05.
    assert survey.pairs((blocks_of(4, 2, 2), blocks_of(8, 4))) == [(0, 0)]


def test_images_are_the_first_of_their_classes(networks):
    survey = analysis.survey_images(networks)
    assert analysis.choose_images(survey, 3).tolist() == [0, 2, 3]
    assert analysis.choose_images(survey, 9).tolist() == [0, 1, 2, 3]


def test_a_class_with_links_of_its_own_is_beyond_chance():
    rng = np.random.default_rng(1)
    labels = rng.choice([0, 1, 2, 4], 300)
    links = rng.dirichlet(np.ones(4), (300, 3))
    random = analysis.links_by_class(survey_of(links, labels, "abcde"))
    assert (random.deviation < 1.5 * random.chance).all()
    links[labels == 2] = [0.7, 0.1, 0.1, 0.1]
    by_class = analysis.links_by_class(survey_of(links, labels, "abcde"))
    assert by_class.names == ["a", "b", "c", "e"]  # no image is of class d
    np.testing.assert_allclose(by_class.links[2], [[0.7, 0.1, 0.1, 0.1]] * 3, rtol=1e-5)
    deviation = 0.5 * np.abs(by_class.links[2] - links.mean(0)).sum(1).mean()
    assert by_class.deviation[2] == pytest.approx(deviation)
    assert by_class.deviation[2] > 3 * by_class.chance[2]


def test_mistakes_are_sorted_by_how_much_the_students_differ():
    probability_of_a = {
        "baseline": [0.4, 0.9, 0.1, 0.9, 0.8],
        "distilled": [0.6, 0.1, 0.9, 0.99, 0.9],
    }
    logits = {role: np.log([[p, 1 - p] for p in ps]) for role, ps in probability_of_a.items()}
    survey = survey_of(np.zeros((5, 1, 1)), [0, 0, 0, 0, 1], "ab", logits)
    assert [index.tolist() for index in analysis.mistakes(survey)] == [[2, 0], [1]]
    for index, expected in (([4, 2, 0, 1, 3], [4, 2, 1]), ([], [])):
        first = analysis.one_per_class_pair(survey, np.array(index, int), "baseline")
        assert first.tolist() == expected
