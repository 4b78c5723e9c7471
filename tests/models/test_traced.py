"""torchvision's networks and the user's own, as networks of the study."""

import copy
import io
import pickle
import re
from itertools import permutations
from urllib.error import URLError

import pytest
import torch
import torch.nn.functional as F
import torchvision
from safetensors.torch import save_file
from torch import nn

from kdnb import LOSSES, Distiller, InputError, create_model, load_weights, tapped
from kdnb.models import (
    blocks,
    class_count,
    fingerprint,
    has_imagenet_weights,
    imagenet_model,
    model_name,
    register,
)
from kdnb.models.base import FAMILIES

SMALL = [
    "mobilenet_v3_small",
    "shufflenet_v2_x0_5",
    "mnasnet0_5",
    "regnet_y_400mf",
    "efficientnet_b0",
]  # a family each


@pytest.mark.parametrize("name", [*SMALL, "densenet121", "swin_t"])
def test_torchvisions_networks_compute_what_they_did(name):
    model, original = create_model(name, 7), torchvision.models.get_model(name, num_classes=7)
    original.load_state_dict(model.state_dict())  # strict: the same keys
    images = torch.randn(2, 3, 64, 64)
    for mode in (True, False):  # dropout, dropped branches and batch norm
        torch.manual_seed(1)
        output = model.train(mode)(images)
        torch.manual_seed(1)
        assert torch.equal(output.logits, original.train(mode)(images))
    assert fingerprint(model) == fingerprint(original)  # the running statistics have moved alike
    assert output.feats == output.stages and class_count(model) == 7
    assert torch.equal(model.get_submodule(model.classifier_name)(output.pooled), output.logits)
    assert [(f.shape[2], f.shape[3]) for f in output.feats] == [
        (s, s) for s in (32, 16, 8, 4, 2)[-len(output.feats) :]
    ]
    assert [block.name for block in blocks(model, 64)] == model.block_names
    assert fingerprint(copy.deepcopy(model)) == fingerprint(model) and model_name(name) == name


def test_taps_are_the_last_maps_that_no_shortcut_goes_round():
    with torch.device("meta"):
        model, vgg = create_model("wide_resnet50_2", 3), create_model("vgg11", 3)
    assert model.block_names == [
        "relu",
        "layer1.2.relu",
        "layer2.3.relu",
        "layer3.5.relu",
        "layer4.2.relu",
    ]
    assert vgg.block_names[-2:] == ["features.19", "features.20"]  # a ReLU, the pooling behind it


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("vit_b_16", "no feature maps of several sizes"),
        ("maxvit_t", "makes tensors in its forward pass"),
        ("squeezenet1_0", "does not end in one linear layer"),
    ],
)
def test_networks_without_maps_or_classifier_are_refused(name, why):
    with pytest.raises(InputError, match=why):
        create_model(name, 10)


def test_images_that_vanish_in_a_network_are_refused():
    model = create_model("alexnet", 2)
    with pytest.raises(
        InputError, match=r"images of 32 pixels do not pass through this network: .*too small"
    ):
        blocks(model.train(), 32)
    assert model.training

    def full(images):
        raise torch.OutOfMemoryError("CUDA out of memory")

    model.forward = full
    with pytest.raises(torch.OutOfMemoryError):
        blocks(model, 64)


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "resnet18"])
def test_their_weights_load_from_files_and_from_where_torchvision_keeps_them(
    tmp_path, monkeypatch, name
):
    def offline(*_, **__):
        raise URLError("no network")

    model = create_model(name, 1000)
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    assert fingerprint(load_weights(name, tmp_path / "w.safetensors")) == fingerprint(model)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    url = torchvision.models.get_model_weights(name).IMAGENET1K_V1.url
    with pytest.raises(InputError, match=f"put {url} into .*checkpoints.*'none'"):
        imagenet_model(name)
    torch.save(model.state_dict(), tmp_path / "checkpoints" / url.rpartition("/")[2])
    loaded, classes = imagenet_model(name)
    assert fingerprint(loaded) == fingerprint(model) and len(classes) == 1000 and "tench" in classes
    assert has_imagenet_weights(name) and not has_imagenet_weights("cifar_vgg8")


def test_older_keys_of_densenets_are_known(tmp_path):
    model = create_model("densenet121", 3)
    older = {
        re.sub(r"(denselayer\d+\.(norm|conv))(\d)", r"\1.\3", k): v
        for k, v in model.state_dict().items()
    }
    save_file(older, tmp_path / "w.safetensors")
    assert older.keys() != model.state_dict().keys()
    assert fingerprint(load_weights("densenet121", tmp_path / "w.safetensors")) == fingerprint(
        model
    )


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.first = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU())
        self.second = nn.Conv2d(4, 6, 3, 2, 1)
        self.classifier = nn.Linear(6, 5)

    def forward(self, x):
        x = torch.tanh(self.second(self.first(x * self.scale)))
        return F.log_softmax(self.classifier(F.dropout(x.mean((2, 3)), 0.5, self.training)), 1)


def test_networks_of_ones_own():
    own = Own()
    model, images = tapped(own, ["first", "second"], "classifier"), torch.randn(4, 3, 16, 16)
    assert model.state_dict().keys() == own.state_dict().keys() and model.block_names == [
        "first",
        "second",
    ]
    output = model.eval()(images)
    assert torch.equal(output.feats[0], own.first(images)) and output.feats[1].min() < 0
    assert torch.equal(F.log_softmax(output.logits, 1), own.eval()(images))
    assert not torch.equal(model.train()(images).logits, model(images).logits)  # dropout
    terms, _ = Distiller(model, create_model("resnet8", 5), "afd", images)(images, torch.arange(4))
    terms["total"].backward()
    assert float(own.scale.grad.abs()) > 0


class Tokens(nn.Module):
    """Patches of four pixels as tokens, with `extra` tokens in front of them."""

    def __init__(self, extra):
        super().__init__()
        self.patches = nn.Conv2d(3, 6, 4, 4)
        self.extra = nn.Parameter(torch.zeros(1, extra, 6))
        self.block = nn.Linear(6, 6)
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        tokens = self.patches(x).flatten(2).mT
        x = self.block(torch.cat([self.extra.expand(x.shape[0], -1, -1), tokens], 1))
        return self.head(x.mean(1))


@pytest.mark.parametrize("extra", [0, 1])
def test_tokens_are_laid_out_as_maps(extra):
    own = Tokens(extra)
    model, images = tapped(own, ["block"], "head"), torch.randn(4, 3, 16, 16)
    expected = F.conv2d(own.patches(images), own.block.weight[:, :, None, None], own.block.bias)
    torch.testing.assert_close(model(images).feats[0], expected)
    terms, _ = Distiller(model, create_model("resnet8", 4), "afd", images)(images, torch.arange(4))
    assert terms["afd"].isfinite()


@pytest.mark.parametrize(("extra", "tap"), [(2, "block"), (0, "head")])
def test_what_is_no_map_is_named_by_the_first_example(extra, tap):
    model, images = tapped(Tokens(extra), [tap], "head"), torch.randn(4, 3, 16, 16)
    with pytest.raises(InputError, match=f"layer '{tap}' returns .*a tap needs maps"):
        Distiller(create_model("resnet8", 4), model, "afd", images)


def test_networks_of_ones_own_have_names(monkeypatch):
    monkeypatch.setitem(FAMILIES, "own", None)  # and taken away again
    register("own")(lambda num_classes: tapped(Own(), ["first"], "classifier"))
    assert len(create_model("own", 5).block_names) == 1 and model_name("OWN") == "own"


@pytest.mark.parametrize("name", ["MyNet", "mynet", " MYNET "])
def test_names_are_found_in_any_case(monkeypatch, name):
    monkeypatch.setitem(FAMILIES, "MyNet", None)
    register("MyNet")(lambda num_classes: tapped(Own(), ["first"], "classifier"))
    assert create_model(name, 5).block_names == ["first"] and model_name(name) == "MyNet"


def test_groups_of_a_name_are_in_lower_case(monkeypatch):
    monkeypatch.setitem(FAMILIES, "MyNet-SIZE", None)
    built = []

    @register("MyNet-(small|large)(?:-v([12]))?", "MyNet-{}-v{}", "MyNet-SIZE")
    def build(size, version, num_classes):
        built.append((size, version))
        return torch.nn.Linear(2, num_classes)

    assert model_name("mynet-Small-V2") == "MyNet-small-v2" and built == [("small", "2")]
    create_model("MYNET-LARGE", 5)
    assert built[-1] == ("large", None)
    assert model_name("ResNet18") == "resnet18" and model_name("MobileNet_V2") == "mobilenet_v2"


@pytest.mark.parametrize("name", ["own", "efficientnet_b0", "swin_t", "resnet18"])
def test_whole_networks_are_saved_and_copied(name):
    if name == "own":
        model = tapped(Own(), ["first", "second"], "classifier")
    else:
        model = create_model(name, 5)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    images = torch.randn(2, 3, 64, 64)
    for copied in (loaded, copy.deepcopy(model)):
        original = copy.deepcopy(model)
        assert list(copied.state_dict()) == list(original.state_dict())
        assert copied.block_names == original.block_names
        assert copied.classifier_name == original.classifier_name
        for mode in (True, False):  # dropout and batch norm
            torch.manual_seed(1)
            due = original.train(mode)(images)
            torch.manual_seed(1)
            output = copied.train(mode)(images)
            assert torch.equal(output.logits, due.logits)
            assert torch.equal(output.pooled, due.pooled)
            assert all(map(torch.equal, output.feats, due.feats))
        assert fingerprint(copied) == fingerprint(original)
    with torch.no_grad():
        next(loaded.parameters()).zero_()  # it shares no weights with the original
    assert fingerprint(loaded) != fingerprint(original)


def test_a_loaded_network_compiles_to_one_graph():
    model, images = tapped(Own(), ["first"], "classifier").eval(), torch.randn(2, 3, 16, 16)
    loaded = pickle.loads(pickle.dumps(model))
    torch.compiler.reset()
    compiled = torch.compile(loaded, backend="eager", fullgraph=True)
    assert torch.equal(compiled(images).logits, model(images).logits)


class Untraceable(Own):
    def forward(self, x):
        return super().forward(x if x.mean() > 0 else -x)


class Constant(Own):
    def forward(self, x):
        return super().forward(x - torch.tensor([0.5]))


@pytest.mark.parametrize(
    ("module", "taps", "classifier", "why"),
    [
        (
            Own(),
            ["third"],
            "classifier",
            "no layer 'third' takes part: choose from first, second, classifier",
        ),
        (Own(), ["first"], "second", "classifier 'second' of Own is no torch.nn.Linear"),
        (Untraceable(), ["first"], "classifier", "Untraceable cannot be traced by torch.fx"),
        (Constant(), ["first"], "classifier", "Constant makes tensors in its forward pass"),
    ],
)
def test_what_cannot_be_tapped_is_named(module, taps, classifier, why):
    with pytest.raises(InputError, match=why):
        tapped(module, taps, classifier)


@pytest.fixture(scope="module")
def networks():
    return {name: create_model(name, 4) for name in SMALL}


@pytest.mark.parametrize("loss", [name for name in LOSSES if LOSSES[name].needs_teacher])
def test_any_two_networks_distil(networks, loss):
    images, labels, distilled = torch.randn(4, 3, 64, 64), torch.arange(4), 0
    some = [(SMALL[0], SMALL[1]), (SMALL[3], SMALL[2])]  # SemCKD is slow on wide teachers
    for teacher, student in permutations(SMALL, 2) if loss == "afd" else some:
        learner = networks[student].requires_grad_(True)
        learner.zero_grad()
        try:
            distiller = Distiller(
                learner, networks[teacher], f"ce + {loss}", images, labels=labels
            ).train()
        except InputError:  # a loss may refuse shapes, but not all
            continue
        terms, _ = distiller(images, labels, labels)
        terms["total"].backward()
        gradients = [p.grad for p in learner.parameters() if p.grad is not None]
        assert gradients and all(g.isfinite().all() for g in [terms[loss], *gradients]), (
            teacher,
            student,
        )
        distilled += 1
    assert distilled == 20 if loss == "afd" else distilled
