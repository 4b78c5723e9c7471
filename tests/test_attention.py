"""What is read out of finished runs: the same links, maps and answers that training computed."""

import numpy as np
import pytest
import torch
from conftest import image_set

from kdnb import attention
from kdnb.attention import Networks, Survey
from kdnb.batches import Batches
from kdnb.errors import InputError
from kdnb.experiment import Experiment
from kdnb.losses import AFD
from kdnb.models import create_model
from kdnb.train import evaluate


@pytest.fixture
def batches():
    return Batches(image_set(n=22), 8, 8)


@pytest.fixture
def networks(batches):
    models = [create_model(name, 4) for name in ("wrn_16_1", "wrn_10_1", "wrn_10_1")]
    images, _ = next(batches.epoch())
    with torch.no_grad():
        for model in models:  # running statistics other than 0 and 1, so that eval mode matters
            model.train()(images)
        teacher, _, student = (model(images) for model in models)
    afd = AFD(student, teacher, qk_dim=8)
    afd(student, teacher)
    labels = attention.block_labels(models[0], 8), attention.block_labels(models[1], 8)
    return Networks(*models, afd, *labels, np.zeros((1, 6, 3)))


def test_block_labels_name_and_size_every_block(networks):
    assert networks.teacher_blocks[0] == "1.1  16×8×8" and networks.teacher_blocks[-1] == "3.2  64×2×2"
    assert len(networks.teacher_blocks) == 6 and len(networks.student_blocks) == 3


def test_survey_is_what_the_networks_say_of_all_images_at_once(networks, batches):
    survey = attention.survey(networks, batches)
    images, labels = Batches(batches.set, 22, 8).make({"index": torch.arange(22)})
    with torch.no_grad():
        out = {name: model.eval()(images) for name, model in networks.named.items()}
        links = networks.afd.eval().attention(out["distilled student"], out["teacher"])
        loss = networks.afd(out["distilled student"], out["teacher"])
    assert torch.equal(torch.from_numpy(survey.labels), labels)
    torch.testing.assert_close(torch.from_numpy(survey.links), links)
    for name, output in out.items():
        assert (survey.answers[name] == output.logits.argmax(1).numpy()).all()
        right = output.logits.softmax(1)[torch.arange(22), labels]
        torch.testing.assert_close(torch.from_numpy(survey.certainty[name]), right)
    sizes = np.array([h.shape[2] * h.shape[3] for h in out["teacher"].feats])[:, None]
    distances = survey.distances["distilled student"]
    assert (survey.links * distances * 2 / sizes).sum((1, 2)).mean() == pytest.approx(loss.item(), rel=1e-4)
    assert survey.linked_distance("plain student").shape == (6,)
    assert all(t == survey.links.mean(0)[:, s].argmax() for t, s in survey.pairs())
    assert survey.middle in survey.pairs() and len(survey.pairs(most=2)) == 2


def test_distances_of_survey_and_gallery_agree(networks, batches):
    survey = attention.survey(networks, batches)
    gallery = attention.look(networks, batches, np.array([20, 3, 7]))
    assert gallery.names == ["class 0", "class 3", "class 3"]
    for student in networks.students:
        for t, s in [(0, 0), (1, 2), (5, 0), (5, 2)]:
            expected = survey.distances[student][gallery.index, t, s]
            np.testing.assert_allclose(gallery.distance(student, t, s), expected, atol=1e-5)


def test_a_teacher_of_other_classes_gives_no_answers(networks, batches):
    stranger = create_model("wrn_16_1", 7)
    others = Networks(stranger, *(getattr(networks, n) for n in list(Networks.__dataclass_fields__)[1:]))
    survey = attention.survey(others, batches)
    assert list(survey.answers) == list(survey.certainty) == ["plain student", "distilled student"]
    assert survey.links.shape == (22, 6, 3)


def test_spatial_maps_are_normalised_and_do_not_depend_on_the_batch(networks, batches, monkeypatch):
    images, _ = attention.views(batches, np.arange(7))
    whole = attention.spatial_maps(networks.teacher.train(), images)
    assert [m.shape for m in whole] == [(7, 8, 8)] * 2 + [(7, 4, 4)] * 2 + [(7, 2, 2)] * 2
    for m in whole:
        np.testing.assert_allclose((m**2).sum((1, 2)), 1, rtol=1e-5)
    monkeypatch.setattr(attention, "BATCH", 3)
    for one, other in zip(attention.spatial_maps(networks.teacher, images), whole, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_map_distance_ends_at_0_and_1_and_pools_the_student():
    left, right = np.zeros((1, 4, 4), np.float32), np.zeros((1, 4, 4), np.float32)
    left[:, :, :2] = right[:, :, 2:] = 1
    small = np.array([[[1, 0], [1, 0]]], np.float32)
    assert attention.map_distance(left, left)[0] == pytest.approx(0, abs=1e-6)
    assert attention.map_distance(left, right)[0] == pytest.approx(1)
    assert attention.map_distance(left, small)[0] == pytest.approx(0, abs=1e-6)


def test_views_give_the_pixels_back():
    images = image_set(n=6)
    seen, pixels = attention.views(Batches(images, 4, 8), np.array([5, 0]))
    assert seen.shape == (2, 3, 8, 8) and (pixels == images.images[[5, 0]].permute(0, 2, 3, 1).numpy()).all()
    squashed = Batches(image_set(n=6, size=16, aspect=torch.tensor([2.0, 0.5, 1, 1, 1, 1])), 4, 12)
    seen, pixels = attention.views(squashed, np.array([1]))
    assert seen.shape == (1, 3, 12, 12) and pixels.shape == (1, 12, 12, 3) and pixels.dtype == np.uint8


def test_images_are_chosen_from_as_many_classes_as_there_are():
    images = image_set(n=40, classes=8)
    assert sorted(images.labels[attention.choose_images(images, 3)].tolist()) == [0, 4, 7]
    assert len(attention.choose_images(images, 20)) == 8


def test_entropy_counts_links_in_bits():
    links = np.array([[1, 0, 0, 0], [0.25] * 4, [0.5, 0.5, 0, 0]])
    np.testing.assert_allclose(attention.entropy(links), [0, 2, 1], atol=1e-6)


def test_settled_is_the_first_epoch_after_which_links_stay():
    way = np.array([0, 0.5, 0.95, 0.8, 0.92, 1.0])  # strays once, at epoch 4
    history = np.stack([1 - way, way], 1)[:, None]  # epochs, one teacher block, two student blocks
    assert attention.settled(history) == 5
    assert attention.settled(history[:1]) == attention.settled(np.ones((3, 1, 2))) == 1


def test_a_class_with_links_of_its_own_is_beyond_chance():
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 5, 300)
    links = rng.dirichlet(np.ones(4), (300, 3))
    links[labels == 2, :, :] = [0.7, 0.1, 0.1, 0.1]
    by_class = attention.class_links(links, labels, 6)
    np.testing.assert_allclose(by_class[2], [[0.7, 0.1, 0.1, 0.1]] * 3)
    assert np.isnan(by_class[5]).all()  # nobody is of class 5
    away = attention.deviation(by_class, by_class[2])
    assert away[2] == pytest.approx(0) and away[0] == pytest.approx(0.45, abs=0.02)  # 1/4 each, against 0.7
    chance = attention.chance_deviation(links, labels, 6)
    far = attention.deviation(by_class, links.mean(0))
    assert far[2] > 3 * chance[2] and np.isnan(far[5])
    even = rng.dirichlet(np.ones(4), (300, 3))
    far = attention.deviation(attention.class_links(even, labels, 5), even.mean(0))
    assert (far < 1.5 * attention.chance_deviation(even, labels, 5)).all()


def test_mistakes_are_sorted_by_how_much_the_students_differ():
    labels = np.array([0, 0, 0, 0, 1])
    answers = {"plain student": np.array([1, 0, 1, 0, 0]), "distilled student": np.array([0, 1, 0, 0, 0])}
    certainty = {
        "plain student": np.array([0.4, 0.9, 0.1, 0.9, 0.2]),
        "distilled student": np.array([0.6, 0, 0.9, 1, 0]),
    }
    corrected, broken = attention.mistakes(Survey(labels, np.zeros((5, 1, 1)), {}, answers, certainty))
    assert corrected.tolist() == [2, 0] and broken.tolist() == [1]


def test_finished_runs_are_read_back_as_training_left_them(tmp_path):
    small = {
        "teacher": "wrn_10_1",
        "student": "wrn_10_1",
        "epochs": 1,
        "batch_size": 32,
        "train_limit": 96,
        "qk_dim": 8,
    }
    experiment = Experiment(outputs=str(tmp_path), device="cpu", precision="float32", compile="off", **small)
    networks = attention.load_networks(experiment)  # trains what is missing
    run = experiment.distilled_run()
    test = attention.eval_batches(experiment)
    for model, its in ((networks.distilled, run), (networks.plain, experiment.plain_run())):
        assert evaluate(model, test)["top1"] == pytest.approx(its.result["top1"], abs=1e-4)
    assert networks.history.shape == (1, 3, 3)
    again = attention.rebuild(experiment, run).losses["afd"]
    fresh = experiment.distiller("wrn_10_1", 0, True, test).losses["afd"]
    images, _ = attention.views(test, np.arange(4))
    with torch.no_grad():
        outputs = networks.distilled(images), networks.teacher(images)
        links = [afd.eval().attention(*outputs) for afd in (networks.afd, again, fresh)]
    assert torch.equal(links[0], links[1])
    assert not torch.allclose(links[0], links[2], atol=1e-3)  # it is trained, not as it was initialised
    run.loss_weights.unlink()
    with pytest.raises(InputError, match="losses"):
        attention.rebuild(experiment, run)


def test_without_afd_there_is_nothing_to_link(tmp_path):
    with pytest.raises(InputError, match="beta is 0"):
        attention.load_networks(Experiment(outputs=str(tmp_path), beta=0.0))
    assert not any(tmp_path.iterdir())  # said before anything is trained
