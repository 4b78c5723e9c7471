import pickle

import pytest
import torch
from safetensors.torch import save_file

from kdnb.errors import InputError
from kdnb.models import RESNETS, Output, create_model, load_weights, model_name, parameter_count

ALL = ["wrn_10_1", "wrn_16_2", "wrn_40_2", *RESNETS]


@pytest.mark.parametrize("name", ALL)
def test_every_model_returns_logits_and_feats(name):
    model = create_model(name, 7).eval()
    output = model(torch.randn(2, 3, 64, 64))
    assert isinstance(output, Output)
    assert output.logits.shape == (2, 7)
    assert len(output.feats) == len(model.block_names)
    assert all(feat.shape[0] == 2 and feat.ndim == 4 and feat.min() >= 0 for feat in output.feats)  # after the ReLU
    sizes = [feat.shape[2] for feat in output.feats]
    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize(
    ("name", "classes", "count", "taps"),
    [
        ("wrn_40_2", 100, 2_255_156, 18),
        ("wrn_16_2", 100, 703_284, 6),
        ("wrn_16_2", 40, 695_544, 6),
        ("resnet18", 40, 11_197_032, 8),
        ("resnet34", 40, 21_305_192, 16),
    ],
)
def test_parameter_counts_and_taps(name, classes, count, taps):
    model = create_model(name, classes)
    assert parameter_count(model) == count
    assert len(model.block_names) == taps


def test_wide_resnet_first_tap_is_the_second_blocks_entry():
    model = create_model("wrn_16_1", 3).eval()
    images = torch.randn(2, 3, 16, 16)
    x, _ = model.block1.layer[0](model.conv1(images))
    expected = torch.relu(model.block1.layer[1].bn1(x))
    assert torch.equal(model(images).feats[0], expected)


@pytest.mark.parametrize("name", ALL)
def test_batch_norms_run_once_per_forward(name):
    model = create_model(name, 3)
    model(torch.randn(2, 3, 64, 64))
    counts = {int(v) for k, v in model.state_dict().items() if k.endswith("num_batches_tracked")}
    assert counts == {1}


@pytest.mark.parametrize(
    ("spelling", "name"),
    [("wrn40x2", "wrn_40_2"), ("WRN-16-2", "wrn_16_2"), ("resnet34im", "resnet34"), ("wrn_40_2", "wrn_40_2")],
)
def test_spellings(spelling, name):
    assert model_name(spelling) == name


@pytest.mark.parametrize("name", ["vgg", "wrn_17_2", "resnet35", ""])
def test_unknown_models_are_refused(name):
    with pytest.raises(InputError):
        create_model(name, 10)


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"model": s, "epoch": 3}, lambda s: {"state_dict": s}])
def test_weights_come_back_from_any_wrapping(tmp_path, wrap):
    model = create_model("wrn_16_1", 6)
    torch.save(wrap({f"module.{k}": v for k, v in model.state_dict().items()}), tmp_path / "w.pth")
    loaded = load_weights("wrn16x1", tmp_path / "w.pth")
    assert all(torch.equal(v, loaded.state_dict()[k]) for k, v in model.state_dict().items())


def test_half_precision_safetensors_load_as_float32(tmp_path):
    model = create_model("wrn_16_1", 6)
    state = {k: v.half() if v.is_floating_point() else v for k, v in model.state_dict().items()}
    save_file(state, tmp_path / "w.safetensors")
    loaded = load_weights("wrn_16_1", tmp_path / "w.safetensors")
    assert loaded.fc.weight.dtype == torch.float32
    assert torch.allclose(loaded.fc.weight, model.fc.weight, atol=1e-3)


def test_weights_of_another_network_are_named(tmp_path):
    save_file(create_model("wrn_16_2", 6).state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(InputError, match="does not fit wrn_16_1: block1"):
        load_weights("wrn_16_1", tmp_path / "w.safetensors")
    with pytest.raises(InputError, match=r"does not fit resnet18"):
        load_weights("resnet18", tmp_path / "w.safetensors")


class Bomb:
    def __reduce__(self):
        return (exec, ("raise SystemExit('code ran')",))


@pytest.mark.parametrize("name", ["bomb.pth", "bomb.safetensors"])
def test_a_checkpoint_never_runs_code(tmp_path, name):
    (tmp_path / name).write_bytes(pickle.dumps({"model": Bomb()}))
    with pytest.raises(InputError, match="not a readable weights file"):
        load_weights("wrn_16_1", tmp_path / name)
    torch.save({"model": Bomb()}, tmp_path / "zip.pth")
    with pytest.raises(InputError, match="not a readable weights file"):
        load_weights("wrn_16_1", tmp_path / "zip.pth")


@pytest.mark.parametrize("content", [b"", b"not weights", b"PK\x03\x04 torn"])
def test_damaged_weights_files(tmp_path, content):
    for name in ("w.pth", "w.safetensors"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match="not a readable weights file"):
            load_weights("wrn_16_1", tmp_path / name)
    with pytest.raises(InputError, match="no weights file"):
        load_weights("wrn_16_1", tmp_path / "absent.pth")
