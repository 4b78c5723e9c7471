"""Weights as people have them: prefixes, dictionaries around them, and files that hold none."""

import argparse
import collections
import datetime
import decimal
import io
import json
import math
import pickle
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save

from kdnb import InputError, create_model, load_weights
from kdnb.models import Preprocessing, fingerprint, read_metadata, read_state_dict
from kdnb.models.state_dicts import WRAPPERS

NETWORK = "wrn_10_1"


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return create_model(NETWORK, 10)


def prefixed(state, prefix):
    return {prefix + key: value for key, value in state.items()}


def saved(tmp_path, content, **how):
    torch.save(content, tmp_path / "w.pth", **how)
    return tmp_path / "w.pth"


@pytest.mark.parametrize(
    "prefix",
    [*(f"{each}." for each in sorted(WRAPPERS)), "module._orig_mod.", "model.", "a.backbone."],
)
def test_what_all_keys_have_in_front_goes(model, tmp_path, prefix):
    state = prefixed(model.state_dict(), prefix) | {"n_averaged": torch.tensor(3)}
    state[f"{prefix}conv1.total_ops"] = torch.zeros(1)
    assert fingerprint(load_weights(NETWORK, saved(tmp_path, state))) == fingerprint(model)


def test_a_part_of_a_network_may_be_wrapped(model, tmp_path):
    state = {key.replace("block1.", "block1.module."): v for key, v in model.state_dict().items()}
    assert fingerprint(load_weights(NETWORK, saved(tmp_path, state))) == fingerprint(model)


@pytest.mark.parametrize(
    "around",
    [
        lambda state: {"model_state_dict": state, "loss": torch.tensor(0.3)},
        lambda state: {"state_dict": state, "rng_state": torch.get_rng_state()},
        lambda state: {"model": {"name": NETWORK}, "best": torch.rand(10), "x": {"y": [1, state]}},
        lambda state: {"opt": argparse.Namespace(lr=0.1), "net": state, "lr": np.float64(0.1)},
        lambda state: {"optimizer": {0: {"momentum": torch.rand(200)}}, "ema": state},
    ],
)
def test_a_network_is_found_whatever_lies_around_it(model, tmp_path, around):
    path = saved(tmp_path, around(model.state_dict()))
    assert fingerprint(load_weights(NETWORK, path)) == fingerprint(model)


def test_a_dictionary_that_holds_itself_is_read_once(model, tmp_path):
    content = {"model": model.state_dict()}
    content["again"] = [content, [content]]
    assert fingerprint(load_weights(NETWORK, saved(tmp_path, content))) == fingerprint(model)


@pytest.mark.parametrize("style", ["dictionaries", "prefixes"])
@pytest.mark.parametrize("name", ["{}", "{[0]}net", "model_{[0]}", "{[0]}", "my_{}.ema"])
def test_of_two_networks_the_one_of_the_role_is_read(model, tmp_path, style, name, capsys):
    other = create_model(NETWORK, 10)
    student, teacher = name.format("student"), name.format("teacher")
    states = {student: other.state_dict(), teacher: model.state_dict()}
    if style == "prefixes":
        states = prefixed(states[student], f"{student}.") | prefixed(states[teacher], f"{teacher}.")
    path = saved(tmp_path, states)
    assert fingerprint(load_weights(NETWORK, path, role="teacher")) == fingerprint(model)
    assert f"several such networks ({teacher}, {student})" in capsys.readouterr().out
    assert fingerprint(load_weights(NETWORK, path, role="student")) == fingerprint(other)


def test_of_two_networks_the_one_that_fits_is_read_without_a_word(model, tmp_path, capsys):
    wide = create_model("wrn_10_2", 10)
    path = saved(tmp_path, {"student": wide.state_dict(), "old": model.state_dict()})
    assert fingerprint(load_weights(NETWORK, path)) == fingerprint(model)
    assert not capsys.readouterr().out


@pytest.mark.parametrize("zipped", [True, False])
def test_numbers_of_numpy_1_are_data(model, tmp_path, zipped):
    content = {"model": model.state_dict(), "lr": np.float64(0.1), "accuracies": np.arange(3)}
    path = saved(tmp_path, content, _use_new_zipfile_serialization=zipped)
    if zipped:
        with zipfile.ZipFile(path) as archive:
            files = {name: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in files.items():
                archive.writestr(name, data.replace(b"numpy._core", b"numpy.core"))
    else:
        path.write_bytes(path.read_bytes().replace(b"numpy._core", b"numpy.core"))
    assert fingerprint(load_weights(NETWORK, path)) == fingerprint(model)


def tar():
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("w.pth"))
    return data.getvalue()


def zipped():
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr("w.pth", "")
    return data.getvalue()


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "it is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "a git-lfs pointer"),
        (b"\n<!DOCTYPE html><html>", "a web page"),
        (b"\xef\xbb\xbf<!-- a comment --><html>", "a web page"),
        (b"epoch,lr\n1,0.1\n", "text"),
        (("x" + "\u00f6" * 300).encode(), "text"),
        (b"{}", "a JSON file"),
        (pickle.dumps({"a": 1}), "a pickle that torch.save did not write"),
        (save({"a": torch.zeros(1)}), "its name has to end with .safetensors"),
        (bytes(5000), "damaged or of another kind"),
        (tar(), "an archive (tar)"),
        (zipped(), "an archive (zip)"),
    ],
)
def test_a_refusal_says_what_the_file_is(tmp_path, content, what):
    path = tmp_path / "w.pth"
    path.write_bytes(content)
    with pytest.raises(InputError) as error:
        load_weights(NETWORK, path)
    assert f"{path} is not a readable weights file (" in str(error.value)
    assert what in str(error.value) and "weights_only" not in str(error.value)
    assert "trusted source" not in str(error.value)


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (create_model(NETWORK, 2), "kdnb.models.wrn.WideResNet"),
        (collections.deque([1]), "collections.deque"),
        (np.array([None], dtype=object), "numpy.dtypes.ObjectDType"),
        (range(3), "range"),
    ],
)
def test_a_refusal_names_the_type_that_is_no_data(model, tmp_path, value, name):
    path = saved(tmp_path, {"model": model.state_dict(), "value": value})
    with pytest.raises(InputError, match=rf"a {name}, which is not data: .*state_dict"):
        load_weights(NETWORK, path)


@pytest.mark.parametrize(
    "value",
    [
        collections.defaultdict(list),
        datetime.datetime.now(datetime.UTC),
        np.datetime64("2024"),
        decimal.Decimal(1),
        frozenset([1]),
    ],
)
def test_plain_data_next_to_the_weights_are_let_through(model, tmp_path, value):
    path = saved(tmp_path, {"model": model.state_dict(), "value": value})
    assert fingerprint(load_weights(NETWORK, path)) == fingerprint(model)


def test_a_torch_file_under_the_other_ending_is_named(model, tmp_path):
    path = saved(tmp_path, model.state_dict()).rename(tmp_path / "w.safetensors")
    with pytest.raises(InputError, match="torch's file: its name must not end"):
        load_weights(NETWORK, path)


def test_a_flipped_bit_in_the_weights_is_found_by_their_checksum(model, tmp_path):
    path = saved(tmp_path, model.state_dict())
    content = bytearray(path.read_bytes())
    place = bytes(content).index(model.state_dict()["fc.weight"].numpy().tobytes())
    content[place + 5] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match="Bad CRC-32"):
        load_weights(NETWORK, path)


def test_a_file_without_checksums_is_read(model, tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        path = saved(tmp_path, model.state_dict())
    finally:
        torch.serialization.set_crc32_options(True)
    assert fingerprint(load_weights(NETWORK, path)) == fingerprint(model)


def test_a_classifier_without_classes_is_none(model, tmp_path):
    state = {k: v[:0] if k.startswith("fc.") else v for k, v in model.state_dict().items()}
    with pytest.raises(InputError, match="no classifier"):
        load_weights(NETWORK, saved(tmp_path, state))


def test_a_damaged_file_in_the_old_format_is_a_sentence(tmp_path):
    state = {f"layer{i}.weight": torch.randn(3, 2) for i in range(30)}
    path = saved(tmp_path, {"model": state}, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    for end in range(0, len(content), 97):
        path.write_bytes(content[:end])
        with pytest.raises(InputError):
            read_state_dict(path)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda weight: weight * torch.nan, "fc.weight is not finite"),
        (lambda weight: torch.full_like(weight, torch.inf).half(), "fc.weight is not finite"),
        (lambda weight: weight.to_sparse(), "fc.weight is a sparse tensor"),
        (lambda weight: torch.nested.nested_tensor([weight]), "fc.weight is a nested tensor"),
        (lambda weight: torch.zeros(1, 1).expand(10**9, 64), "fewer values than its shape"),
        (lambda weight: (100 * weight).to(torch.int8), "fc.weight is of torch.int8"),
    ],
)
def test_weights_that_are_none_are_refused_when_they_are_read(model, tmp_path, change, why):
    state = dict(model.state_dict())
    state["fc.weight"] = change(state["fc.weight"])
    with pytest.raises(InputError, match=why):
        load_weights(NETWORK, saved(tmp_path, state))


def test_a_negative_variance_is_refused(model, tmp_path):
    """Batch norm takes its square root."""
    state = dict(model.state_dict())
    key = next(key for key in state if key.endswith("running_var"))
    state[key] = -state[key]
    with pytest.raises(InputError, match=f"{key} is a variance and has negative values"):
        load_weights(NETWORK, saved(tmp_path, state))


@pytest.mark.parametrize(
    "told",
    [
        {"classes": 5},
        {"classes": ["a", 5]},
        {"dataset": ["<b>"]},
        {"top1": float("nan")},
        {"top1": "50"},
        {"overrides": {"lr": [1]}},
        {"overrides": ["lr"]},
        {"changes": {"lr": 1}},
        "[" * 100_000,
        [],
    ],
)
def test_metadata_of_other_types_are_left_out(model, tmp_path, told):
    text = told if isinstance(told, str) else json.dumps(told)
    path = tmp_path / "w.safetensors"
    path.write_bytes(save(model.state_dict(), {"kdnb": text}))
    assert read_metadata(path) == {}


@pytest.mark.parametrize(
    "wrong", [{"mean": [math.nan] * 3}, {"std": [0, 1, 1]}, {"image_size": math.inf}, {"crop": "x"}]
)
def test_a_preprocessing_that_cannot_be_is_none(wrong):
    metadata = {"mean": [0.5] * 3, "std": [1] * 3, "image_size": 32, "crop": 1}
    assert Preprocessing.from_metadata(metadata) and not Preprocessing.from_metadata(
        metadata | wrong
    )
