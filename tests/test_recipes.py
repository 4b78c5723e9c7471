import pytest

from kdnb.errors import InputError
from kdnb.recipes import RECIPES, recipe


def test_cifar100_is_the_official_recipe():
    r = RECIPES["cifar100"]
    assert (r.teacher, r.student) == ("wrn_40_2", "wrn_16_2")
    assert (r.epochs, r.batch_size, r.lr, r.momentum, r.weight_decay, r.gamma) == (240, 64, 0.05, 0.9, 5e-4, 0.1)
    assert [m * r.epochs for m in r.milestones] == [150, 180, 210]
    assert (r.image_size, r.padding, r.flip) == (32, 4, True)


def test_zeros_and_empty_text_mean_as_it_is():
    assert recipe("cifar100", epochs=0, lr=0.0, teacher="") == RECIPES["cifar100"]
    assert recipe("cifar100", epochs=5, teacher="wrn_16_2").teacher == "wrn_16_2"


def test_image_size_moves_the_canvas_with_it():
    assert recipe("stanford40", image_size=112).canvas_size == 128
    with pytest.raises(InputError, match="image_size 64: cifar100 has images of 32 pixels"):
        recipe("cifar100", image_size=64)


def test_unknown_names():
    with pytest.raises(InputError, match="unknown dataset 'mnist': choose one of cifar100, digits, folder, stanford40"):
        recipe("mnist")
    with pytest.raises(InputError, match="unknown recipe entry 'epoch'"):
        recipe("digits", epoch=3)


@pytest.mark.parametrize("epochs", [1, 2, 5, 6, 8, 240])
@pytest.mark.parametrize("name", RECIPES)
def test_shortened_schedules_still_fall(name, epochs):
    r = recipe(name, epochs=epochs)
    lrs = [r.lr_at(epoch) for epoch in range(epochs)]
    assert lrs == sorted(lrs, reverse=True)
    assert lrs[-1] < r.lr or epochs == 1
