"""Analysis of finished runs: the same links, maps and predictions as in training."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import image_set, picture
from PIL import Image

from kdnb import analysis
from kdnb.analysis import Networks, Survey, maps
from kdnb.analysis.compare import Predictions
from kdnb.data import Batch
from kdnb.data.loader import Loader
from kdnb.errors import InputError
from kdnb.losses.afd import AFD
from kdnb.models import blocks, create_model, read_state_dict
from kdnb.runs.run import Run
from kdnb.training.loop import evaluate, train


@pytest.fixture
def networks():
    loader = Loader(image_set(n=22), 8, 8)
    names = {"teacher": "wrn_16_1", "baseline": "wrn_10_1", "distilled": "wrn_10_1"}
    models = {role: create_model(name, 4) for role, name in names.items()}
    batch = next(loader.epoch())
    with torch.no_grad():
        for (
            model
        ) in models.values():  # running statistics other than 0 and 1, so that eval mode matters
            model.train()(batch.images)
        outputs = models["distilled"](batch.images), models["teacher"](batch.images)
        afd = AFD(*outputs, qk_dim=8)
        afd(*outputs, batch)
    both = blocks(models["teacher"], 8), blocks(models["distilled"], 8)
    models = {role: model.eval() for role, model in models.items()}
    return Networks(models, both, loader, afd=afd.eval(), links_by_epoch=np.zeros((1, 6, 3)))


def surveyed(links, labels, classes, logits=None):
    return Survey(
        links, {}, np.zeros(links.shape[:2]), Predictions(classes, np.asarray(labels), logits or {})
    )


def test_survey_is_what_the_networks_say_of_all_images_at_once(networks):
    survey = analysis.survey_images(networks)
    images, labels, index = Loader(networks.loader.images, 22, 8).make({"index": torch.arange(22)})
    with torch.no_grad():
        out = {role: model(images) for role, model in networks.models.items()}
        links = networks.afd.attention(out["distilled"], out["teacher"])
        loss = networks.afd(out["distilled"], out["teacher"], Batch(images, labels, index))
    told = survey.predictions
    assert (told.labels == labels.numpy()).all()
    np.testing.assert_allclose(survey.links, links, rtol=1e-4, atol=1e-6)
    for role, output in out.items():
        np.testing.assert_allclose(told.logits[role], output.logits, rtol=1e-4, atol=1e-5)
        confidence = output.logits.softmax(1).max(1).values
        np.testing.assert_allclose(told.confidence(role), confidence, rtol=1e-4, atol=1e-6)
    half = np.array([h[0, 0].numel() / 2 for h in out["teacher"].feats])[:, None]
    weighed = survey.links * survey.distances["distilled"] / half
    assert weighed.sum((1, 2)).mean() == pytest.approx(loss.item(), rel=1e-4)
    large = [[("", (8, side, side)) for side in sides] for sides in ((8, 8, 8, 8, 4, 2), (8, 4, 2))]
    assert survey.pairs(large) == [
        (t, s) for s, t in enumerate(survey.links.mean(0)[:5].argmax(0)[:2])
    ]
    lone = surveyed(np.array([[[0.95, 0.05], [0.5, 0.5], [0.02, 0.98]]]), [0], "a")
    assert lone.pairs(([("", (8, 4, 4))] * 2 + [("", (8, 2, 2))], large[1][:2])) == [(0, 0), (1, 1)]
    assert lone.pairs(([("", (8, 4, 4)), *[("", (8, 2, 2))] * 2], large[1][:2])) == [
        (0, 0)
    ]  # to 1 nobody listens
    assert [s for _, s in survey.pairs([large[0], large[1][-1:] * 3], most=2)] == [
        0,
        2,
    ]  # none is large enough
    stranger = analysis.survey_images(networks._replace(same_classes=False))
    assert list(stranger.predictions.logits) == ["baseline", "distilled"]


def test_a_gallery_has_the_pixels_that_the_networks_saw_and_their_maps(networks):
    survey = analysis.survey_images(networks)
    gallery = maps.make_gallery(networks, survey, np.array([20, 3, 7]))
    assert (
        gallery.names == ["class 0", "class 3", "class 3"]
        and maps.make_gallery(networks, survey, []) is None
    )
    assert gallery.predicted["teacher"] == [
        f"class {c}" for c in survey.predictions.top1("teacher")[[20, 3, 7]]
    ]
    assert (
        gallery.pixels == networks.loader.images.images[[20, 3, 7]].permute(0, 2, 3, 1).numpy()
    ).all()
    assert [m.shape for m in gallery.maps["teacher"]] == [(3, 8, 8)] * 2 + [(3, 4, 4)] * 2 + [
        (3, 2, 2)
    ] * 2
    assert [(m**2).sum((1, 2)) for m in gallery.maps["teacher"]] == [pytest.approx([1] * 3)] * 6
    for t, s in (
        (0, 0),
        (5, 0),
        (1, 2),
        (5, 2),
    ):  # 1 - cosine, the student's map at the teacher's size
        student, teacher = (
            torch.from_numpy(gallery.maps[role][i]) for role, i in (("baseline", s), ("teacher", t))
        )
        pooled = F.normalize(F.adaptive_avg_pool2d(student, teacher.shape[1:]), dim=(1, 2))
        expected = 1 - (pooled * teacher).sum((1, 2))
        np.testing.assert_allclose(gallery.distances["baseline"][:, t, s], expected, atol=1e-5)
    assert [analysis.choose_images(survey, n).tolist() for n in (3, 9)] == [[0, 2, 3], [0, 1, 2, 3]]


def test_a_gallery_shows_photographs_from_their_files(networks, tmp_path):
    survey = analysis.survey_images(networks)
    files = [tmp_path / f"{i}.png" for i in range(2)]
    for file, size in zip(files, ((400, 800), (160, 80)), strict=True):
        picture(*size, seed=1).save(file)
    networks.loader.images = replace(networks.loader.images, files=files)
    tall, wide = maps.make_gallery(networks, survey, np.array([0, 1])).pixels
    assert tall.shape == (320, 320, 3) and wide.shape == (
        70,
        70,
        3,
    )  # 7/8 of the shorter side, made smaller
    assert (wide == np.asarray(Image.open(files[1]))[5:75, 45:115]).all()


def test_a_photograph_of_ones_own_is_cut_like_the_test_images(networks, tmp_path):
    picture(160, 80, seed=1).save(tmp_path / "dog.png")
    (tmp_path / "text.png").write_text("no image")
    own = maps.photograph_gallery(networks, str(tmp_path / "dog.png"))
    assert own.names == ["dog"] and own.pixels[0].shape == (70, 70, 3)  # 7/8 of the shorter side
    middle = Image.fromarray(own.pixels[0]).resize((8, 8), Image.Resampling.BOX)
    with torch.no_grad():
        batch = (torch.from_numpy(np.array(middle)).permute(2, 0, 1)[None] / 255 - 0.5) / 0.25
        logits = networks.models["teacher"](batch).logits
    assert own.predicted["teacher"] == [networks.loader.images.classes[logits.argmax()]]
    with open(tmp_path / "dog.png", "rb") as file:
        again = maps.photograph_gallery(networks, file, "an upload")
    assert (
        again.names == ["an upload"] and (again.maps["teacher"][0] == own.maps["teacher"][0]).all()
    )
    both = maps.make_gallery(networks, analysis.survey_images(networks), np.array([1, 2])).extended(
        own
    )
    assert both.names[2] == "dog" and [len(m) for m in both.maps["baseline"]] == [3] * 3
    assert (
        both.distances["distilled"].shape == (3, 6, 3)
        and len(both.predicted["teacher"]) == len(both.pixels) == 3
    )
    assert maps.photograph_gallery(networks, "") is None
    for name in ("text.png", "none.png"):
        with pytest.raises(InputError, match=f"photograph .*{name}': no such file, no image"):
            maps.photograph_gallery(networks, tmp_path / name)
    with pytest.raises(InputError, match=r"photograph 'none.png': no such file"):
        analysis.run_from_notebook({"photograph": "none.png", "outputs": str(tmp_path), "In": []})


def test_a_class_with_links_of_its_own_is_beyond_chance():
    rng = np.random.default_rng(1)
    labels, links = rng.choice([0, 1, 2, 4], 300), rng.dirichlet(np.ones(4), (300, 3))
    even = analysis.links_by_class(surveyed(links, labels, "abcde"))
    assert (even.deviation < 1.5 * even.chance).all()
    links[labels == 2] = [0.7, 0.1, 0.1, 0.1]
    told = analysis.links_by_class(surveyed(links, labels, "abcde"))
    assert told.names == ["a", "b", "c", "e"]  # nobody is of class d
    np.testing.assert_allclose(told.links[2], [[0.7, 0.1, 0.1, 0.1]] * 3, rtol=1e-5)
    assert told.deviation[2] == pytest.approx(
        0.5 * np.abs(told.links[2] - links.mean(0)).sum(1).mean()
    )
    assert told.deviation[2] > 3 * told.chance[2]


def test_mistakes_are_sorted_by_how_much_the_students_differ():
    of_a = {
        "baseline": [0.4, 0.9, 0.1, 0.9, 0.8],
        "distilled": [0.6, 0.1, 0.9, 0.99, 0.9],
    }  # its probability
    logits = {role: np.log([[p, 1 - p] for p in ps]) for role, ps in of_a.items()}
    survey = surveyed(np.zeros((5, 1, 1)), [0, 0, 0, 0, 1], "ab", logits)
    assert [index.tolist() for index in analysis.mistakes(survey)] == [[2, 0], [1]]
    one = [
        analysis.one_per_class_pair(survey, np.array(index, int), "baseline").tolist()
        for index in ([4, 2, 0, 1, 3], [])
    ]
    assert one == [[4, 2, 1], []]


def test_finished_runs_are_read_back_as_training_left_them(tmp_path):
    small = {
        "teacher": "wrn_10_1",
        "student": "wrn_10_1",
        "epochs": 1,
        "teacher_epochs": 1,
        "batch_size": 32,
    }
    small |= {
        "train_limit": 96,
        "device": "cpu",
        "precision": "float32",
        "compile": "off",
        "outputs": str(tmp_path),
    }
    run = Run(method="ce + afd:20(qk_dim=8)", **small)
    networks = analysis.load_run(run)  # trains what is missing
    for role, its in (("distilled", run), ("baseline", run.baseline)):
        assert evaluate(networks.models[role], networks.loader)["top1"] == pytest.approx(
            its.result["top1"], abs=1e-4
        )
    assert networks.links_by_epoch.shape == (1, 3, 3) and networks.same_classes
    trained = read_state_dict(run.loss_weights)
    assert torch.equal(networks.afd.p_t, trained["afd.p_t"]) and not networks.afd.training
    named = [
        analysis.run_from_notebook({"outputs": str(tmp_path), "run": name})
        for name in ("", run.name)
    ]
    assert named == [run, run] and named[0].folder == run.folder
    run.loss_weights.unlink()
    with pytest.raises(InputError, match="losses"):
        analysis.load_run(run)


def test_a_run_is_looked_into_without_the_weights_that_it_began_with(tmp_path):
    small = {
        "epochs": 1,
        "image_size": 8,
        "device": "cpu",
        "precision": "float32",
        "outputs": str(tmp_path),
    }
    first = train(Run(student="wrn_10_1", method="none", **small))
    more = {
        "student": "wrn_10_1",
        "student_weights": str(first.folder),
        "teacher": "wrn_10_1",
        "teacher_epochs": 1,
    }
    run = train(Run(method="ce + afd:9", **more, **small))
    assert (
        run.student_weights == str(first.weights)
        and run.baseline.student_weights_hash == run.student_weights_hash != ""
    )
    train(run.baseline)
    first.weights.unlink()
    networks = analysis.load_run(Run.open(run.folder))
    assert networks.afd.state_dict().keys() == {
        n.removeprefix("afd.") for n in read_state_dict(run.loss_weights)
    }
    assert not any(
        weight.requires_grad for model in networks.models.values() for weight in model.parameters()
    )


def test_without_afd_nothing_is_linked_nor_trained(tmp_path):
    with pytest.raises(InputError, match="'kd' has no afd: nothing is linked"):
        analysis.load_run(Run(method="kd", outputs=str(tmp_path)))
    assert analysis.run_from_notebook({"outputs": str(tmp_path)}) == Run(outputs=str(tmp_path))
    assert not any(tmp_path.iterdir())  # said before anything is trained


def test_a_run_whose_photographs_are_gone_says_what_to_set(tmp_path, cache_folder):
    for split, n in (("train", 50), ("test", 2)):  # as many as a batch of the teacher has
        for label in ("cat", "dog"):
            folder = tmp_path / "photos" / split / label
            folder.mkdir(parents=True)
            for i in range(n):
                picture(40, 30, seed=i + 10 * len(label)).save(folder / f"{i}.png")
    where = {"data_root": str(tmp_path / "photos"), "outputs": str(tmp_path / "out")}
    small = {
        "teacher": "wrn_10_1",
        "student": "wrn_10_1",
        "epochs": 1,
        "teacher_epochs": 1,
        "batch_size": 20,
    }
    fixed = {"teacher_weights": "none", "image_size": 32, "device": "cpu", "precision": "float32"}
    run = train(Run(dataset="folder", **small, **fixed, **where))
    (tmp_path / "photos").rename(tmp_path / "moved")
    opened = analysis.run_from_notebook({"run": run.name, "outputs": where["outputs"], "In": []})
    with pytest.raises(InputError, match="data_root is needed"):
        analysis.load_run(opened)
    there = analysis.run_from_notebook(
        {"run": run.name, **where, "data_root": str(tmp_path / "moved"), "In": []}
    )
    assert len(analysis.load_run(there).loader.images) == 4
