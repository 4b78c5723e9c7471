"""Every method and preset against the published values in kdnb/losses/published_weights.csv."""

import csv
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from conftest import picture
from published_losses import skip_unless_published

import kdnb.losses
from kdnb import DATASETS, LOSSES, METHODS, load_data
from kdnb.losses.mix import canonical, options_of, parse

FILE = Path(kdnb.losses.__file__).with_name("published_weights.csv")


def read_rows(kind):
    """{name: {parameter: value}}, both as text, of the rows of one kind."""
    values = {}
    with open(FILE, encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row["kind"] == kind:
                assert row["parameter"] not in values.get(row["name"], {}), "a row twice"
                values.setdefault(row["name"], {})[row["parameter"]] = row["value"]
    return values


PUBLISHED_METHODS, PUBLISHED_PRESETS = read_rows("method"), read_rows("preset")


def numbers(text):
    return [float(part) for part in text.split()]


def is_value(text, value):
    """Whether the file's text is this value of the code: text, True or False, or a number."""
    if isinstance(value, (str, bool)):
        return text == str(value)
    return float(text) == value


def test_every_row_has_a_kind_and_a_source():
    with open(FILE, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["kind"] for row in rows} == {"method", "preset"}
    assert all(all(row.values()) and len(row) == 5 for row in rows)


@pytest.mark.parametrize("name", sorted({*METHODS, *PUBLISHED_METHODS}))
def test_a_method_has_its_published_weights_and_options(name):
    """The weights of its mix, the default of each option, and the epochs of its warm-up."""
    if name not in PUBLISHED_METHODS:
        skip_unless_published(name)
    published = dict(PUBLISHED_METHODS[name])
    assert canonical(parse(METHODS[name])) == canonical(parse(published.pop("mix")))
    options = options_of(name) if name in LOSSES else {}
    if name in LOSSES and LOSSES[name].warmup:
        options["warmup"] = LOSSES[name].warmup
    assert published.keys() == options.keys()
    for option, value in options.items():
        assert is_value(published[option], value), option


def flat(preset):
    """{parameter: value} of a Preset, as the file names them: lrs.NETWORK, for_teacher.FIELD."""
    values = {}
    for name, value in asdict(preset).items():
        if isinstance(value, dict):
            values |= {f"{name}.{key}": part for key, part in value.items()}
        else:
            values[name] = value
    return values


@pytest.mark.parametrize("name", PUBLISHED_PRESETS)
def test_a_preset_has_its_published_values(name):
    published = dict(PUBLISHED_PRESETS[name])
    preset = DATASETS[name].preset
    if same_as := published.get("same as"):
        assert preset == DATASETS[same_as].preset and len(published) == 1
        return
    values = flat(preset)
    for statistic in ("mean", "std"):  # of its images; see below
        published.pop(statistic, None)
    assert published.keys() == values.keys()
    for field, value in values.items():
        if field == "milestones" and value:
            assert [share * preset.epochs for share in value] == numbers(published[field])
        elif field == "milestones":
            assert published[field] == "none"
        else:
            assert is_value(published[field], value), field


# Those of torchvision have the preset of another: see tests/data/test_torchvision_sets.py.
@pytest.mark.parametrize("name", [name for name in DATASETS if not name.startswith("torch/")])
def test_a_data_set_has_published_values(name):
    if name not in PUBLISHED_PRESETS:
        pytest.skip(f"no published values for {name!r}: see docs/own-data-networks-losses.md")


class FakeCIFAR100:
    """torchvision's class without its files: two images of two classes."""

    base_folder = "cifar-100-python"
    classes = ("fox", "owl")
    data = torch.zeros(2, 32, 32, 3, dtype=torch.uint8).numpy()
    targets = (0, 1)

    def __init__(self, root, train):
        pass


@pytest.fixture
def photographs(tmp_path, cache_folder):
    """A folder of two photographs."""
    for name in ("train/cat", "valid/cat"):
        (tmp_path / name).mkdir(parents=True)
        picture(20, 20, 0).save(tmp_path / name / "a.png")
    return tmp_path


def assert_published_statistics(images, published):
    assert list(images.mean) == numbers(published["mean"])
    assert list(images.std) == numbers(published["std"])


def test_cifar100_is_normalised_by_the_published_statistics(monkeypatch, tmp_path):
    """In the order red, green, blue."""
    monkeypatch.setattr("kdnb.data.cifar100.CIFAR100", FakeCIFAR100)
    for images in load_data("cifar100", tmp_path):
        assert_published_statistics(images, PUBLISHED_PRESETS["cifar100"])


def test_photographs_are_normalised_by_the_published_statistics(photographs):
    """In the order red, green, blue. Stanford40 and one's own folders are decoded alike."""
    for images in load_data("folder", photographs, 16):
        assert_published_statistics(images, PUBLISHED_PRESETS["stanford40"])
