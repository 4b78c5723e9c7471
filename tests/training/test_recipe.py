"""A run of two epochs against the same in plain PyTorch: batches, SGD, schedule, losses."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import image_set
from helpers import break_off, quiet
from safetensors.torch import load_file, save_file

from kdnb import Distiller, Run, create_model, train
from kdnb.data import DATASETS, Preset, register
from kdnb.runs.checkpoint import load_checkpoint

SEED, CLASSES, SIZE, PADDING, BATCH = 3, 4, 16, 2, 16
LRS = (0.005, 0.0005)  # of the two epochs: small, so that differences in rounding stay small
WEIGHT_DECAY = 0.05  # so large that its effect is above these differences
STEPS = 5  # an epoch: four batches of 16 images and one of 6
TRAIN_IMAGES, TEST_IMAGES = 70, 40
PRESET = Preset(
    student="wrn_10_1",
    teacher="wrn_16_1",
    image_size=SIZE,
    padding=PADDING,
    flip=True,
    epochs=2,
    batch_size=BATCH,
    lr=LRS[0],
    milestones=(0.5,),
    weight_decay=WEIGHT_DECAY,
    methods={"afd": "ce + kd:0.9 + afd:10"},
)
MEAN, STD = (0.5, 0.45, 0.4), (0.25, 0.3, 0.2)


@pytest.fixture(scope="module")
def images():
    """Training and test images like CIFAR's, registered as the data set "cifar_like"."""
    splits = [
        replace(image_set(n, SIZE, CLASSES, seed=n), mean=MEAN, std=STD)
        for n in (TRAIN_IMAGES, TEST_IMAGES)
    ]
    register("cifar_like", PRESET)(lambda root, size, **_: tuple(splits))
    yield splits
    del DATASETS["cifar_like"]


def normalise(pixels):
    """Of the same values and in the same memory format as the run's, so that they round alike."""
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (MEAN, STD))
    images = pixels.float() * (1 / (255 * std)) + -mean / std
    return images.to(memory_format=torch.channels_last)


def batches(images, epoch):
    """Shuffled, randomly cropped and flipped batches, every choice drawn from (seed, epoch)."""
    n, rng = len(images.labels), np.random.default_rng([SEED, epoch])
    order = rng.permutation(n)
    corners = rng.integers(0, 2 * PADDING + 1, (n, 2))
    flips = rng.random(n) < 0.5
    padded = F.pad(images.images, [PADDING] * 4)
    crops = []
    for index, (y, x), flip in zip(order, corners, flips, strict=True):
        image = padded[index, :, y : y + SIZE, x : x + SIZE]
        crops.append(image.flip(2) if flip else image)
    pixels = normalise(torch.stack(crops))
    return zip(pixels.split(BATCH), images.labels[order].split(BATCH), strict=True)


def project(p, name, x):
    """A linear layer and batch norm in train mode; p: AFD's parameters and buffers by name."""
    x = F.linear(x, p[f"{name}.0.weight"], p[f"{name}.0.bias"])
    mean, var, weight, bias = (
        p[f"{name}.1.{n}"] for n in ("running_mean", "running_var", "weight", "bias")
    )
    return F.batch_norm(x, mean, var, weight, bias, training=True)


def afd(p, student, teacher):
    """AFD's loss and the batch's mean attention (Ji, Heo, Park, AAAI 2021, section 3)."""
    T, S, d = len(teacher), len(student), 128
    attention, distances = [], []
    keys = [F.relu(project(p, f"keys.{s}", h.mean((2, 3)))) for s, h in enumerate(student)]
    keys = project(p, "bilinear", torch.stack(keys, 1).flatten(0, 1)).view(-1, S, T, d)
    for t, h_t in enumerate(teacher):
        query = project(p, f"queries.{t}", h_t.mean((2, 3)))
        scores = (keys[:, :, t] * query[:, None]).sum(2) + p["p_t"][t] @ p["p_s"].T
        attention.append(F.softmax(scores / math.sqrt(d), 1))
        m_t = F.normalize(h_t.pow(2).mean(1).flatten(1))
        energies = [F.adaptive_avg_pool2d(h.pow(2).mean(1), h_t.shape[2:]) for h in student]
        rows = [(F.normalize(e.flatten(1)) - m_t).pow(2).mean(1) for e in energies]
        distances.append(torch.stack(rows, 1))
    attention = torch.stack(attention, 1)  # b t s
    return (attention * torch.stack(distances, 1)).sum((1, 2)).mean(), attention.detach().sum(0)


def kd(student, teacher, T=4.0):
    p_t, log_p_s = F.softmax(teacher / T, 1), F.log_softmax(student / T, 1)
    return (p_t * (p_t.log() - log_p_s)).sum(1).mean() * T**2


def train_plainly(images, teacher):
    """State of student and AFD, row of metrics.csv, and links after each of two epochs."""
    torch.manual_seed(SEED)
    student = create_model("wrn_10_1", CLASSES).to(memory_format=torch.channels_last)
    teacher = teacher.to(memory_format=torch.channels_last)
    losses = Distiller(student, teacher, "afd", torch.zeros(2, 3, SIZE, SIZE)).losses
    p = {name: value.clone() for name, value in losses["afd"].state_dict().items()}
    trained = [*student.parameters()]
    trained += [v.requires_grad_() for n, v in p.items() if "running" not in n and "num" not in n]
    velocity = [torch.zeros_like(value) for value in trained]
    states = []
    for epoch, lr in enumerate(LRS):
        sums, links = dict.fromkeys(("top1", "ce", "kd", "afd", "total"), 0.0), 0
        student.train()
        for x, y in batches(images[0], epoch):
            with torch.no_grad():
                out_t = teacher.eval()(x)
            out = student(x)
            loss = {"ce": F.cross_entropy(out.logits, y), "kd": kd(out.logits, out_t.logits)}
            loss["afd"], attention = afd(p, out.feats, out_t.feats)
            loss["total"] = loss["ce"] + 0.9 * loss["kd"] + 10 * loss["afd"]
            gradients = torch.autograd.grad(loss["total"], trained)
            with torch.no_grad():
                for value, gradient, v in zip(trained, gradients, velocity, strict=True):
                    v.mul_(0.9).add_(gradient + WEIGHT_DECAY * value)
                    value.sub_(lr * v)
            links = links + attention
            loss["top1"] = 100 * (out.logits.argmax(1) == y).float().mean()
            for name, value in loss.items():
                sums[name] += float(value.detach()) * len(y)
        with torch.no_grad():
            logits = student.eval()(normalise(images[1].images)).logits
        row = {"epoch": epoch + 1, "lr": lr}
        row |= {f"train_{name}": value / len(images[0]) for name, value in sums.items()}
        row["test_top1"] = 100 * float((logits.argmax(1) == images[1].labels).float().mean())
        row["test_loss"] = float(F.cross_entropy(logits, images[1].labels))
        state = {f"student.{name}": value for name, value in student.state_dict().items()}
        state |= {f"losses.afd.{name}": value for name, value in p.items()}
        state = {n: v.detach().clone() for n, v in state.items() if "num_batches" not in n}
        states.append((state, row, links / len(images[0])))
    return states


def assert_close(found, expected):
    for name, value in expected.items():
        # 2e-5 on processors without AVX-512, whose rounding turns some ReLUs on or off.
        assert float((found[name] - value).abs().max()) < 1e-4, name


def test_a_run_trains_as_plain_pytorch_does(images, tmp_path):
    """Weights after each epoch, metrics.csv and AFD's links."""
    torch.manual_seed(7)
    teacher = create_model("wrn_16_1", CLASSES)
    teacher.fc.weight.data *= 2  # surer predictions, so that there is something to learn
    metadata = {"kdnb": json.dumps({"classes": images[0].classes})}
    save_file(teacher.state_dict(), tmp_path / "teacher.safetensors", metadata)
    run = Run(
        dataset="cifar_like",
        teacher_weights=str(tmp_path / "teacher.safetensors"),
        seed=SEED,
        precision="float32",
        device="cpu",
        compile="off",
        threads=1,
        outputs=str(tmp_path),
    )
    expected = train_plainly(images, teacher)

    break_off(run, STEPS + 1)
    assert_close(load_checkpoint(run.folder)["trained"], expected[0][0])
    train(run, quiet)
    trained = {f"student.{n}": v for n, v in load_file(run.weights).items()}
    trained |= {f"losses.{n}": v for n, v in load_file(run.loss_weights).items()}
    assert_close(trained, expected[1][0])

    rows = run.metrics.to_dict("records")
    for row, (_, expected_row, _) in zip(rows, expected, strict=True):
        assert {name: row[name] for name in expected_row} == pytest.approx(expected_row, rel=1e-4)
    links = torch.stack([links for *_, links in expected])
    assert run.history["afd.links"] == pytest.approx(links.numpy(), abs=1e-5)
