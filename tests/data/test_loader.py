import sys
import weakref

import numpy as np
import pytest
import torch
from conftest import image_set
from torch.testing import assert_close

from kdnb.data.crops import crop_each
from kdnb.data.loader import Loader
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
    """Random-resized crops take the place of padding."""
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


def test_test_crops_are_cut_once_where_memory_allows(monkeypatch):
    images = image_set(10, 20, aspect=torch.linspace(0.5, 2, 10))
    cuts = []
    module = sys.modules["kdnb.data.crop_cache"]
    cut = module.crop_each
    monkeypatch.setattr(module, "crop_each", lambda *each: cuts.append(each[1]) or cut(*each))
    first = Loader(images, 4, 16)
    part = first.take([1, 2]).images
    batches = [[batch.images for batch in first.epoch()] for _ in range(2)]
    assert torch.cat(cuts).tolist() == [1, 2, 0, 3, *range(4, 10)]
    assert torch.equal(batches[0][0][1:3], part)
    monkeypatch.setattr(module, "fits_in_memory", lambda nbytes: False)
    without = [batch.images for batch in Loader(images, 4, 16).epoch()]
    for one, two, three in zip(*batches, without, strict=True):
        assert torch.equal(one, two) and torch.equal(one, three)


def test_photographs_are_cropped_by_the_plan():
    images = image_set(n=20, size=30, aspect=torch.linspace(0.5, 2, 20))
    for train in (False, True):
        loader = Loader(images, 20, 16, train=train, flip=True)
        plan = loader.plan(2)
        crops = crop_each(images.images, plan["index"], plan["box"], 16)
        if train:
            crops = torch.where(plan["flip"].view(-1, 1, 1, 1), crops.flip(3), crops)
        assert_close(loader.make(plan).images, (crops / 255 - 0.5) / 0.25, atol=1e-5, rtol=0)


PHOTOGRAPHS = image_set(n=45, size=30, aspect=torch.linspace(0.5, 2, 45))
TWO_VIEWS = {"views": 2, "mix": "cutmix", "label_smoothing": 0.1}
KINDS = {
    "photographs": {"images": PHOTOGRAPHS},
    "padded": {"images": image_set(n=45), "padding": 2},
    "plain": {"images": image_set(n=45)},
    "two views of photographs": {"images": PHOTOGRAPHS, "teacher_size": 12} | TWO_VIEWS,
    "two views": {"images": image_set(n=45), "padding": 2} | TWO_VIEWS,
    "augmented": {"images": image_set(n=45), "augment": "trivialaugment", "mix": "mixup"},
}


def equal(batch, other):
    """Whether two batches have the same fields with the same bits."""
    return all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a is b
        for a, b in zip(batch, other, strict=True)
    )


def loaders(kind, train=True):
    """A loader whose images are on its device, and one that streams them, both on a CPU."""
    both = []
    for on_device in (True, False):
        loader = Loader(
            **KINDS[kind], batch_size=10, size=8, train=train, flip=True, on_device=on_device
        )
        loader.pixels.crops_each = False  # as on an accelerator
        both.append(loader)
    return both


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_streamed_batches_have_the_same_bits(kind, train):
    held, streamed = loaders(kind, train)
    for start in (0, 3):
        for due, batch in zip(held.epoch(1, start), streamed.epoch(1, start), strict=True):
            assert equal(due, batch)
    assert equal(held.take([7, 2]), streamed.take([7, 2]))


@pytest.mark.parametrize("kind", ["two views of photographs", "two views", "augmented"])
def test_an_augmented_epoch_may_be_entered_in_the_middle(kind):
    loader = Loader(**KINDS[kind], batch_size=10, size=8, train=True, flip=True)
    for due, batch in zip([*loader.epoch(2)][3:], loader.epoch(2, 3), strict=True):
        assert equal(due, batch)
    assert not equal(next(loader.epoch(2)), next(loader.epoch(3)))


@pytest.mark.parametrize("images", [image_set(n=45), PHOTOGRAPHS], ids=["padded", "photographs"])
def test_two_views_are_a_weak_and_a_strong_one_of_the_same_images(images):
    """The weak view is that of a run with one; crop and flip of the strong one are its own."""
    how = {"batch_size": 20, "size": 8, "train": True, "padding": 2, "flip": True}
    batch = next(Loader(images, **how, views=2).epoch())
    weak = next(Loader(images, **how).epoch())
    assert torch.equal(batch.images[:20], weak.images) and len(batch.images) == 40
    assert torch.equal(batch.labels, weak.labels.repeat(2))
    assert torch.equal(batch.index, weak.index.repeat(2))
    loader = Loader(images, **how, views=2)
    plan = loader.plan(0)
    plan["operation"].zero_()  # identity
    rest = loader.make({name: rows[:20] for name, rows in plan.items()}).images
    assert not torch.equal(rest[20:], batch.images[20:])
    assert (rest[20:] != rest[:20]).flatten(1).any(1).float().mean() > 0.8


def test_without_augmentation_every_epoch_has_the_same_images():
    for images in (image_set(n=45), PHOTOGRAPHS):
        loader = Loader(images, 45, 8, train=True, padding=2, flip=True, augment="none")
        first, second = (next(loader.epoch(number)) for number in (0, 1))
        assert torch.equal(
            first.images[first.index.argsort()], second.images[second.index.argsort()]
        )


@pytest.mark.parametrize("kind", KINDS)
def test_a_loader_copies_no_images_of_a_set_that_is_streamed(kind):
    """A memory map larger than the memory: not even padding may copy it."""
    _, streamed = loaders(kind)
    assert streamed.pixels.stored is KINDS[kind]["images"].images


def test_a_device_gets_one_copy_of_images_for_all_of_their_loaders():
    """The copy lives as long as a loader, and the images as long as it: ids come again."""
    images = image_set(aspect=None)
    first, second = (Loader(images, 16, 8, train=True, seed=i, device="meta") for i in range(2))
    assert first.pixels.stored is second.pixels.stored
    assert first.pixels.stored.device.type == "meta"
    assert Loader(images, 16, 8).pixels.stored is images.images
    source = weakref.ref(images.images)
    pixels = first.pixels
    del images, first, second
    assert source() is pixels.copy.source


def test_what_cannot_be_batched():
    with pytest.raises(InputError, match="batch_size 64: there are only 40 training images"):
        Loader(image_set(), 64, 8, train=True)
    with pytest.raises(InputError, match="image_size is 16: the stored images are of 8 x 8 pixels"):
        Loader(image_set(), 16, 16)
