"""kdnb.sources: the hash of a definition changes exactly when what it computes may change."""

import importlib.util

import pytest

from kdnb import Loss
from kdnb.losses import LOSSES
from kdnb.models.base import FAMILIES
from kdnb.runs import code
from kdnb.sources import code_hash, unwrap

TEXT = '''
import torch

SCALE = 2.0

def distance(a, b):
    return SCALE * (a - b)

def unused():
    pass

class Base:
    def base(self):
        return 1

class Mine(Base):
    """A docstring."""

    def __init__(self, *, T: float = 4.0):
        self.T = T

    def forward(self, a, b):
        return distance(a, b)
'''


@pytest.fixture
def hash_of(tmp_path):
    """A function that returns the hash of `Mine` in a file with a text."""
    count = 0

    def function(text):
        nonlocal count
        count += 1
        path = tmp_path / f"file{count}.py"
        path.write_text(text)
        spec = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return code_hash(module.Mine)

    return function


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"""A docstring."""', '"""Another docstring."""'),
        ("        self.T = T\n", "        # A comment.\n        self.T = (T)\n"),
        ("def unused():\n    pass", "def unused():\n    return 3"),
        ("(self, a, b)", "(\n        self,\n        a,\n        b,\n    )"),
    ],
)
def test_what_computes_nothing_does_not_count(hash_of, old, new):
    assert old in TEXT
    assert hash_of(TEXT) == hash_of(TEXT.replace(old, new)) != ""


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("T: float = 4.0", "T: float = 2.0"),
        ("return distance(a, b)", "return distance(b, a)"),
        ("(a - b)", "(a + b)"),  # a function of the same file
        ("SCALE = 2.0", "SCALE = 3.0"),  # a constant that the function uses
        ("return 1", "return 2"),  # in the base class
    ],
)
def test_a_change_counts_also_in_what_the_definition_uses(hash_of, old, new):
    assert old in TEXT
    assert hash_of(TEXT) != hash_of(TEXT.replace(old, new))


def test_what_comes_with_kdnb_is_listed_in_code_versions():
    from kdnb.data import DATASETS

    used = {unwrap(loss): Loss for loss in LOSSES.values()}
    used |= {unwrap(family.build): object for family in FAMILIES.values()}
    used |= {unwrap(dataset.load): object for dataset in DATASETS.values()}
    shipped = {each: base for each, base in used.items() if each.__module__.startswith("kdnb.")}
    rows = {
        f"{each.__module__.removeprefix('kdnb.')}.{each.__qualname__}": code_hash(each, base)
        for each, base in shipped.items()
    }
    missing = [f"{n},{h}" for n, h in rows.items() if code.versions().get(h) != n]
    assert not missing, (
        "add these lines to kdnb/runs/code_versions.csv; if one computes something else than the "
        f"line of that name, first add a date to the name of the old one: {missing}"
    )


def test_hashes_of_one_version_count_as_the_same(monkeypatch):
    monkeypatch.setattr(code, "versions", lambda: {"a": "losses.kd.KD", "b": "losses.kd.KD"})
    assert code.changed({"loss kd": "a"}, {"loss kd": "b"}) == {}
    assert code.changed({"loss kd": "c"}, {"loss kd": "b"}) == {"loss kd": ("c", "b")}
