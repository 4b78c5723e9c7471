"""Pictures of data sets and of spatial maps."""

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from conftest import image_set
from PIL import Image
from test_plots import blocks, crowded, title

from kdnb import pictures
from kdnb.attention import Gallery, Survey, map_distance
from kdnb.batches import Batches
from kdnb.experiment import Experiment


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


@pytest.fixture
def gallery():
    """Three images on which the distilled student sees nearly what the teacher does, and the plain one does not."""
    rng = np.random.default_rng(0)
    teacher = [normalised(rng.random((3, size, size))) for size in (8, 8, 4, 4, 2, 2)]
    after = [normalised(m + 0.01 * rng.random(m.shape)) for m in teacher[::2]]
    before = [normalised(rng.random(m.shape) ** 4) for m in after]
    maps = {"teacher": teacher, "plain student": before, "distilled student": after}
    pixels = rng.integers(0, 256, (3, 8, 8, 3)).astype(np.uint8)
    names = ["writing_on_a_book", "looking_through_a_microscope", "running"]
    return Gallery(np.arange(3), names, pixels, maps, blocks(3, 2), blocks(3, 1))


def normalised(maps):
    return (maps / np.sqrt((maps**2).sum((1, 2), keepdims=True))).astype(np.float32)


def test_map_depth_counts_the_blocks_that_came_closer(gallery):
    pairs = [(0, 0), (2, 1), (4, 2)]
    fig = pictures.map_depth(gallery, pairs, image=1)
    assert title(fig).startswith("“looking through a microscope”: 3 of 3 student blocks look more like")
    assert crowded(fig) == []
    distance = map_distance(gallery.maps["plain student"][1], gallery.maps["teacher"][2])[1]
    assert fig.axes[4].get_xlabel() == f"distance {distance:.2f}"
    assert len([ax for ax in fig.axes if ax.images]) == 9


def test_map_grid_has_a_column_per_image(gallery):
    fig = pictures.map_grid(gallery, (0, 0))
    assert title(fig) == "Distillation brings student block 1.1 closer to teacher block 1.1 on 3 of 3 images"
    assert len([ax for ax in fig.axes if ax.images]) == 12 and crowded(fig) == []
    assert "energy" in fig.axes[-1].get_ylabel()


def test_mistakes_name_the_answers_and_say_so_if_there_are_none(gallery, monkeypatch, capsys):
    labels = np.array([0, 1, 2, 0])
    answers = {"plain student": np.array([1, 1, 0, 0]), "distilled student": np.array([0, 1, 2, 0])}
    certainty = {"plain student": np.array([0.2, 1, 0.4, 1]), "distilled student": np.array([0.8, 1, 0.6, 1])}
    survey = Survey(labels, np.ones((4, 6, 3)) / 3, {}, answers, certainty)
    asked = []

    def look(networks, batches, index):
        asked.extend(index)
        return Gallery(np.asarray(index), *(getattr(gallery, n) for n in list(Gallery.__dataclass_fields__)[1:]))

    monkeypatch.setattr(pictures.attention, "look", look)
    batches = Batches(image_set(classes=3), 4, 8)
    fig = pictures.mistakes(None, batches, survey, "distilled student")
    assert asked == [0, 2] and title(fig) == "Distillation corrects 2 of 4 test images (50.0 %)"
    captions = [ax.get_xlabel() for ax in fig.axes if ax.get_xlabel()]
    assert captions == ["“class 1”", "“class 0”", "“class 0”", "“class 2”"]
    assert pictures.mistakes(None, batches, survey, "plain student") is None
    assert "spoils none of the 4" in capsys.readouterr().out


def test_a_map_over_mid_grey_has_the_colour_that_its_bar_gives_it():
    energies = normalised(np.arange(1.0, 17).reshape(1, 4, 4))[0]
    fig, ax = plt.subplots()
    pictures.map_bar(fig, ax)
    bar = fig.axes[-1]._colorbar
    expected = bar.cmap(bar.norm(pictures.scaled(energies)))[..., :3]
    seen = pictures.blend(np.full((8, 8, 3), 127, np.uint8), energies)
    assert seen.shape == (64, 64, 3) and np.abs(seen[8::16, 8::16] / 255 - expected).max() < 0.02
    assert np.sqrt((pictures.scaled(energies) ** 2).mean()) == pytest.approx(1)
    dark, light = (pictures.blend(np.full((8, 8, 3), v, np.uint8), energies).mean() for v in (0, 255))
    assert light > dark + 50  # the image shows through


@pytest.mark.parametrize("classes", [3, 40, 100])
def test_class_balance_can_be_read_with_many_classes(classes):
    images = image_set(n=3 * classes, classes=classes)
    fig = pictures.class_balance(images, images.limit(2 * classes))
    assert title(fig) == "Every class has 3 training images"
    assert [p.get_height() for ax in fig.axes for p in ax.patches] == [3] * classes + [2] * classes
    assert crowded(fig) == []
    assert title(pictures.class_balance(image_set(n=7, classes=3), images)) == "Classes have 2 to 3 training images"


def test_image_sizes_are_drawn_where_they_differ(capsys):
    assert pictures.image_sizes(image_set(n=5)) is None
    assert capsys.readouterr().out == "all 5 images are 8 × 8 pixels\n"
    photographs = image_set(n=4, aspect=torch.tensor([2.0, 1.5, 1.2, 0.5]))
    assert title(pictures.image_sizes(photographs)) == "75 % of the images are wider than high"


def test_augmentations_show_the_image_itself_and_what_batches_make_of_it():
    images = image_set(n=12)
    fig = pictures.augmentations(Batches(images, 4, 8, train=True, padding=2, flip=True), columns=4, rows=2)
    assert "8 × 8 pixels: crops shifted by up to 2 pixels, mirrored every second time" in title(fig)
    assert (fig.axes[0].images[0].get_array() == images.images[0].permute(1, 2, 0).numpy()).all()
    views = [np.asarray(ax.images[0].get_array()) for ax in fig.axes[1:4]]
    assert not (views[0] == views[1]).all() or not (views[1] == views[2]).all()
    whole = pictures.augmentations(Batches(images, 4, 8, train=True), columns=3, rows=2)
    assert (np.asarray(whole.axes[4].images[0].get_array()) == images.images[1].permute(1, 2, 0).numpy()).all()
    assert "never mirrored" in title(whole)
    photographs = Batches(image_set(n=12, size=16, aspect=torch.full((12,), 2.0)), 4, 8, train=True)
    assert "random-resized crops" in title(pictures.augmentations(photographs, columns=3, rows=1))


BOX = "<a><object><bndbox><xmax>{}</xmax><xmin>10</xmin><ymax>30</ymax><ymin>10</ymin></bndbox></object></a>"


def test_boxes_and_sizes_of_photographs(tmp_path, capsys):
    for part in ("JPEGImages", "ImageSplits", "XMLAnnotations"):
        (tmp_path / part).mkdir()
    for name, size in (("riding_a_horse", (100, 40)), ("smoking", (40, 80))):
        for split in ("train", "test"):
            (tmp_path / "ImageSplits" / f"{name}_{split}.txt").write_text(f"{name}_1.jpg\r\n")
        Image.new("RGB", size).save(tmp_path / "JPEGImages" / f"{name}_1.jpg")
        (tmp_path / "XMLAnnotations" / f"{name}_1.xml").write_text(BOX.format(size[0] // 2))
    experiment = Experiment(dataset="stanford40", data_root=str(tmp_path))
    photographs = pictures.photographs(experiment)
    fig = pictures.person_boxes(photographs, columns=2, rows=1)
    assert title(fig) == "The person's box covers 6 to 20 % of these 2 photographs"
    box = fig.axes[0].patches[0]
    assert (*box.get_xy(), box.get_width(), box.get_height()) == (10, 10, 40, 20)
    assert fig.axes[1].get_xlabel() == "6 % of 40 × 80" and crowded(fig) == []
    sizes = pictures.image_sizes(image_set(n=2), photographs)
    assert title(sizes).startswith("50 % of photographs are wider") and "70 × 60 pixels" in title(sizes)
    assert pictures.photographs(Experiment()) is None
    assert pictures.person_boxes(None) is None and "no boxes" in capsys.readouterr().out
