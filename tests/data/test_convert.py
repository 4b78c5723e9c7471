"""Images from arrays and from torch data sets, and the digests of data sets that have no other."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import image_set, picture
from PIL import Image
from torch.utils.data import Subset, TensorDataset

from kdnb import InputError, Run
from kdnb.data import DATASETS, Preset, from_arrays, from_datasets, register
from kdnb.data.convert import statistics

PRESET = Preset(student="wrn_10_1", teacher="wrn_16_1", image_size=8, epochs=1, batch_size=2, lr=1)
GENERATOR = torch.Generator().manual_seed(0)
PIXELS = torch.randint(256, (5, 3, 8, 8), dtype=torch.uint8, generator=GENERATOR)
LABELS = [0, 1, 2, -1, 0]

LAYOUTS = {
    "channels first": PIXELS,
    "channels last": PIXELS.permute(0, 2, 3, 1).numpy(),
    "floats": PIXELS.float() / 255,
    "half": (PIXELS.double() / 255).numpy(),
}


@pytest.fixture(autouse=True)
def alone(cache_folder):
    pass


class Pairs:
    """A torch data set of (image, label) without anything else."""

    def __init__(self, images, labels=LABELS):
        self.images = images
        self.labels = labels

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index], self.labels[index]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_arrays_of_any_layout_are_the_same_images(layout):
    train, test = from_arrays((LAYOUTS[layout], LABELS), (LAYOUTS[layout][:2], LABELS[:2]))
    assert torch.equal(train.images, PIXELS) and train.labels.tolist() == LABELS
    assert train.classes == test.classes == ("0", "1", "2") and train.unlabelled == 1
    values = PIXELS.double() / 255
    assert train.mean == test.mean == pytest.approx(values.mean((0, 2, 3)).tolist())
    assert test.std == pytest.approx(values.std((0, 2, 3), correction=0).tolist())


@pytest.mark.parametrize("shape", [(5, 8, 8), (5, 1, 8, 8), (5, 8, 8, 1)])
def test_grey_arrays_are_grey_in_all_channels(shape):
    train, _ = from_arrays((PIXELS[:, 0].reshape(shape), LABELS), (PIXELS, LABELS))
    assert all(torch.equal(train.images[:, c], PIXELS[:, 0]) for c in range(3))


def test_given_names_and_statistics_are_taken():
    half = (0.5,) * 3
    splits = from_arrays((PIXELS, LABELS), (PIXELS, LABELS), "abc", mean=half, std=half)
    assert all((s.classes, s.mean, s.std) == (("a", "b", "c"), half, half) for s in splits)


@pytest.mark.parametrize(
    ("pixels", "labels", "message"),
    [
        (PIXELS[..., :7], LABELS, r"shape \(5, 3, 8, 7\)"),
        (PIXELS[:, :2], LABELS, "with 1 or 3 channels"),
        (PIXELS.long(), LABELS, "type int64: it has to be uint8"),
        (PIXELS.float(), LABELS, "floats have to be between 0 and 1"),
        (PIXELS.float() * float("nan"), LABELS, "floats have to be between 0 and 1"),
        (PIXELS, LABELS[:4], "labels do not fit 5 images"),
        (PIXELS, [0, 1, 2, 3, 0], "with 3 classes they have to be from 0 to 2, or -1"),
        (PIXELS, [0, 1, 2, -2, 0], "labels are from -2 to 2"),
    ],
)
def test_other_arrays_are_refused(pixels, labels, message):
    with pytest.raises(InputError, match=message):
        from_arrays((pixels, labels), (PIXELS, LABELS), classes="abc")


def test_statistics_do_not_depend_on_how_the_images_are_counted(monkeypatch):
    before = statistics(PIXELS)
    monkeypatch.setattr("kdnb.data.convert.CHUNK", 2)
    assert statistics(PIXELS) == before


PILS = [Image.fromarray(each) for each in LAYOUTS["channels last"]]


@pytest.mark.parametrize("images", [PIXELS, PILS, LAYOUTS["channels last"], LAYOUTS["floats"]])
def test_a_torch_data_set_of_one_size_becomes_the_same_arrays(images):
    train, test = from_datasets(Pairs(images), Subset(Pairs(images), [2, 1]), "abc")
    assert torch.equal(train.images, PIXELS) and torch.equal(test.images, PIXELS[[2, 1]])
    assert test.labels.tolist() == [2, 1] and train.aspect is None


def test_torchs_own_data_sets_work():
    dataset = TensorDataset(PIXELS, torch.tensor(LABELS))
    assert torch.equal(from_datasets(dataset, dataset)[0].images, PIXELS)


def test_images_of_several_sizes_are_photographs():
    sizes = [(20, 10), (8, 8), (10, 30)]
    pictures = [picture(*size, seed) for seed, size in enumerate(sizes)]
    pictures[1] = np.asarray(pictures[1])  # not only PIL's images
    dataset = Pairs(pictures, [1, 0, -1])
    dataset.classes = [("crane", "bird"), "dog"]
    how = {"size": 16, "cache": "mine-1"}
    train, test = from_datasets(dataset, Subset(dataset, [0]), **how)
    assert train.size == 16 and train.labels.tolist() == [1, 0, -1] and train.files is None
    assert train.aspect.tolist() == pytest.approx([2, 1, 1 / 3]) and test.labels.tolist() == [1]
    assert train.classes == ("crane", "dog") and train.mean == (0.485, 0.456, 0.406)
    expected = pictures[0].resize((16, 16), Image.Resampling.BILINEAR)
    assert np.array_equal(train.images[0].permute(1, 2, 0), np.asarray(expected))
    with pytest.raises(InputError, match="from_datasets needs their size, and as cache a name"):
        from_datasets(dataset, dataset, size=16)


def test_an_image_of_16_bits_is_refused():
    deep = Image.fromarray(np.full((8, 8), 40_000, np.uint16))
    with pytest.raises(InputError, match="an image has mode I;16: it has to have 8 bits"):
        from_datasets(Pairs([deep], [0]), Pairs([deep], [0]))


def test_a_data_set_without_a_digest_gets_one_from_its_images(monkeypatch, tmp_path):
    """Computed once in a process; none without data."""
    monkeypatch.setitem(DATASETS, "mine", None)
    calls = []
    found = {"images": image_set(8)}

    def make():
        @register("mine", PRESET)
        def load(root, size, *, skip_damaged):
            calls.append((root, size))
            if "images" not in found:
                raise InputError("there is nothing")
            return found["images"], found["images"]

        return DATASETS["mine"].digest(tmp_path)

    first = make()
    assert len(first) == 8 and int(first, 16) and first == make()
    names = {Run(dataset="mine", data_root=str(tmp_path)).name for _ in range(3)}
    assert len(names) == 1 and calls == [(tmp_path, 8)] * 2
    images = found["images"]
    for change in (
        image_set(8, seed=1),
        replace(images, labels=images.labels.roll(1)),
        replace(images, classes=tuple("abcd")),
    ):
        found["images"] = change
        assert make() != first
    del found["images"]
    assert make() == "" and DATASETS["mine"].digest(tmp_path) == ""


def test_the_shipped_sets_need_no_digest(tmp_path):
    assert {DATASETS[name].digest(tmp_path) for name in ("digits", "cifar100")} == {""}
