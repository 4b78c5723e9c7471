"""Networks of timm by name, as networks of the study."""

import copy
import io
import sys

import huggingface_hub
import pytest
import timm
import torch
from safetensors.torch import save_file

from kdnb import InputError, create_model, load_weights
from kdnb.models import blocks, class_count, fingerprint, input_size, model_name, timm_model

SIZED = ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "mixer_s32_224"]
NAMES = [*SIZED, "convnext_atto", "tf_efficientnet_lite0", "resnet18"]


def original(name, num_classes, size):
    options = {"img_size": size} if name in SIZED else {}
    return timm.create_model(name, num_classes=num_classes, **options)


@pytest.mark.parametrize("name", NAMES)
def test_a_network_computes_what_timm_computes(name):
    model, theirs = create_model(f"timm/{name}", 7, 64), original(name, 7, 64)
    theirs.load_state_dict(model.state_dict())  # strict: the same keys
    images = torch.randn(2, 3, 64, 64)
    for mode in (True, False):  # dropped branches and batch norm
        torch.manual_seed(1)
        output = model.train(mode)(images)
        torch.manual_seed(1)
        assert torch.equal(output.logits, theirs.train(mode)(images))
    assert fingerprint(model) == fingerprint(theirs)
    assert class_count(model) == 7 and input_size(f"timm/{name}") == (224 if name in SIZED else 0)
    assert torch.equal(model.get_submodule(model.classifier_name)(output.pooled), output.logits)
    assert [block.name for block in blocks(model, 64)] == model.block_names
    sizes = [stage.shape[2] for stage in output.stages]
    assert sizes == sorted(sizes, reverse=True) and len(sizes) >= 4


def test_the_stages_of_maps_of_one_size_are_spread_over_the_depth():
    model = create_model("timm/vit_tiny_patch16_224", 2, 32)
    output = model(torch.randn(1, 3, 32, 32))
    assert len(output.feats) == 12 and {feat.shape for feat in output.feats} == {(1, 192, 2, 2)}
    assert [id(stage) for stage in output.stages] == [id(output.feats[i]) for i in (2, 5, 8, 11)]


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "tf_efficientnet_lite0"])
def test_whole_networks_are_saved_and_copied(name):
    model = create_model(f"timm/{name}", 3, 32).eval()
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    images = torch.randn(2, 3, 32, 32)
    for copied in (loaded, copy.deepcopy(model)):
        assert torch.equal(copied(images).logits, model(images).logits)
    assert loaded.block_names == model.block_names and type(loaded) is type(model)
    with torch.no_grad():
        next(loaded.parameters()).zero_()  # it shares no weights with the original
    assert fingerprint(loaded) != fingerprint(model)


@pytest.mark.slow
def test_a_vit_compiles_to_one_graph():
    model, images = create_model("timm/vit_tiny_patch16_224", 3, 32), torch.randn(2, 3, 32, 32)
    torch.compiler.reset()
    compiled = torch.compile(model.eval(), backend="eager", fullgraph=True)
    assert torch.equal(compiled(images).logits, model(images).logits)


def test_weights_of_another_size_are_resampled(tmp_path):
    model = create_model("timm/vit_tiny_patch16_224", 5)
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    loaded = load_weights("timm/vit_tiny_patch16_224", tmp_path / "w.safetensors")
    assert fingerprint(loaded) == fingerprint(model)
    small = load_weights("timm/vit_tiny_patch16_224", tmp_path / "w.safetensors", 32)
    assert small.pos_embed.shape == (1, 5, 192) and torch.equal(small.norm.bias, model.norm.bias)
    with pytest.raises(InputError, match="does not fit timm/convnext_atto"):
        load_weights("timm/convnext_atto", tmp_path / "w.safetensors")


def test_a_file_without_classifier_is_a_network_without_logits(tmp_path):
    model = timm.create_model("tf_efficientnet_lite0", num_classes=0)
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    loaded = load_weights("timm/tf_efficientnet_lite0", tmp_path / "w.safetensors")
    output = loaded(torch.randn(2, 3, 32, 32))
    assert output.logits.shape == (2, 0) and class_count(loaded) == 0
    assert output.pooled.shape == (2, 1280) and len(output.feats) == 5


@pytest.mark.parametrize(
    ("name", "size", "why"),
    [
        (
            "timm/vit_tiny_patch16",
            0,
            "timm has no network 'vit_tiny_patch16': similar are vit_tiny",
        ),
        ("timm/vit_tiny_patch16_224.none", 0, "timm has no network 'vit_tiny_patch16_224.none'"),
        ("timm/no_such_net", 0, "'no_such_net': timm.list_models.* lists the names$"),
        ("timm/dla34", 0, "does not end in one linear layer"),
        ("timm/xcit_nano_12_p16_224", 8, "timm cannot build .* for images of 8 pixels"),
    ],
)
def test_what_cannot_be_built_is_named(name, size, why):
    with pytest.raises(InputError, match=why):
        create_model(name, 2, size)


def test_timm_is_needed_only_for_its_networks(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)  # as if it was not installed
    create_model("wrn_10_1", 2)
    with pytest.raises(
        InputError, match=r"timm, which is not installed: pip install 'kdnb\[timm\]'"
    ):
        create_model("timm/convnext_atto", 2)


def test_timms_own_weights_come_from_its_cache(tmp_path, monkeypatch):
    weights = original("tf_efficientnet_lite0", 1000, 0)
    save_file(weights.state_dict(), tmp_path / "model.safetensors")

    def cached(repo_id, filename, **_):
        if repo_id == "timm/tf_efficientnet_lite0.in1k":
            return str(tmp_path / filename)
        raise huggingface_hub.errors.LocalEntryNotFoundError("no network")

    monkeypatch.setattr("timm.models._hub.hf_hub_download", cached)
    loaded = timm_model("timm/tf_efficientnet_lite0")
    assert fingerprint(loaded) == fingerprint(weights) and class_count(loaded) == 1000
    with pytest.raises(
        InputError, match=r"cannot be downloaded \(.*fetch timm/convnext_atto.*'none'"
    ):
        timm_model("timm/convnext_atto")


def test_names_keep_their_tags():
    assert model_name("timm/ViT_tiny_patch16_224.augreg_in21k") == (
        "timm/vit_tiny_patch16_224.augreg_in21k"
    )
