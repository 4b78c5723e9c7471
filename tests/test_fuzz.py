"""Odd parameters, mixes and paths: each is right, or refused in a sentence, and never a raw error.

`pytest tests/test_fuzz.py --hypothesis-profile long` tries many more.
"""

import argparse

import pytest
from hypothesis import given
from hypothesis import strategies as st

import kdnb.__main__
from kdnb import InputError, Run, load_data
from kdnb.losses import LOSSES
from kdnb.losses.mix import canonical, options_of, parse
from kdnb.models import load_weights, model_name
from kdnb.runs.parameters import parse_value
from kdnb.study.__main__ import parse_seeds

NUMBERS = ["0", "-1", "1e-3", "1e300", "-1e400", "nan", "²", "٣", "1_0", "9" * 400, "9" * 5000]
PATHS = ["~nobody-here", "~", "a" * 300, "a/" * 3000, "a\0b", "\udcff", "/proc/self/mem", "/dev"]
WORDS = ["", "None", "none", "auto:0", "cuda:²", "[1,", "~" * 3000 + "1", "[" * 3000, "wrn_10_1"]
odd_text = st.sampled_from([*NUMBERS, *PATHS, *WORDS]) | st.text(max_size=30)
odd_value = (
    odd_text
    | odd_text.map(parse_value)
    | st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([10**400, -(10**400), 16**5000, 2**63])
    | st.floats()
    | st.lists(st.integers(), max_size=2)
)
name = st.sampled_from([*Run.parameters()])
number = st.sampled_from(NUMBERS) | st.floats().map(str) | st.integers().map(str)
loss = st.sampled_from([*LOSSES])


@st.composite
def mix(draw):
    """A mix that is nearly right: losses and their options, with odd weights and values."""
    terms = []
    for each in draw(st.lists(loss, min_size=1, max_size=3)):
        options = draw(st.lists(st.sampled_from([*options_of(each), "x"]), max_size=2))
        values = ",".join(f"{option}={draw(number)}" for option in options)
        terms.append(f"{each}:{draw(number)}" + (f"({values})" if options else ""))
    return "+".join(terms)


@pytest.fixture(scope="module", autouse=True)
def no_home_of_others(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("here"))
        yield


def allowed(call, *errors):
    """Calls; what is refused is refused in a sentence of one line that can be printed."""
    try:
        return call()
    except (InputError, *errors) as error:
        sentence = str(error)
        assert sentence and len(sentence) < 6000
        sentence.encode()
        return None


@given(st.dictionaries(name, odd_value, min_size=1, max_size=2))
def test_a_run_is_described_or_refused(parameters):
    run = allowed(lambda: Run(**{"method": "none"} | parameters))
    if run is not None:
        assert Run(**{field: getattr(run, field) for field in Run.parameters()}).name == run.name


@given(mix() | odd_text)
def test_a_mix_is_read_or_refused(text):
    terms = allowed(lambda: parse(text))
    if terms is not None:
        assert parse(canonical(terms)) == terms


@given(odd_text | st.builds("wrn_{}_{}".format, number, number))
def test_a_network_is_named_or_refused(text):
    allowed(lambda: model_name(text))


@given(odd_text)
def test_a_path_is_read_or_refused(text):
    allowed(lambda: load_weights("wrn_10_1", text))
    allowed(lambda: load_data("folder", text, 8))
    allowed(lambda: Run.open(text))


@given(number | st.builds("{}-{}".format, number, number) | odd_text)
def test_seeds_are_read_or_refused(text):
    seeds = allowed(lambda: parse_seeds(text), argparse.ArgumentTypeError)
    assert seeds is None or len(seeds) <= 10_000


@given(name, odd_text)
def test_a_command_ends_with_a_status(tmp_path_factory, name, text):
    if name in ("outputs", "rerun") or text.startswith("-"):
        return  # it would write there; argparse takes a value for an option
    with pytest.raises(SystemExit) as stopped:  # the last parameter is wrong in any case
        kdnb.__main__.main(["-p", name, text, "-p", "precision", "none"])
    assert stopped.value.code == 2
