"""All losses but AFD against the published implementations on small tensors.

losses.npz and losses_more.npz hold what these compute; in the second, parameters are made of seeds.
"""

import json
import re
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from published_losses import PUBLISHED, build_loss, skip_unless_published
from torch import nn

from kdnb import LOSSES, Output
from kdnb.data import Batch
from kdnb.losses.base import Classifiers
from kdnb.losses.mix import options_of
from kdnb.losses.ofd import margins

FILE = {}
for name in ("losses.npz", "losses_more.npz"):
    with np.load(Path(__file__).with_name(name)) as file:
        FILE |= {key: file[key] for key in file.files}
HYPER = {
    tuple(key.split("/")[:2]): json.loads(str(FILE[key])) for key in FILE if key.endswith("/hyper")
}
CASES = [case for case in HYPER if case[0] in LOSSES]  # the file has more losses
# CE is torch's, AFD is in test_reference.py, CRLD in test_views.py: its code is not in the files.
TESTED_ELSEWHERE = {"ce", "afd", "crld"}
OPTIONS = {
    "temperature": "T",
    "tau": "T",
    "init_pred_var": "variance",
    "feat_dim": "dim",
    "k": "K",
    "alpha_temperature": "alpha_T",
}  # theirs: ours
RENAME = {
    "vid": [(r"(\d)\.log_scale", r"scales.\1"), (r"(\d)\.regressor", r"regressors.\1")],
    "reviewkd": [
        ("abfs", "fusions"),
        ("conv1", "enter"),
        ("conv2", "leave"),
        ("att_conv", "gates"),
    ],
    "ofd": [(r"connectors\.connectors", "connectors")],
    "simkd": [(r"simkd\.", "")],
    "srrl": [(r"srrl\.", "")],
    "semckd": [
        (r"query_(\d)\.linear(\d)", lambda m: f"queries.{m[1]}.{2 * int(m[2]) - 2}"),
        (r"key_(\d)\.linear(\d)", lambda m: f"keys.{m[1]}.{2 * int(m[2]) - 2}"),
        (r"regressor(\d)(\d)\.regressor", r"regressors.\1.\2"),
    ],
    "crd": [
        (r"\.linear", ""),
        (r"contrast\.memory_v1", "memory_s"),
        (r"contrast\.memory_v2", "memory_t"),
    ],
}
TOLERANCE = {
    "pkt": 2e-4
}  # of the loss, relative; PKT's is a cancellation: theirs is 7e-5 off in float32
ZERO = {"fitnet": "conv.bias"}  # a gradient that is 0 but for rounding: batch norm follows


@pytest.mark.parametrize("name", LOSSES)
def test_a_published_loss_has_a_reference_case(name):
    skip_unless_published(name)
    assert name in TESTED_ELSEWHERE or name in {method for method, _ in CASES}


def test_no_published_loss_is_missing():
    assert LOSSES.keys() >= PUBLISHED


def made(key, shape):
    """The parameter or buffer of a name and shape, as losses_more.npz was computed with."""
    x = torch.from_numpy(random(key, shape))
    if key.endswith("running_var"):
        return 0.5 + x.abs()
    if x.ndim < 2:
        return 0.5 + 0.1 * x.abs() if key.endswith("weight") else 0.1 * x
    return x * (2 / x[0].numel()) ** 0.5


def random(key, shape):
    rng = np.random.default_rng([int(FILE["seed"]), zlib.crc32(key.encode())])
    return rng.standard_normal(shape).astype(np.float32)


def state(method, prefix):
    """The tensors under a prefix, by the names that our parameters and buffers have."""
    found = {
        key.removeprefix(prefix): torch.from_numpy(FILE[key])
        for key in FILE
        if key.startswith(prefix)
    }
    if prefix.endswith("/state/") and (keys := FILE.get(prefix.replace("/state/", "/keys"))):
        shapes = json.loads(str(keys)).items()
        found = {key: made(key, shape) for key, shape in shapes if "tracked" not in key}
        found |= {key: torch.tensor(0) for key, _ in shapes if "tracked" in key}
    for theirs, ours in RENAME.get(method, []):
        found = {re.sub(theirs, ours, key): value for key, value in found.items()}
    if method == "semckd":  # their embeddings have a regressor, which is never used
        found = {key: value for key, value in found.items() if not re.match("(query|key)_", key)}
    if (params := found.pop("contrast.params", None)) is not None:
        found |= {"Z_s": params[2], "Z_t": params[3]}
    return found


def output(keys, preacts=False, pooled=False):
    """An Output of some of the file's tensors, and these tensors.

    With one map come all maps of its network: the loss has to choose the right ones.
    preacts: whether signed maps become pre-activations. pooled: whether the loss is compared by the
    gradient of the last map's mean, too.
    """
    maps = [key for key in keys if re.search(r"_(feat|pre)_\d+$", key)]
    found = {key: torch.from_numpy(FILE[key]).requires_grad_() for key in keys}
    made = {"logits": torch.zeros(8, 100), "pooled": torch.zeros(8, 1), "feats": ()}
    made |= {key.rsplit("_", 1)[1]: tensor for key, tensor in found.items() if key not in maps}
    if "strong" in made:  # the second view of the same images
        made["logits"] = torch.cat([made["logits"], made.pop("strong")])
    if "cam" in made:  # the maps of the classes, as if they were those before the classifier
        made["feats"] = (made.pop("cam"),)
        made["pooled"] = made["feats"][0].mean((2, 3))
    if maps:
        start, kind, _ = maps[0].rsplit("_", 2)
        ends = FILE[f"{start}_ends"].tolist()
        names = {
            "feat": [f"{start}_feat_{end}" for end in ends],
            "pre": [f"{start}_pre_{g}" for g in range(len(ends))],
        }
        all_maps = {
            k: tuple(found.get(n, torch.from_numpy(FILE[n])) for n in names[k]) for k in names
        }
        other = "feat" if kind == "pre" and preacts else kind
        made |= {"stages": all_maps[other], "preacts": all_maps["pre"] if preacts else ()}
        made["feats"] = made["stages"]
        if len(keys) == len(maps):  # the pooled vector is no input of its own
            made["pooled"] = found[maps[-1]].mean((2, 3))
        if pooled:
            made["pooled"].retain_grad()
    return Output(**made), found


def error(ours, theirs):
    theirs = torch.as_tensor(theirs).double()
    return float((ours.detach().double() - theirs).norm() / theirs.norm())


def linear(weight, bias):
    layer = nn.Linear(*weight.shape[::-1])
    layer.load_state_dict({"weight": weight, "bias": bias})
    return layer


def load(loss, method, start):
    """Give a loss the parameters and buffers of a case."""
    given = state(method, f"{start}/state/")
    if "cls_t.weight" in given:
        teacher = linear(given.pop("cls_t.weight"), given.pop("cls_t.bias"))
        loss.classifiers = Classifiers(None, teacher.requires_grad_(False))
    if method == "cat":  # whose maps are those of the classes already
        same = linear(torch.eye(100), torch.zeros(100))
        loss.classifiers = Classifiers(same, same)
    ours = loss.state_dict()
    if method == "ofd":  # moments of so many batches that another makes no difference
        given["batches"] = torch.tensor(1e9)
        for g in range(3):
            std, mean = (torch.from_numpy(FILE[f"{start}/teacher_bn_{n}_{g}"]) for n in NORM)
            given[f"moments_{g}"] = 1e9 * torch.stack([mean, mean.square() + std.square()])
    assert given.keys() == ours.keys() - {"labels", "random.position"}
    given = {key: value.reshape(ours[key].shape) for key, value in given.items()}
    loss.load_state_dict(given, strict=False)


NORM = ("weight", "bias")  # of a batch norm: standard deviation and mean of what it returns


def evaluated(loss, method, prefix, student, teacher):
    """The value of a loss of one case or call."""
    hyper = HYPER[tuple(prefix.split("/")[:2])]
    if method == "crd":
        names = ("indices", "contrast_indices")
        places = (torch.from_numpy(FILE[f"{prefix}/{name}"]) for name in names)
        return loss.contrast(student.pooled, teacher.pooled, *places)
    if method == "srrl":
        teacher = teacher._replace(logits=loss.classifiers.teacher(teacher.pooled))
    labels = torch.from_numpy(FILE[hyper.get("labels", "inputs/main/labels")])
    value = loss(student, teacher, Batch(None, labels, None))
    return value * hyper["kd_weight"] if method == "mlkd" else value


@pytest.mark.parametrize(("method", "case"), CASES)
def test_loss_gradients_and_buffers(method, case):
    start, hyper, loss = f"{method}/{case}", HYPER[method, case], None
    options = {OPTIONS.get(name, name): value for name, value in hyper.items()}
    options = {k: options[k] for k in options_of(method) if k in options}
    for prefix in (
        [f"{start}/call0", f"{start}/call1"] if method == "crd" else [start]
    ):  # whose memory goes on
        own = {role: [f"{prefix}/{role}_pooled"] for role in ("student", "teacher")}
        keys = {role: hyper.get(role, own[role]) for role in own}
        pooled = hyper.get("pooled", False)
        student, leaves = output(keys["student"], method == "ofd", pooled)
        with_preacts = method == "ofd" or (method, case) == ("reviewkd", "signed")
        teacher, _ = output(keys["teacher"], with_preacts, pooled)
        if case == "unequal_first":
            student, teacher = (
                student._replace(stages=student.stages[:1]),
                teacher._replace(stages=teacher.stages[:1]),
            )
        if loss is None:
            loss = build_loss(method, (student, teacher), **options)
            loss.setup(torch.arange(hyper.get("n_data", 2)) % 2)
            load(loss, method, start)
        loss.zero_grad()
        value = evaluated(loss, method, prefix, student, teacher)
        value.backward()
        assert error(value, FILE[f"{prefix}/loss64"]) < TOLERANCE.get(method, 1e-5)
        grads = {f"student/{i}": leaves[key].grad for i, key in enumerate(keys["student"])}
        grads["student_pooled"] = student.pooled.grad
        if pooled and f"{start}/keys" in FILE:  # there the vector itself is the input
            grads["student/0"] = student.pooled.grad
        for name, theirs in state("", f"{prefix}/grad/").items():
            assert error(grads[name], theirs) < 2e-5, name
        parameters, expected = dict(loss.named_parameters()), state(method, f"{prefix}/grad_state/")
        sketches = state(method, f"{prefix}/grad_sketch/")
        assert expected.keys() | sketches.keys() == parameters.keys()
        for name, theirs in expected.items():
            if name == ZERO.get(method):
                assert max(parameters[name].grad.abs().max(), theirs.abs().max()) < 1e-7
            else:
                assert error(parameters[name].grad.reshape(theirs.shape), theirs) < 2e-5, name
        check_sketches(method, prefix, parameters)
        for name, theirs in state(method, f"{prefix}/state_after/").items():
            assert error(loss.state_dict()[name], theirs) < 1e-5, name


def check_sketches(method, prefix, parameters):
    """Of large gradients, the norm and the product with a random tensor are known."""
    start = f"{prefix}/grad_sketch/"
    for key in [key.removeprefix(start) for key in FILE if key.startswith(start)]:
        name = key
        for theirs, ours in RENAME[method]:
            name = re.sub(theirs, ours, name)
        grad = parameters[name].grad
        product = (grad * torch.from_numpy(random(f"{key}/sketch", grad.shape))).sum()
        norm, expected = FILE[f"{start}{key}"].tolist()
        assert grad.norm().item() == pytest.approx(norm, rel=2e-5)
        assert product.item() == pytest.approx(expected, abs=2e-5 * norm * grad.numel() ** 0.5)


@pytest.mark.parametrize("stage", range(3))
def test_the_margins_of_ofd(stage):
    std, mean = (torch.from_numpy(FILE[f"ofd/signed/teacher_bn_{name}_{stage}"]) for name in NORM)
    theirs = torch.from_numpy(FILE[f"ofd/signed/parts/margin/{stage}"])
    assert torch.allclose(margins(mean, std.abs()), theirs, rtol=1e-4)


@pytest.mark.parametrize("case", ["main", "unequal", "swapped", "signed"])
def test_the_attention_of_semckd(case):
    hyper = HYPER["semckd", case]
    student, _ = output(hyper["student"])
    teacher, _ = output(hyper["teacher"])
    loss = build_loss("semckd", (student, teacher))
    load(loss, "semckd", f"semckd/{case}")
    theirs = torch.from_numpy(FILE[f"semckd/{case}/parts/attention"])  # b s t
    assert torch.allclose(loss.attention(student, teacher), theirs.mT, atol=1e-5)


@pytest.mark.parametrize("case", ["main", "signed", "unequal"])
def test_the_predictions_of_simkd(case):
    hyper = HYPER["simkd", case]
    student, _ = output(hyper["student"])
    loss = build_loss("simkd", (student, output(hyper["teacher"])[0]))
    load(loss, "simkd", f"simkd/{case}")
    assert error(loss.predict(student).logits, FILE[f"simkd/{case}/parts/logits"]) < 1e-5
