"""Explorers redraw their figure when a control changes, and also display a static image."""

import base64
import io
from datetime import UTC, datetime

import IPython.display
import numpy as np
import pytest
from PIL import Image
from toy import blocks, random_gallery, random_links, survey_of

from kdnb.analysis import links_by_class
from kdnb.plots import explorers

TEST_LINKS = random_links(40, 16, 8)
HISTORY = random_links(5, 16, 8, seed=1)


@pytest.fixture
def links():
    survey = survey_of(TEST_LINKS, np.arange(40) % 4, ["a_class", "b", "c", "d"])
    return explorers.link_explorer(HISTORY, links_by_class(survey), blocks(4, 4), blocks(4, 2))


def test_the_epoch_slider_shows_the_links_of_an_epoch(links):
    last = links.image.value
    mean, difference, _, title, values, _ = links.animated
    links.controls["epoch"].value = 2
    assert links.image.value != last
    assert mean.get_clim() == (0, 1)
    np.testing.assert_array_equal(mean.get_array(), HISTORY[1])
    np.testing.assert_array_equal(difference.get_array(), HISTORY[1] - HISTORY[0])
    percent = 50 * np.abs(HISTORY[1] - HISTORY[0]).sum(-1).mean()
    assert title.get_text() == f"minus epoch 1:\n{percent:.1f} % of attention differs"
    numbers = [float(text or 0) for text in values.texts]
    assert numbers == pytest.approx(HISTORY[1].ravel(), abs=0.0051)
    links.controls["epoch"].value = 5
    assert links.image.value == last  # nothing of the other epoch is left in the image


def test_a_class_shows_its_links(links):
    images_of, epoch = links.controls["images_of"], links.controls["epoch"]
    mean, difference, *_ = links.animated
    assert [label for label, _ in images_of.options[2:]] == ["a class", "b", "c", "d"]
    by_epoch = links.image.value
    images_of.value = 1
    of_class = TEST_LINKS[1::4].mean(0)
    np.testing.assert_allclose(mean.get_array(), of_class, rtol=1e-5)
    np.testing.assert_allclose(difference.get_array(), of_class - TEST_LINKS.mean(0), atol=1e-6)
    assert epoch.disabled and links.image.value != by_epoch
    images_of.value = explorers.BY_EPOCH
    assert not epoch.disabled and links.image.value == by_epoch


def test_all_test_images_have_no_difference_from_their_mean(links):
    mean, difference, *_ = links.animated
    links.controls["images_of"].value = explorers.ALL_TEST
    np.testing.assert_allclose(mean.get_array(), TEST_LINKS.mean(0), rtol=1e-5)
    assert not difference.get_array().any()


def test_each_control_of_the_map_explorer_changes_the_image_and_its_titles():
    maps = explorers.map_explorer(random_gallery(), (1, 1))
    for name, control in maps.controls.items():
        before = maps.image.value
        control.value = 3 if name == "image" else 0
        assert maps.image.value != before
        control.value = 1
        assert maps.image.value == before
    maps.controls["t"].value = 4
    image, teacher, *students = [text.get_text() for text in maps.animated[4:]]
    assert image == "writing on a book"
    assert teacher.startswith("teacher 3.1\n256×14×14\nscale 1–")
    for role, text in zip(("baseline", "distilled"), students, strict=True):
        assert text.startswith(f"{role} 2.1\n128×28×28\nscale 1–")
        assert text.endswith("\ndistance 0.41")
    assert "running 60.0%" not in maps.children[-1].value
    maps.controls["image"].value = 3
    assert "running 60.0%" in maps.children[-1].value


def test_an_uploaded_photograph_joins_the_images_and_an_invalid_one_shows_an_error():
    def make_gallery(file, name):
        if file.read() == b"text":
            raise ValueError(f"{name} is no image")
        return random_gallery(1)._replace(names=[name])

    maps = explorers.map_explorer(random_gallery(), (1, 1), make_gallery)
    upload, message = maps.children[0].children[-2:]
    before = maps.image.value
    file = {"name": "dog.jpg", "type": "", "size": 1, "last_modified": datetime.now(UTC)}

    upload.value = [{**file, "content": b"text"}]
    assert message.value == "dog.jpg is no image"
    assert maps.image.value == before

    upload.value = [{**file, "content": b"photograph"}]
    assert message.value == ""
    assert maps.image.value != before
    assert maps.controls["image"].value == maps.controls["image"].max == 4
    assert maps.animated[4].get_text() == "dog.jpg"


@pytest.mark.parametrize("is_interactive", [True, False])
def test_a_static_image_is_always_displayed(links, monkeypatch, is_interactive):
    outputs = []

    def record(output, metadata=None, raw=False):
        outputs.append(output)

    monkeypatch.setattr(explorers, "is_interactive", lambda: is_interactive)
    for module in (explorers, IPython.display):
        monkeypatch.setattr(module, "display", record)
    links._ipython_display_()
    bundles = [output for output in outputs if isinstance(output, dict)]
    widgets = ["application/vnd.jupyter.widget-view+json" in bundle for bundle in bundles]
    assert widgets == ([True, False] if is_interactive else [False])
    # The third output holds the CSS that shows either the widget or the image.
    assert len(outputs) == (3 if is_interactive else 1)
    static = Image.open(io.BytesIO(base64.b64decode(bundles[-1]["image/png"])))
    jpeg = Image.open(io.BytesIO(links.image.value))
    assert static.size == jpeg.size and static.width == 1350
    alt = "Static image of an interactive figure: mean attention, epoch 5; "
    assert f'alt="{alt}' in bundles[-1]["text/html"]
