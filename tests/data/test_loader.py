import numpy as np
import pytest
import torch
from conftest import image_set
from PIL import Image
from torch.testing import assert_close

from kdnb.data.loader import Loader, centre_boxes, random_boxes, resample, resample_each
from kdnb.errors import InputError


@pytest.mark.parametrize("aspect", [None, torch.linspace(0.5, 2, 40)])
def test_an_epoch_depends_on_seed_and_number_alone(aspect):
    images = image_set(aspect=aspect)

    def epoch(seed, number, start=0):
        loader = Loader(images, 16, 8, train=True, seed=seed, padding=1, flip=True)
        return [[part.tolist() for part in batch[:3]] for batch in loader.epoch(number, start)]

    loader = Loader(images, 16, 8, train=True, seed=3, padding=1, flip=True)
    one_after_the_other = [
        [[part.tolist() for part in batch[:3]] for batch in loader.epoch(i)] for i in range(2)
    ]
    assert one_after_the_other == [epoch(3, 0), epoch(3, 1)]
    assert epoch(3, 0) not in (epoch(3, 1), epoch(4, 0))
    assert epoch(3, 0)[1:] == epoch(3, 0, start=1)  # entered in the middle


@pytest.mark.parametrize(
    ("n", "train", "sizes"),
    [(40, True, [16, 16, 8]), (33, True, [16, 16]), (33, False, [16, 16, 1])],
)
def test_every_image_comes_once_but_a_lone_last_one_of_training(n, train, sizes):
    images = image_set(n)
    loader = Loader(images, 16, 8, train=train)
    made = list(loader.epoch())
    assert [len(batch.labels) for batch in made] == sizes and len(loader) == len(sizes)
    index = torch.cat([batch.index for batch in made])
    assert len(index.unique()) == len(index) == sum(sizes) and index.dtype == torch.int64
    assert torch.equal(torch.cat([batch.labels for batch in made]), images.labels[index])
    assert torch.equal(index, torch.arange(n)) != train


def test_crops_are_windows_of_the_padded_image():
    images = image_set(n=80)
    loader = Loader(images, 80, 8, train=True, padding=2, flip=True)
    plan = loader.plan(0)
    made = loader.make(plan).images
    assert 0.3 < plan["flip"].float().mean() < 0.7 and plan["corner"].unique().tolist() == [
        0,
        1,
        2,
        3,
        4,
    ]
    for i, index in enumerate(plan["index"]):
        padded = np.pad(images.images[index].numpy(), ((0, 0), (2, 2), (2, 2)))
        y, x = plan["corner"][i].tolist()
        window = padded[:, y : y + 8, x : x + 8]
        window = window[:, :, ::-1] if plan["flip"][i] else window
        assert_close(
            made[i],
            torch.from_numpy((window.astype(np.float32) / 255 - 0.5) / 0.25),
            atol=1e-5,
            rtol=0,
        )


def test_photographs_are_not_padded():
    """Random-resized crops take the place of padding where images have an aspect."""
    images = image_set(aspect=torch.linspace(0.5, 2, 40))
    made = [
        torch.cat([b.images for b in Loader(images, 16, 8, train=True, padding=padding).epoch()])
        for padding in (0, 2)
    ]
    assert torch.equal(*made)


def test_test_images_are_whole_and_in_order():
    images = image_set()
    made = torch.cat(
        [batch.images for batch in Loader(images, 16, 8, padding=2, flip=True).epoch(5)]
    )
    assert_close(made, (images.images / 255 - 0.5) / 0.25, atol=1e-5, rtol=0)


@pytest.mark.parametrize("cut", [resample, resample_each])
@pytest.mark.parametrize(
    ("size", "box"), [(16, (0, 0, 40, 40)), (60, (4, 8, 20, 24)), (12, (5, 0, 30, 36))]
)
def test_resampling_is_pillows_resize(size, box, cut):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    # a smooth image: Pillow stops at the box's edge, resample sees the neighbours that lie beyond
    smooth = Image.fromarray(pixels).resize((40, 40), Image.Resampling.BICUBIC)
    left, top, width, height = box
    expected = smooth.resize(
        (size, size), Image.Resampling.BILINEAR, (left, top, left + width, top + height)
    )
    images = torch.from_numpy(np.array(smooth)).permute(2, 0, 1).repeat(2, 1, 1, 1)
    boxes = torch.tensor([[left / 40, top / 40, width / 40, height / 40]], dtype=torch.float64)
    ours = cut(images, torch.tensor([1]), boxes, size)[0].permute(1, 2, 0).float()
    error = (ours - torch.from_numpy(np.array(expected)).float()).abs()
    assert error[1:-1, 1:-1].max() < 1.01  # Pillow rounds twice
    assert error.mean() < 1


def test_both_ways_to_resample_agree_between_whole_pixels():
    images = image_set(n=6, size=64).images.float()
    images = torch.nn.functional.avg_pool2d(
        images, 9, 1, 4
    ).byte()  # smooth: a rounded box moves the picture a little
    boxes = torch.from_numpy(random_boxes(np.linspace(0.6, 1.8, 6), np.random.default_rng(1)))
    exact, rounded = (
        cut(images, torch.arange(6), boxes, 32).float() for cut in (resample, resample_each)
    )
    assert exact.shape == rounded.shape == (6, 3, 32, 32)
    assert (exact - rounded).abs().mean() < 1.5


def test_random_boxes_are_torchvisions():
    aspect = np.full(20_000, 1.5)
    left, top, width, height = random_boxes(aspect, np.random.default_rng(0)).T
    assert left.min() >= 0 and top.min() >= 0
    assert (left + width).max() <= 1 + 1e-9 and (top + height).max() <= 1 + 1e-9
    area, ratio = width * height, width * aspect / height
    assert 0.08 - 1e-9 <= area.min() < 0.1 and area.max() > 0.8
    assert ratio.min() >= 3 / 4 - 1e-9 and ratio.max() <= 4 / 3 + 1e-9
    assert abs(np.log(ratio).mean()) < 0.05  # no ratio is favoured, but for the largest areas


def test_random_boxes_of_extreme_images_fall_back_to_the_centre():
    left, top, width, height = random_boxes(
        np.array([50.0, 0.02]), np.random.default_rng(0), tries=1
    ).T
    assert width[0] * 50 / height[0] == pytest.approx(4 / 3) and left[0] == pytest.approx(
        (1 - width[0]) / 2
    )
    assert width[1] * 0.02 / height[1] == pytest.approx(3 / 4) and top[1] == pytest.approx(
        (1 - height[1]) / 2
    )


def test_centre_boxes_are_square_in_the_photograph():
    left, top, width, height = centre_boxes(np.array([2.0, 0.5, 1.0])).T
    assert width * np.array([2, 0.5, 1]) == pytest.approx(height)
    assert left + width / 2 == pytest.approx([0.5] * 3) and top + height / 2 == pytest.approx(
        [0.5] * 3
    )
    assert max(width[2], height[2]) == pytest.approx(224 / 256)


def test_what_cannot_be_batched():
    with pytest.raises(InputError, match="batch_size 64: there are only 40 training images"):
        Loader(image_set(), 64, 8, train=True)
    with pytest.raises(InputError, match="image_size is 16: the stored images are of 8 x 8 pixels"):
        Loader(image_set(), 16, 16)
