"""The networks, AFD and five training steps against the official implementation (afd_wrn.npz)."""

from pathlib import Path

import numpy as np
import pytest
import torch

from kdnb import Distiller
from kdnb.models.wrn import WideResNet

REFERENCE = np.load(Path(__file__).with_name("afd_wrn.npz"))
RENAME = {"linear_trans_t.query_layer": "queries", "linear_trans_s.key_layer": "keys"}
RENAME |= {"linear_trans_s.bilinear": "bilinear", ".linear.": ".0.", ".bn.": ".1."}


def tensors(prefix):
    return {
        k.removeprefix(prefix): torch.from_numpy(REFERENCE[k])
        for k in REFERENCE.files
        if k.startswith(prefix)
    }


def afd_state():
    state = {}
    for key, value in tensors("afd/attention.").items():
        for theirs, ours in RENAME.items():
            key = key.replace(theirs, ours)
        state[key] = value
    return state


def close(ours, theirs, tolerance=1e-4):
    theirs = torch.as_tensor(theirs)
    error = (ours.detach() - theirs).norm() / theirs.norm()
    assert error < tolerance, f"relative error {error:.2e}"


@pytest.fixture
def distiller():
    t_depth, t_width, s_depth, s_width, qk_dim, classes, _ = REFERENCE["config"].tolist()
    teacher, student = WideResNet(t_depth, t_width, classes), WideResNet(s_depth, s_width, classes)
    teacher.load_state_dict(tensors("teacher/"))  # strict: the published key names
    student.load_state_dict(tensors("student/"))
    alpha, beta, temperature = REFERENCE["hyper"][:3]
    images = torch.from_numpy(REFERENCE["images"])
    method = f"ce + kd:{alpha:g}(T={temperature:g}) + afd:{beta:g}(qk_dim={qk_dim})"
    made = Distiller(student, teacher, method, images)
    made.losses["afd"].load_state_dict(afd_state())
    return made


def test_models_in_eval_mode(distiller):
    images = torch.from_numpy(REFERENCE["images"])
    teacher, student = distiller.teacher.eval()(images), distiller.student.eval()(images)
    close(teacher.logits, REFERENCE["eval/teacher_logits"])
    close(student.logits, REFERENCE["eval/student_logits"])
    assert len(teacher.feats) == 6
    for i, feat in enumerate(teacher.feats):
        close(feat.mean((1, 2, 3)), REFERENCE[f"eval/teacher_feat_mean_{i}"])
    close(teacher.feats[-1], REFERENCE["eval/teacher_feat_last"])
    close(teacher.feats[0][:2], REFERENCE["eval/teacher_feat_first"])


def test_first_step(distiller):
    images, labels = torch.from_numpy(REFERENCE["images"]), torch.from_numpy(REFERENCE["labels"])
    distiller.train()
    student, teacher = distiller.student(images), distiller.teacher(images)
    close(student.logits, REFERENCE["train/student_logits"])
    attention = distiller.losses["afd"].attention(student, teacher)
    assert attention.shape == (16, 6, 6)
    close(attention, REFERENCE["train/attention"])
    terms, _ = distiller(images, labels)
    terms["total"].backward()
    close(distiller.student.conv1.weight.grad, REFERENCE["train/grad_student_conv1"])
    close(distiller.losses["afd"].p_t.grad, REFERENCE["train/grad_p_t"])
    assert all(p.grad is None for p in distiller.teacher.parameters())


def test_five_training_steps(distiller):
    images, labels = torch.from_numpy(REFERENCE["images"]), torch.from_numpy(REFERENCE["labels"])
    lr, momentum, weight_decay = REFERENCE["hyper"][3:].tolist()
    optimizer = torch.optim.SGD(
        distiller.trainable().parameters(), lr, momentum, weight_decay=weight_decay
    )
    distiller.train()
    for step in range(5):
        terms, _ = distiller(images, labels)
        for name in ("ce", "kd", "afd", "total"):
            expected = pytest.approx(REFERENCE[f"train/loss_{name}"][step], rel=1e-4)
            assert float(terms[name].detach()) == expected, (name, step)
        optimizer.zero_grad()
        terms["total"].backward()
        optimizer.step()
