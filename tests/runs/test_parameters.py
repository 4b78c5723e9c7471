"""Parameters as papermill, YAML and shells hand them over, and those that no machine can serve."""

import os
import subprocess
import sys

import pytest
from helpers import quiet

from kdnb import InputError, Run, train
from kdnb.runs.grid import parse_pairs
from kdnb.runs.parameters import parse_value


@pytest.mark.parametrize(
    "name", ["student", "teacher", "device", "precision", "compile", "data_root", "outputs", "lr"]
)
def test_none_is_the_default_where_it_is_no_value(name):
    assert Run(method="kd", **{name: None}) == Run(method="kd")
    assert getattr(Run(**{name: None}), name) == getattr(Run(), name)


@pytest.mark.parametrize(
    ("name", "given", "meant"),
    [
        ("lr", "1e-3", 0.001),
        ("compile", True, "on"),
        ("compile", False, "off"),
        ("data_on_device", True, "yes"),
        ("data_on_device", False, "no"),
        ("teacher_cache", False, "off"),
    ],
)
def test_the_words_of_yaml_are_understood(monkeypatch, name, given, meant):
    assert getattr(Run(method="none", **{name: given}), name) == meant


@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        ({"device": "auto:0"}, "device 'auto:0' is not on this machine"),
        ({"device": "cuda:²"}, "device 'cuda:²' is not on this machine"),
        ({"lr": -(10**400)}, "it must be a finite number"),
        ({"lr": "٣"}, "lr is '٣': it must be a finite number"),
        ({"lr": "1E-400"}, "lr is '1E-400': it must be a finite number (0, or of at least 5e-324)"),
        ({"seed": 16**5000}, "seed is a number of thousands of digits"),
        ({"image_size": 100_000}, "image_size is 100000: it must be 10,000 or less"),
        ({"threads": 2**40}, "it must be 1,024 or less"),
        ({"outputs": "a\0b"}, "without a zero byte"),
        ({"data_root": "~no-such-user/data"}, "there is no home folder for '~no-such-user'"),
        ({"data_root": "a" * 256}, "File name too long"),
        ({"teacher_weights": "/proc/self/mem"}, "/proc/self/mem cannot be read"),
        ({"student": "wrn_10_999999999999"}, "unknown model 'wrn_10_999999999999'"),
        ({"student": "wrn_10_1000"}, "parameters: at most"),
        ({"student": "wrn_1٠_1"}, "unknown model"),
        ({"method": "ce + kd(T=1e300)"}, "T of kd is '1e300': it must be a number above 0"),
        ({"method": "ce:٣"}, "the weight of ce is ٣: it must be a number above 0"),
        ({"method": "ce:1e-400"}, "the weight of ce is 1e-400: it must be a number above 0 (at l"),
        ({"method": "ce + crd(momentum=1e-400)"}, "and not nearer to 0 than 5e-324"),
        ({"method": "+" * 5000}, "at most 4,096 letters"),
    ],
)
def test_what_no_machine_can_serve_is_refused(parameters, sentence):
    with pytest.raises(InputError) as error:
        Run(**parameters)
    assert sentence in str(error.value) and len(str(error.value)) < 1000


@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        ({"validation": 1e-9}, "validation is 1e-09: that holds out no image"),
        ({"outputs": "a" * 256}, "File name too long"),
        ({"image_size": 9999}, "can't allocate memory"),
        ({"method": "ce + crd(dim=1000000000)"}, "can't allocate memory"),
    ],
)
def test_what_the_machine_refuses_is_a_sentence(tmp_path, parameters, sentence):
    fixed = {"method": "none", "student": "wrn_10_1", "teacher": "wrn_10_1", "epochs": 1}
    with pytest.raises(InputError, match=sentence):
        train(Run(**fixed | {"outputs": str(tmp_path)} | parameters), log=quiet)


@pytest.mark.parametrize("text", ["~" * 3000 + "1", "[1," * 1000, "9" * 5000])
def test_what_python_cannot_parse_is_text(text):
    assert parse_value(text) == text


@pytest.mark.parametrize("text", ["1e-400", "-0.1e-400", "1_0e-400", "(1e-400)"])
def test_a_number_too_near_to_zero_is_refused(text):
    """As 0 it would stand for the preset's value."""
    cell = f'dataset: str = "digits"\nlr: float = {text}\n'
    for make in (
        lambda: Run(lr=parse_value(text)),
        lambda: Run.from_notebook({"In": [cell], "lr": 0.0}),
    ):
        with pytest.raises(InputError, match="it must be a finite number"):
            make()
    assert parse_value("-0.0e-400") == 0 and parse_value("5e-324") > 0
    assert Run.from_notebook({"In": [cell], "lr": 0.5}).lr == 0.5  # set in a later cell


def test_all_pairs_may_be_asked_for_twice():
    assert parse_pairs(["all", "all"]) == parse_pairs(["all"])


def test_a_home_that_is_not_known_is_named(monkeypatch):
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # a user without a name
    with pytest.raises(InputError, match="there is no home folder for '~'"):
        Run(outputs="~/runs").folder.is_dir()


@pytest.mark.slow
def test_a_study_in_a_deleted_folder_is_refused_in_a_sentence(tmp_path):
    script = f"cd {tmp_path} && mkdir x && cd x && rmdir ../x && "
    script += f"{sys.executable} -m kdnb.study --dataset digits --dry-run --outputs here"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr
