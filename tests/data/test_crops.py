"""Boxes and crops, against torchvision's."""

import numpy as np
import pytest
import torch
from conftest import image_set, picture
from PIL import Image
from scipy.stats import ks_2samp
from torch.testing import assert_close
from torchvision.transforms import v2

from kdnb.data.crops import (
    MAX_ASPECT,
    centre_boxes,
    copy_windows,
    crop_each,
    gather_windows,
    random_boxes,
    resize_windows,
)
from kdnb.data.image_file import read_image
from kdnb.data.ragged import Ragged


def crop_windows(images, index, boxes, size, windows=gather_windows):
    """The crops as an accelerator makes them."""
    pixels = windows(images, index, boxes, *boxes[:, 2:].amax(0).tolist())
    return resize_windows(pixels, boxes, size)


@pytest.mark.parametrize("size", [64, 112, 224])
@pytest.mark.parametrize("shape", [(300, 401), (530, 353), (160, 160), (97, 800)])
def test_a_test_crop_is_torchvisions_to_the_pixel(size, shape, tmp_path):
    """Networks that others trained see what they were trained on."""
    picture(*shape, seed=1).save(tmp_path / "a.png")
    resize = round(size * 256 / 224)
    pipeline = v2.Compose([v2.Resize(resize), v2.CenterCrop(size), v2.PILToTensor()])
    images = Ragged.from_arrays([read_image(tmp_path / "a.png", resize)])
    boxes = torch.from_numpy(centre_boxes(images.sizes.numpy()))
    crops = crop_each(images, torch.tensor([0]), boxes, size)
    assert torch.equal(crops[0], pipeline(Image.open(tmp_path / "a.png")))
    assert torch.equal(crop_windows(images, torch.tensor([0]), boxes, size), crops.float())


@pytest.mark.parametrize("size", [12, 16, 60])
def test_a_training_crop_is_torchvisions_resized_crop(size):
    image = picture(50, 40, seed=2)
    images = Ragged.from_arrays([np.zeros((9, 11, 3), np.uint8), np.asarray(image)])
    boxes = torch.tensor([[4, 8, 20, 25], [0, 0, 50, 40], [30, 3, 16, 16]])
    index = torch.tensor([1, 1, 1])
    due = [
        v2.functional.resized_crop(image, top, left, height, width, [size, size])
        for left, top, width, height in boxes.tolist()
    ]
    due = torch.stack([v2.functional.pil_to_tensor(each) for each in due]).float()
    for cut in (crop_each, crop_windows):
        error = (cut(images, index, boxes, size).float() - due).abs()
        assert error.max() <= 1.5 and error.mean() < 0.4  # Pillow rounds twice


def test_an_accelerators_crops_are_those_of_the_cpu():
    """And of a set that stays on disk: its windows differ only where no box is."""
    images = image_set(n=12, size=40, aspect=torch.linspace(0.3, 3, 12))
    index = torch.tensor([11, 3, 3, 0, 7])
    boxes = random_boxes(images.images.sizes.numpy()[index], np.random.default_rng(1))
    boxes = torch.from_numpy(boxes)
    for size in (24, 40, 56):
        crops = crop_windows(images.images, index, boxes, size)
        assert_close(crops, crop_each(images.images, index, boxes, size).float(), atol=1.01, rtol=0)
        assert torch.equal(crops, crop_windows(images.images, index, boxes, size, copy_windows))


@pytest.mark.parametrize(("height", "width"), [(160, 213), (240, 160), (60, 400), (33, 500)])
def test_random_boxes_are_distributed_as_torchvisions(height, width):
    """Scale, ratio and position, against 3,000 of RandomResizedCrop's own draws."""
    image = torch.empty(3, height, width)
    transform = v2.RandomResizedCrop(8)
    draws = [transform.make_params([image]) for _ in range(3000)]
    left, top, w, h = (
        np.array([draw[name] for draw in draws]) for name in ("left", "top", "width", "height")
    )
    sizes = np.tile([height, width], (30_000, 1))
    ours = random_boxes(sizes, np.random.default_rng(0)).T
    assert (ours >= 0).all() and (ours[2:] >= 1).all()
    assert (ours[0] + ours[2]).max() <= width and (ours[1] + ours[3]).max() <= height
    for measure in (
        lambda left, top, w, h: w * h,
        lambda left, top, w, h: w / h,
        lambda left, top, w, h: left + w / 2,
        lambda left, top, w, h: top + h / 2,
    ):
        assert ks_2samp(measure(left, top, w, h), measure(*ours)).pvalue > 1e-3


def test_random_boxes_of_strips_are_their_centre():
    """None fits; so nothing is lost when a strip is cut to MAX_ASPECT."""
    for aspect in (MAX_ASPECT, 50):
        boxes = random_boxes(
            np.array([[60, 60 * aspect], [60 * aspect, 60]]), np.random.default_rng(0)
        )
        middle = 30 * aspect
        assert boxes.tolist() == [[middle - 40, 0, 80, 60], [0, middle - 40, 60, 80]]
    params = v2.RandomResizedCrop(8).make_params([torch.empty(3, 60, 60 * 50)])
    assert params == {"left": 1460, "top": 0, "width": 80, "height": 60}


def test_centre_boxes_are_a_share_of_the_shorter_side():
    sizes = np.array([[256, 341], [341, 256], [100, 100]])
    assert centre_boxes(sizes).tolist() == [[58, 16, 224, 224], [16, 58, 224, 224], [6, 6, 88, 88]]
    assert centre_boxes(sizes[:1], 1.0).tolist() == [[42, 0, 256, 256]]
