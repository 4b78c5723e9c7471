"""Explorers: a move changes the picture, and a still picture stands in where nobody watches."""

import base64
import io
from datetime import UTC, datetime

import IPython.display
import numpy as np
import pytest
from PIL import Image
from test_plots import blocks, some_gallery, some_links, survey_of

from kdnb.analysis import links_by_class
from kdnb.plots import explorers

TEST, HISTORY = some_links(40, 16, 8), some_links(5, 16, 8, seed=1)


@pytest.fixture
def links():
    told = links_by_class(survey_of(TEST, np.arange(40) % 4, ["a_class", "b", "c", "d"]))
    return explorers.link_explorer(HISTORY, told, blocks(4, 4), blocks(4, 2))


def test_the_slider_moves_through_the_epochs_and_back(links):
    last, (now, change, _, title, *cells) = links.image.value, links.moving
    links.controls["epoch"].value = 2
    assert now.get_clim() == (0, 1) and links.image.value != last
    np.testing.assert_array_equal(now.get_array(), HISTORY[1])
    np.testing.assert_array_equal(change.get_array(), HISTORY[1] - HISTORY[0])
    moved = 50 * np.abs(HISTORY[1] - HISTORY[0]).sum(-1).mean()
    assert title.get_text() == f"minus epoch 1:\n{moved:.1f} % of attention differs"
    assert [float(text or 0) for text in cells[0].texts] == pytest.approx(
        HISTORY[1].ravel(), abs=0.0051
    )
    links.controls["epoch"].value = 5
    assert links.image.value == last  # nothing of the epochs between is left in the picture


def test_a_class_shows_its_own_links(links):
    whose, epoch, (now, change, *_) = links.controls["whose"], links.controls["epoch"], links.moving
    assert [label for label, _ in whose.options[2:]] == ["a class", "b", "c", "d"]
    before, whose.value = links.image.value, 1
    np.testing.assert_allclose(now.get_array(), TEST[1::4].mean(0), rtol=1e-5)
    np.testing.assert_allclose(change.get_array(), TEST[1::4].mean(0) - TEST.mean(0), atol=1e-6)
    assert epoch.disabled and links.image.value != before
    whose.value = -1
    assert not epoch.disabled and links.image.value == before


def test_each_control_of_the_maps_changes_the_picture_and_its_titles():
    maps = explorers.map_explorer(some_gallery(), (1, 1))
    for name, control in maps.controls.items():
        before, control.value = maps.image.value, 3 if name == "image" else 0
        assert maps.image.value != before
        control.value = 1
        assert maps.image.value == before
    maps.controls["t"].value = 4
    students = [f"{role} 2.1\n128×28×28\ndistance 0.41" for role in ("baseline", "distilled")]
    titles = [text.get_text() for text in maps.moving[4:]]
    assert titles == ["writing on a book", "teacher 3.1\n256×14×14", *students]


def test_an_uploaded_photograph_joins_the_images_and_a_bad_one_is_named():
    def look_at(file, name):
        if file.read() == b"text":
            raise ValueError(f"{name} is no image")
        return some_gallery(1)._replace(names=[name])

    shown = explorers.map_explorer(some_gallery(), (1, 1), look_at)
    upload, complaint = shown.children[0].children[-2:]
    before = shown.image.value
    for content in (b"text", b"photograph"):
        about = {"name": "dog.jpg", "type": "", "size": 1, "last_modified": datetime.now(UTC)}
        upload.value = [about | {"content": content}]
        assert complaint.value == ("dog.jpg is no image" if content == b"text" else "")
        assert (shown.image.value == before) == (content == b"text")
    assert shown.controls["image"].value == shown.controls["image"].max == 4
    assert shown.moving[4].get_text() == "dog.jpg"


@pytest.mark.parametrize("is_interactive", [True, False])
def test_a_still_picture_stands_in(links, monkeypatch, is_interactive):
    """A widget where somebody watches, and always a picture of its own, which needs no kernel."""
    shown = []
    monkeypatch.setattr(explorers, "is_interactive", lambda: is_interactive)
    for module in (explorers, IPython.display):
        monkeypatch.setattr(
            module, "display", lambda what, metadata=None, raw=False: shown.append(what)
        )
    links._ipython_display_()
    bundles = [what for what in shown if isinstance(what, dict)]
    widgets = ["application/vnd.jupyter.widget-view+json" in bundle for bundle in bundles]
    assert widgets == ([True, False] if is_interactive else [False])
    still = Image.open(io.BytesIO(base64.b64decode(bundles[-1]["image/png"])))
    assert still.size == Image.open(io.BytesIO(links.image.value)).size == (1350, still.height)
    assert (
        'alt="Still picture of an explorer: mean attention, epoch 5; ' in bundles[-1]["text/html"]
    )
    assert len(shown) == (
        3 if is_interactive else 1
    )  # the last one tells the page which of the two to show
