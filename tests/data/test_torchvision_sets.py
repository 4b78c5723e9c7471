"""torchvision's data sets by name: each from a small copy in the official files and folders."""

import pickle

import pytest
import torch
from torchvision import datasets

from kdnb import InputError, Run, load_data
from kdnb.data import DATASETS
from kdnb.data.torchvision_sets import SOURCES

layouts = pytest.importorskip("official_layouts")  # it needs h5py
SETS = {name.lower(): source for name, source in SOURCES.items()}


@pytest.fixture(autouse=True)
def alone(cache_folder):
    pass


def labels_by_brightness(images):
    return (images.images.float().mean((1, 2, 3)) > 120).long()


@pytest.mark.parametrize("name", SETS)
def test_a_set_is_read_in_its_official_format(name, tmp_path, monkeypatch, capsys):
    """With every image under its own label, in the splits of the authors or in 80 and 20 %."""
    getattr(layouts, name.partition("-")[0])(tmp_path, monkeypatch)
    source, preset = SETS[name], DATASETS[f"torch/{name}"].preset
    train, test = load_data(f"torch/{name}", tmp_path, preset.image_size if source.size else 8)
    if source.splits[1]:
        has_label = train.labels >= 0
        assert sorted(train.labels[has_label].tolist()) == sorted(layouts.TRAIN)
        assert sorted(test.labels.tolist()) == sorted(layouts.TEST)
        assert train.unlabelled == 2 * (name == "stl10-unlabelled")
    else:
        assert "no official split: 20% of each class, drawn with seed 0" in capsys.readouterr().out
        assert train.labels.bincount().tolist() == [4, 4]
        assert test.labels.bincount().tolist() == [1, 1]
    for images in (train, test):
        is_right = labels_by_brightness(images) == images.labels
        assert (is_right | (images.labels < 0)).all()
        assert images.size == (source.size or 8)
        assert (images.aspect is None) == (images.files is None) == bool(source.size)
    assert train.classes == test.classes


@pytest.mark.parametrize("name", SETS)
def test_a_missing_set_is_named_with_what_to_do(name, tmp_path, monkeypatch):
    """The sentence that one gets without a network."""
    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)
    with pytest.raises(
        InputError, match=rf"^torch/{name} is not complete in .*by hand, or run aga"
    ) as error:
        load_data(f"torch/{name}", tmp_path)
    assert "\n" not in str(error.value)
    make = error.value.args[0].partition("torchvision.datasets.")[2].split()[0]
    assert make.lower() == name.partition("-")[0] and hasattr(datasets, make)


def refuse(*_):
    raise OSError("no network")


def test_names_are_found_in_any_case():
    run = Run(dataset="torch/Food101")
    assert run.dataset == "torch/food101" and run == Run(dataset="torch/food101")
    with pytest.raises(
        InputError, match=r"unknown dataset 'torch/cifar11': choose .*torch/cifar10,"
    ):
        Run(dataset="torch/cifar11")


def test_photographs_are_told_apart_and_small_sets_are_the_official_ones(tmp_path, monkeypatch):
    layouts.food101(tmp_path, monkeypatch)
    other = tmp_path / "other"
    layouts.food101(other, monkeypatch)
    layouts.photograph(other / "food-101/images/waffles/test0.jpg", 1, size=(90, 90))
    digest = DATASETS["torch/food101"].digest
    assert len({digest(tmp_path), digest(other)}) == 2 and len(digest(other)) == 8
    assert digest(tmp_path / "nothing") == DATASETS["torch/mnist"].digest(tmp_path) == ""


def test_a_strangers_pickle_is_not_opened(tmp_path, monkeypatch):
    layouts.cifar10(tmp_path, monkeypatch)
    load_data("torch/cifar10", tmp_path)
    opened = []
    monkeypatch.setattr(pickle, "load", lambda *_, **__: opened.append(1))
    monkeypatch.setattr(datasets.CIFAR10, "url", "http://127.0.0.1:9/cifar-10-python.tar.gz")
    for name in ("data_batch_2", "batches.meta"):
        with open(tmp_path / "cifar-10-batches-py" / name, "ab") as file:
            file.write(b".")
        with pytest.raises(InputError, match="torch/cifar10 is not complete"):
            load_data("torch/cifar10", tmp_path)
    assert not opened


def test_presets_follow_the_size_of_the_images():
    presets = {name: DATASETS[f"torch/{name}"].preset for name in SETS}
    assert presets["cifar10"] == DATASETS["cifar100"].preset
    assert presets["food101"] == DATASETS["stanford40"].preset
    sizes = {name: (p.image_size, p.padding, p.flip) for name, p in presets.items()}
    assert sizes["mnist"] == (28, 3, False) and sizes["stl10"] == (96, 12, True)
    assert sizes["gtsrb"] == (224, 0, False)
