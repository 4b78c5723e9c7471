"""All losses but AFD against the published implementations on small tensors (losses.npz)."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from published_losses import PUBLISHED, skip_unless_published

from kdnb import LOSSES, Output
from kdnb.data import Batch
from kdnb.losses.mix import options_of

with np.load(Path(__file__).with_name("losses.npz")) as file:
    FILE = {key: file[key] for key in file.files}
HYPER = {
    tuple(key.split("/")[:2]): json.loads(str(FILE[key])) for key in FILE if key.endswith("/hyper")
}
CASES = [case for case in HYPER if case[0] in LOSSES]  # the file has more losses
TESTED_ELSEWHERE = {"ce", "afd"}  # CE is torch's, AFD is in test_reference.py
OPTIONS = {
    "temperature": "T",
    "tau": "T",
    "init_pred_var": "variance",
    "feat_dim": "dim",
    "k": "K",
}  # theirs: ours
RENAME = {
    "vid": [(r"(\d)\.log_scale", r"scales.\1"), (r"(\d)\.regressor", r"regressors.\1")],
    "reviewkd": [
        ("abfs", "fusions"),
        ("conv1", "enter"),
        ("conv2", "leave"),
        ("att_conv", "gates"),
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


def state(method, prefix):
    """The tensors under a prefix, by the names that our parameters and buffers have."""
    found = {
        key.removeprefix(prefix): torch.from_numpy(FILE[key])
        for key in FILE
        if key.startswith(prefix)
    }
    for theirs, ours in RENAME.get(method, []):
        found = {re.sub(theirs, ours, key): value for key, value in found.items()}
    if (params := found.pop("contrast.params", None)) is not None:
        found |= {"Z_s": params[2], "Z_t": params[3]}
    return found


def output(keys, preacts=False, pooled=False):
    """An Output of some of the file's tensors, and these tensors.

    With one map come all maps of its network: the loss has to choose the right ones.
    preacts: whether signed maps become pre-activations. pooled: whether the last map's mean does.
    """
    maps = [key for key in keys if re.search(r"_(feat|pre)_\d+$", key)]
    found = {key: torch.from_numpy(FILE[key]).requires_grad_() for key in keys}
    made = {"logits": torch.zeros(8, 100), "pooled": torch.zeros(8, 1)}
    made |= {key.rsplit("_", 1)[1]: tensor for key, tensor in found.items() if key not in maps}
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
        if pooled:
            made["pooled"] = found[maps[-1]].mean((2, 3))
            made["pooled"].retain_grad()
    return Output(feats=(), **made), found


def error(ours, theirs):
    theirs = torch.as_tensor(theirs).double()
    return float((ours.detach().double() - theirs).norm() / theirs.norm())


@pytest.mark.parametrize(("method", "case"), CASES)
def test_loss_gradients_and_buffers(method, case):
    start, hyper, loss = f"{method}/{case}", HYPER[method, case], None
    options = {OPTIONS.get(name, name): value for name, value in hyper.items()}
    for prefix in (
        [f"{start}/call0", f"{start}/call1"] if method == "crd" else [start]
    ):  # whose memory goes on
        own = {role: [f"{prefix}/{role}_pooled"] for role in ("student", "teacher")}
        keys = {role: hyper.get(role, own[role]) for role in own}
        pooled = hyper.get("pooled", False)
        student, leaves = output(keys["student"], pooled=pooled)
        teacher, _ = output(keys["teacher"], method == "reviewkd" and case == "signed", pooled)
        if case == "unequal_first":
            student, teacher = (
                student._replace(stages=student.stages[:1]),
                teacher._replace(stages=teacher.stages[:1]),
            )
        if loss is None:
            loss = LOSSES[method](
                student, teacher, **{k: options[k] for k in options_of(method) if k in options}
            )
            loss.setup(torch.arange(hyper.get("n_data", 2)) % 2)
            ours = loss.state_dict().keys() - {"labels"}
            given = state(method, f"{start}/state/")
            assert given.keys() == ours
            loss.load_state_dict(given, strict=False)
        loss.zero_grad()
        if method == "crd":
            places = (
                torch.from_numpy(FILE[f"{prefix}/{name}"])
                for name in ("indices", "contrast_indices")
            )
            value = loss.contrast(student.pooled, teacher.pooled, *places)
        else:
            labels = torch.from_numpy(FILE[hyper.get("labels", "inputs/main/labels")])
            value = loss(student, teacher, Batch(None, labels, None))
        value.backward()
        assert error(value, FILE[f"{prefix}/loss64"]) < TOLERANCE.get(method, 1e-5)
        grads = {f"student/{i}": leaves[key].grad for i, key in enumerate(keys["student"])}
        grads["student_pooled"] = student.pooled.grad
        for name, theirs in state("", f"{prefix}/grad/").items():
            assert error(grads[name], theirs) < 2e-5, name
        parameters, expected = dict(loss.named_parameters()), state(method, f"{prefix}/grad_state/")
        assert expected.keys() == parameters.keys()
        for name, theirs in expected.items():
            if name == ZERO.get(method):
                assert max(parameters[name].grad.abs().max(), theirs.abs().max()) < 1e-7
            else:
                assert error(parameters[name].grad, theirs) < 2e-5, name
        for name, theirs in state(method, f"{prefix}/state_after/").items():
            assert error(loss.state_dict()[name], theirs) < 1e-5, name
