import pickle

import pytest
import torch
from safetensors.torch import save_file

from kdnb import InputError, Output, create_model, load_weights
from kdnb.models import blocks, class_count, fingerprint, model_name, parameter_count, read_metadata

ALL = ["wrn_10_1", "wrn_16_2", "wrn_40_2", "resnet18", "resnet34", "resnet50"]
ALL += ["resnet8", "resnet8x4", "cifar_resnet50", "cifar_shufflenetv1", "cifar_shufflenetv2"]


@pytest.mark.parametrize("name", ALL)
def test_every_model_returns_its_features_once_computed(name):
    model = create_model(name, 7)
    output = model(torch.randn(2, 3, 64, 64))
    counts = {int(v) for k, v in model.state_dict().items() if k.endswith("num_batches_tracked")}
    assert counts == {1}  # each batch norm was called once
    assert isinstance(output, Output) and output.logits.shape == (2, 7) and class_count(model) == 7
    assert len(output.feats) == len(model.block_names)
    assert all(
        feat.shape[0] == 2 and feat.ndim == 4 and feat.min() >= 0 for feat in output.feats
    )  # after the ReLU
    sizes = [feat.shape[2] for feat in output.feats]
    assert sizes == sorted(sizes, reverse=True)
    assert [stage.shape[2] for stage in output.stages] == sorted(set(sizes), reverse=True)
    assert torch.equal(model.get_submodule(model.classifier_name)(output.pooled), output.logits)
    found = blocks(model, 64)
    assert model.training and [block.shape for block in found] == [
        tuple(f.shape[1:]) for f in output.feats
    ]
    assert [block.name for block in found] == model.block_names and found[0].name == "1.1"


def test_networks_are_as_large_as_published_and_spelt_in_several_ways():
    counts = [
        parameter_count(create_model(*of))
        for of in (("wrn_40_2", 100), ("wrn_16_2", 40), ("resnet18", 40))
    ]
    assert counts == [2_255_156, 695_544, 11_197_032]
    spelling = [model_name(name) for name in ("wrn40x2", "WRN-16-2", "resnet34im", " wrn_40_2")]
    assert spelling == ["wrn_40_2", "wrn_16_2", "resnet34", "wrn_40_2"]


@pytest.mark.parametrize("name", ["vgg", "wrn_17_2", "wrn_16_0", "resnet35", ""])
def test_unknown_models_are_refused(name):
    with pytest.raises(InputError, match=r"unknown model|depth must be 6n"):
        create_model(name, 10)


@pytest.mark.parametrize(
    "wrap", [lambda s: s, lambda s: {"model": s, "epoch": 3}, lambda s: {"state_dict": s}]
)
def test_weights_come_back_from_any_wrapping(tmp_path, wrap):
    model = create_model("wrn_16_1", 6)
    torch.save(wrap({f"module.{k}": v for k, v in model.state_dict().items()}), tmp_path / "w.pth")
    loaded = load_weights("wrn16x1", tmp_path / "w.pth")
    assert fingerprint(loaded) == fingerprint(model) != fingerprint(create_model("wrn_16_1", 6))
    assert read_metadata(tmp_path / "w.pth") == {}


def test_half_precision_safetensors_load_as_float32(tmp_path):
    model = create_model("wrn_16_1", 6)
    state = {k: v.half() if v.is_floating_point() else v for k, v in model.state_dict().items()}
    save_file(state, tmp_path / "w.safetensors", {"kdnb": "[1]"})
    loaded = load_weights("wrn_16_1", tmp_path / "w.safetensors")
    assert (
        loaded.fc.weight.dtype == torch.float32 and read_metadata(tmp_path / "w.safetensors") == {}
    )
    assert torch.allclose(loaded.fc.weight, model.fc.weight, atol=1e-3)


@pytest.mark.parametrize(("name", "why"), [("wrn_16_1", ": block1"), ("resnet18", "")])
def test_weights_of_another_network_are_named(tmp_path, name, why):
    save_file(create_model("wrn_16_2", 6).state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(InputError, match=f"does not fit {name}{why}"):
        load_weights(name, tmp_path / "w.safetensors")


class Bomb:
    def __reduce__(self):
        return (exec, ("raise SystemExit('code ran')",))


@pytest.mark.parametrize(
    "content", [pickle.dumps({"model": Bomb()}), b"", b"not weights", b"PK\x03\x04 torn", b"[1]"]
)
def test_what_is_no_weights_file_runs_no_code(tmp_path, content):
    for name in ("w.pth", "w.safetensors", "zip.pth"):
        (tmp_path / name).write_bytes(content)
        if name == "zip.pth":
            torch.save({"model": Bomb()}, tmp_path / name)
        with pytest.raises(InputError, match=rf"{name} is not a readable weights file"):
            load_weights("wrn_16_1", tmp_path / name)
        assert read_metadata(tmp_path / name) == {}
    with pytest.raises(InputError, match=r"no weights file at .*absent\.pth"):
        load_weights("wrn_16_1", tmp_path / "absent.pth")
