"""The networks of the benchmark table against their published code (networks.npz)."""

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from kdnb import create_model, load_weights
from kdnb.models import PAIRS, blocks, class_count, fingerprint, model_name

REFERENCE = np.load(Path(__file__).with_name("networks.npz"))
PUBLISHED = sorted({name.split("/")[0] for name in REFERENCE.files if "/" in name})
RENAMED = {
    "ResNet50": "resnet50",
    "MobileNetV2": "mobilenetv2",
    "ShuffleV1": "shufflenetv1",
    "ShuffleV2": "shufflenetv2",
}


def ours(published):
    return (
        published
        if published.startswith(("resnet", "wrn"))
        else f"cifar_{RENAMED.get(published, published.lower())}"
    )


def made(key, shape):
    """The weights that the published code was given: random ones, seeded by the key."""
    x = np.random.default_rng(zlib.crc32(key.encode())).standard_normal(shape).astype(np.float32)
    if key.endswith("num_batches_tracked"):
        return torch.zeros((), dtype=torch.int64)
    if key.endswith("running_var"):
        x = 0.5 + abs(x)
    elif len(shape) == 1:
        x = 0.5 + 0.1 * abs(x) if key.endswith("weight") else 0.1 * x
    else:
        x = x * np.sqrt(2 / np.prod(shape[1:]))
    return torch.as_tensor(x, dtype=torch.float32)


def close(ours, theirs):
    error = np.abs(ours.numpy() - theirs).max() / np.abs(theirs).max()
    assert error < 1e-4, f"relative error {error:.2e}"


@pytest.mark.parametrize("published", PUBLISHED)
@torch.no_grad()
def test_networks_compute_what_the_published_code_does(published):
    model = create_model(ours(published), 100).eval()
    keys = json.loads(str(REFERENCE[f"{published}/keys"]))
    state = model.state_dict()
    assert {key: list(value.shape) for key, value in state.items()} == dict(keys)
    model.load_state_dict({key: made(key, shape) for key, shape in keys})
    output = model(torch.from_numpy(REFERENCE["images"]))
    close(output.logits, REFERENCE[f"{published}/logits"])
    shapes = json.loads(str(REFERENCE[f"{published}/feat_shapes"]))
    assert [list(stage.shape) for stage in output.stages] == shapes[
        1:-1
    ]  # after the stem, before the vector
    for i, found in enumerate([stage.mean((2, 3)) for stage in output.stages] + [output.pooled], 1):
        close(found, REFERENCE[f"{published}/feat_{i}"])
    assert len(output.feats) == len(model.block_names)
    ends = [
        feat
        for feat in output.feats
        for preact in output.preacts
        if torch.equal(torch.relu(preact), feat)
    ]
    assert len(ends) == len(output.preacts) in (0, len(output.stages))


@pytest.mark.parametrize(
    "name", ["resnet8x4", "cifar_vgg8", "cifar_mobilenetv2", "cifar_shufflenetv2"]
)
def test_their_weights_and_blocks_are_known(tmp_path, name):
    model = create_model(name, 7)
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    loaded = load_weights(name, tmp_path / "w.safetensors")
    assert fingerprint(loaded) == fingerprint(model) and class_count(loaded) == 7
    found = blocks(loaded, 32)
    assert [block.name for block in found] == model.block_names and found[0].name == "1.1"


def test_of_resnet110_every_second_block_is_a_tap():
    """As in AFD's code; of all others every block is one."""
    model = create_model("resnet110", 10)
    names, feats = model.block_names, model(torch.randn(2, 3, 32, 32)).feats
    assert len(feats) == len(names) == 27 and [names[i] for i in (0, 1, 8, 9, -1)] == [
        "1.2",
        "1.4",
        "1.18",
        "2.2",
        "3.18",
    ]


def test_weights_begin_as_in_the_published_code():
    shuffle, vgg = create_model("cifar_shufflenetv1", 100), create_model("cifar_vgg8", 100)
    bound = shuffle.conv1.weight[0].numel() ** -0.5  # torch's own: uniform, by the inputs
    assert 0.9 * bound < float(shuffle.conv1.weight.detach().abs().max()) <= bound
    assert not vgg.block0[0].bias.any()
    for linear in (vgg.classifier, create_model("cifar_mobilenetv2", 100).classifier[0]):
        assert (
            float(linear.weight.detach().std()) == pytest.approx(0.01, rel=0.05)
            and not linear.bias.any()
        )


def test_pairs_of_the_benchmark_are_networks():
    assert len(PAIRS) == 13
    for name, (teacher, student) in PAIRS.items():
        assert name == f"{model_name(teacher)}-{model_name(student)}"
