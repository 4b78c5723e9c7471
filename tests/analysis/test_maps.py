"""Galleries: pixels, maps and predictions of test images and photographs; Grad-CAM."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import picture
from PIL import Image
from test_survey import networks

from kdnb import InputError, analysis, create_model
from kdnb.analysis.maps import grad_cam, make_gallery, photograph_gallery
from kdnb.models import blocks


@pytest.fixture
def survey(networks):
    return analysis.survey_images(networks)


def test_a_gallery_has_the_pixels_that_the_networks_saw_and_their_maps(networks, survey):
    index = [20, 3, 7]
    gallery = make_gallery(networks, survey, np.array(index))
    assert gallery.names == ["class 0", "class 3", "class 3"]
    predicted = survey.predictions.top1("teacher")[index]
    assert gallery.predicted["teacher"] == [f"class {label}" for label in predicted]
    pixels = networks.loader.images.images[index].permute(0, 2, 3, 1).numpy()
    assert (gallery.pixels == pixels).all()
    maps = gallery.maps["teacher"]
    assert [array.shape for array in maps] == [(3, side, side) for side in (8, 8, 4, 4, 2, 2)]
    assert [(array**2).sum((1, 2)) for array in maps] == [pytest.approx([1] * 3)] * 6
    assert make_gallery(networks, survey, []) is None


@pytest.mark.parametrize(("t", "s"), [(0, 0), (5, 0), (1, 2), (5, 2)])
def test_distances_are_between_maps_at_the_teachers_size(networks, survey, t, s):
    gallery = make_gallery(networks, survey, np.array([20, 3, 7]))
    student = torch.from_numpy(gallery.maps["baseline"][s])
    teacher = torch.from_numpy(gallery.maps["teacher"][t])
    pooled = F.normalize(F.adaptive_avg_pool2d(student, teacher.shape[1:]), dim=(1, 2))
    expected = 1 - (pooled * teacher).sum((1, 2))  # 1 - cosine
    np.testing.assert_allclose(gallery.distances["baseline"][:, t, s], expected, atol=1e-5)


def test_a_gallery_shows_photographs_from_their_files(networks, survey, tmp_path):
    files = [tmp_path / f"{i}.png" for i in range(2)]
    for file, size in zip(files, ((400, 800), (160, 80)), strict=True):
        picture(*size, seed=1).save(file)
    networks.loader.images = replace(networks.loader.images, files=files)
    tall, wide = make_gallery(networks, survey, np.array([0, 1])).pixels
    # 7/8 of the shorter side, at most 320 pixels.
    assert tall.shape == (320, 320, 3) and wide.shape == (70, 70, 3)
    assert (wide == np.asarray(Image.open(files[1]))[5:75, 45:115]).all()


def test_a_photograph_is_cropped_like_test_images(networks, tmp_path):
    picture(160, 80, seed=1).save(tmp_path / "dog.png")
    gallery = photograph_gallery(networks, str(tmp_path / "dog.png"))
    assert gallery.names == ["dog"]
    assert gallery.pixels[0].shape == (70, 70, 3)  # 7/8 of the shorter side
    crop = Image.fromarray(gallery.pixels[0]).resize((8, 8), Image.Resampling.BOX)
    with torch.no_grad():
        images = (torch.from_numpy(np.array(crop)).permute(2, 0, 1)[None] / 255 - 0.5) / 0.25
        logits = networks.models["teacher"](images).logits
    classes = networks.loader.images.classes
    assert gallery.predicted["teacher"] == [classes[logits.argmax()]]
    (likeliest,) = gallery.likeliest["teacher"]
    names, probabilities = zip(*likeliest, strict=True)
    assert sorted(names) == sorted(classes) and list(probabilities) == sorted(probabilities)[::-1]
    assert sum(probabilities) == pytest.approx(1)
    assert probabilities[0] == pytest.approx(logits.softmax(1).max().item(), abs=0.05)
    with open(tmp_path / "dog.png", "rb") as file:
        upload = photograph_gallery(networks, file, "an upload")
    assert upload.names == ["an upload"]
    assert (upload.maps["teacher"][0] == gallery.maps["teacher"][0]).all()
    assert photograph_gallery(networks, "") is None


@pytest.mark.parametrize("names", [(), tuple("abcd")])
def test_a_teacher_of_other_classes_predicts_its_own_if_they_have_names(networks, survey, names):
    networks = networks._replace(same_classes=False, teacher_classes=names)
    gallery = make_gallery(networks, survey, np.array([1]))
    assert list(gallery.likeliest) == ["teacher"] * bool(names) + ["baseline", "distilled"]
    if names:
        assert gallery.predicted["teacher"][0] in names


def test_a_gallery_is_extended_by_another(networks, survey, tmp_path):
    picture(160, 80, seed=1).save(tmp_path / "dog.png")
    photograph = photograph_gallery(networks, tmp_path / "dog.png")
    gallery = make_gallery(networks, survey, np.array([1, 2])).extended(photograph)
    assert gallery.names[2] == "dog" and len(gallery.pixels) == 3
    assert [len(array) for array in gallery.maps["baseline"]] == [3] * 3
    assert gallery.distances["distilled"].shape == (3, 6, 3)
    assert len(gallery.predicted["teacher"]) == 3


@pytest.mark.parametrize("name", ["text.png", "none.png"])
def test_a_file_that_is_no_image_is_named(networks, tmp_path, name):
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(InputError, match=f"photograph .*{name}': no such file, no image"):
        photograph_gallery(networks, tmp_path / name)


def test_grad_cam_is_of_the_last_block_that_shows_a_place(networks, survey):
    gallery = grad_cam(networks, survey, np.array([4, 9]))
    (cam,) = gallery.maps["distilled"]
    assert cam.shape == (2, 4, 4) and (cam >= 0).all()  # the last block's maps are 2 x 2
    assert gallery.blocks == ([networks.blocks[0][3]], [networks.blocks[1][1]])
    assert gallery.quantity == "Grad-CAM"
    assert grad_cam(networks, survey, np.array([], int)) is None


def test_grad_cam_of_a_linear_classifier_weights_channels_by_the_class_weights(networks, survey):
    of_one_size = tuple([(name, (1, 4, 4)) for name, _ in each] for each in networks.blocks)
    gallery = grad_cam(networks._replace(blocks=of_one_size), survey, np.array([4, 9]))
    (cam,) = gallery.maps["distilled"]
    model = networks.models["distilled"]
    output = model(networks.loader.take([4, 9]).images)
    weights = model.fc.weight[output.logits.argmax(1)][:, :, None, None]
    expected = (weights * output.feats[-1]).sum(1).relu().flatten(1)
    expected = F.normalize(expected, dim=1).detach().numpy()
    np.testing.assert_allclose(cam.reshape(2, -1), expected, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "classes"), [("timm/vit_tiny_patch16_224", 4), ("timm/tf_efficientnet_lite0", 0)]
)
def test_grad_cam_leaves_out_a_teacher_whose_predictions_have_no_maps(
    networks, survey, name, classes
):
    teacher = create_model(name, classes, 32).eval().requires_grad_(False)
    networks = networks._replace(
        models=networks.models | {"teacher": teacher},
        blocks=(blocks(teacher, 32), networks.blocks[1]),
        loader=replace(networks.loader, teacher_size=32),
        same_classes=bool(classes),
    )
    gallery = grad_cam(networks, survey, np.array([4, 9]))
    assert list(gallery.maps) == ["baseline", "distilled"]
