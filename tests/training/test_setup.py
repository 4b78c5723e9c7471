"""kdnb.training.setup: what is refused before anything is trained."""

import pytest
import torch
from helpers import quiet, tiny, tiny_run

from kdnb import InputError, create_model, train
from kdnb.models import base


@pytest.fixture
def tied_network(monkeypatch):
    """A registered network in which two convolutions share their weight; its name."""
    monkeypatch.setattr(base, "FAMILIES", base.FAMILIES.copy())

    @base.register(r"tied_(\d)", "tied_{}", "tied_N")
    def build(n, num_classes):
        model = create_model(f"wrn_16_{n}", num_classes)
        convolutions = [module for module in model.modules() if isinstance(module, torch.nn.Conv2d)]
        shapes = [tuple(module.weight.shape) for module in convolutions]
        first, second = [i for i, shape in enumerate(shapes) if shape == shapes[-1]][-2:]
        convolutions[second].weight = convolutions[first].weight
        return model

    return "tied_1"


def test_tied_parameters_are_refused_before_training(tied_network, tmp_path):
    model = create_model(tied_network, 4)
    names = {}
    for name, value in model.state_dict().items():
        names.setdefault(value.data_ptr(), []).append(name)
    (tied,) = (group for group in names.values() if len(group) > 1)
    with pytest.raises(InputError) as error:
        train(tiny_run(tmp_path, student=tied_network, method="none"), log=quiet)
    first, second = (f"student.{name}" for name in tied)
    assert str(error.value).startswith(f"{first} and {second} share memory (tied parameters)")
    assert not list(tmp_path.iterdir())
