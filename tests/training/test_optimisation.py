"""Optimisers, clipping, label smoothing and averages of weights, against plain PyTorch."""

import pytest
import torch
import torch.nn.functional as F
from conftest import image_set
from helpers import STEPS, quiet, tiny, tiny_run
from safetensors.torch import load_file

from kdnb import Distiller, create_model, train
from kdnb.data.loader import Loader
from kdnb.training.evaluation import evaluate
from kdnb.training.setup import build_setup

# A small epsilon makes AdamW's first steps amplify differences in rounding.
OPTIMIZERS = {
    "nesterov": lambda parameters: torch.optim.SGD(
        parameters, 0.02, momentum=0.8, nesterov=True, weight_decay=0.01
    ),
    "adamw": lambda parameters: torch.optim.AdamW(
        parameters, 0.02, betas=(0.8, 0.999), weight_decay=0.01
    ),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_epoch_of_a_recipe_is_that_of_plain_pytorch(tmp_path, name):
    fields = {"method": "none", "epochs": 1, "optimizer": name, "schedule": "cosine", "clip": 0.5}
    fields |= {"momentum": 0.8, "weight_decay": 0.01, "label_smoothing": 0.1, "ema": 0.9}
    run = train(tiny_run(tmp_path, **fields), log=quiet)
    setup = build_setup(tiny_run(tmp_path, **fields))
    student = setup.distiller.student.train()
    average = {key: value.clone() for key, value in student.state_dict().items()}
    optimizer = OPTIMIZERS[name](student.parameters())
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for step, batch in enumerate(setup.train.epoch(), 1):
        optimizer.zero_grad()
        F.cross_entropy(student(batch.images).logits, batch.labels, label_smoothing=0.1).backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 0.5)
        optimizer.step()
        schedule.step()
        decay = min(0.9, (1 + step) / (10 + step))
        for key, value in student.state_dict().items():
            if value.is_floating_point():
                average[key] = decay * average[key] + (1 - decay) * value
            else:
                average[key] = value.clone()
    for file, due in ((run.weights, average), (run.last_weights, student.state_dict())):
        for key, value in load_file(file).items():
            assert torch.allclose(value.float(), due[key].float(), atol=2e-4), key
    student.load_state_dict(average)
    assert evaluate(student, setup.test)["top1"] == run.result["top1"]


def test_each_view_has_its_own_batch_norm_statistics():
    student, teacher = (create_model(name, 4).train() for name in ("wrn_10_1", "wrn_16_1"))
    batch = next(Loader(image_set(), 16, 8, train=True, views=2).epoch())
    distiller = Distiller(student, teacher, "kd", batch.images, views=2).train()
    state = {key: value.clone() for key, value in student.state_dict().items()}
    _, logits = distiller(*batch)
    other = create_model("wrn_10_1", 4).train()
    other.load_state_dict(state)
    due = torch.cat([other(view).logits for view in batch.images.chunk(2)])
    assert torch.allclose(logits, due, atol=1e-6)
    for key, value in other.state_dict().items():
        assert torch.allclose(student.state_dict()[key].float(), value.float(), atol=1e-6)


def test_a_run_with_two_views_says_what_a_step_costs(tmp_path):
    lines = []
    run = train(tiny_run(tmp_path, method="none", epochs=1, views=2), log=lines.append)
    assert lines[0] == f"{run.name}: 1 epoch of {STEPS} steps of 32 images, 2 views of 16"
