"""Explorers: a move changes the picture, quickly, and a still picture stands in where nobody watches."""

import base64
import io

import numpy as np
import pytest
from PIL import Image
from test_plots import blocks, some_links

from kdnb import widgets
from kdnb.attention import Gallery

VIEW = "application/vnd.jupyter.widget-view+json"


@pytest.fixture
def links():
    test, labels = some_links(40, 16, 8), np.arange(40) % 4
    classes = ["a_class", "b", "c", "d", "absent"]
    return widgets.link_explorer(some_links(5, 16, 8), test, labels, classes, blocks(4, 4), blocks(4, 2))


@pytest.fixture
def maps():
    rng = np.random.default_rng(0)
    maps = {
        name: [rng.random((3, size, size)).astype(np.float32) for size in sizes]
        for name, sizes in (("teacher", (28, 14)), ("plain student", (28, 7)), ("distilled student", (28, 7)))
    }
    pixels = rng.integers(0, 256, (3, 112, 112, 3)).astype(np.uint8)
    names = blocks(2, 1)
    return widgets.map_explorer(Gallery(np.arange(3), ["a", "b", "c"], pixels, maps, names, names), (1, 1))


def picture(explorer):
    return np.asarray(Image.open(io.BytesIO(explorer.image.value)))


def test_the_slider_moves_through_the_epochs_and_back(links):
    last = links.image.value
    links.controls["epoch"].value = 2
    assert "Epoch 2, strongest link" in links.picture.moving[2].get_text()
    changed = np.flatnonzero((picture(links) != np.asarray(Image.open(io.BytesIO(last)))).any((0, 2)))
    assert len(changed) > 100
    links.controls["epoch"].value = 5
    assert links.image.value == last  # nothing of the epochs between is left in the picture


def test_a_class_shows_its_own_links(links):
    whose, epoch = links.controls["whose"], links.controls["epoch"]
    assert [label for label, _ in whose.options[2:]] == ["a class", "b", "c", "d"]  # those there are images of
    before = links.image.value
    whose.value = 1
    expected = some_links(40, 16, 8)[1::4].mean(0)
    np.testing.assert_allclose(links.picture.moving[0].get_array(), expected)
    np.testing.assert_allclose(links.picture.moving[1].get_array(), expected - some_links(40, 16, 8).mean(0))
    assert epoch.disabled and links.image.value != before
    whose.value = -1
    assert not epoch.disabled and links.image.value == before


@pytest.mark.parametrize("control", ["image", "t", "s"])
def test_each_control_of_the_maps_changes_the_picture(maps, control):
    before, slider = maps.image.value, maps.controls[control]
    slider.value = 3 if control == "image" else 0
    assert maps.image.value != before
    slider.value = 1
    assert maps.image.value == before


@pytest.mark.parametrize("watched", [True, False])
def test_a_still_picture_stands_in(links, monkeypatch, watched):
    """A widget where somebody watches, and always a picture of its own, which needs no kernel."""
    shown = []
    monkeypatch.setattr(widgets, "watched", lambda: watched)
    monkeypatch.setattr(widgets, "display", lambda what, raw=False: shown.append(what))
    links._ipython_display_()
    bundles = [what for what in shown if isinstance(what, dict)]
    assert [VIEW in bundle for bundle in bundles] == ([True, False] if watched else [False])
    assert base64.b64decode(bundles[-1]["image/png"]) == links.image.value and bundles[-1]["text/plain"]
    assert len(shown) == (3 if watched else 1)  # the last one tells the page which of the two to show
