"""The cache of decoded photographs, without a data set around it."""

import io

import torch
from conftest import picture
from PIL import Image

from kdnb.data.cache import load_or_build, read_image


class Source:
    """A sequence of photographs that records what is taken from it."""

    def __init__(self, *makers):
        self.makers = makers
        self.taken = []

    def __len__(self):
        return len(self.makers)

    def __getitem__(self, index):
        self.taken.append(index)
        return self.makers[index]()


def no_file():
    raise FileNotFoundError("gone")


def test_photographs_come_from_any_source_and_are_decoded_once(tmp_path, cache_folder):
    """A path, an open file, an image, and one that cannot be opened; `facts` tells them apart."""
    path = tmp_path / "a.png"
    picture(20, 30, 1).save(path)
    source = Source(
        lambda: path, lambda: io.BytesIO(path.read_bytes()), no_file, lambda: Image.open(path)
    )
    pixels, aspect = load_or_build("any", tmp_path, {"of": "a"}, source, 8)
    assert set(source.taken) == {0, 1, 2, 3}
    assert aspect.tolist() == torch.tensor([20 / 30, 20 / 30, 0, 20 / 30]).tolist()
    assert all((image.numpy() == read_image(path, 8)[0]).all() for image in pixels)
    source.taken.clear()
    load_or_build("any", tmp_path, {"of": "a"}, source, 8)
    assert source.taken == [2]  # the damaged one may be readable by now
    load_or_build("any", tmp_path, {"of": "b"}, source, 8)
    assert set(source.taken) == {0, 1, 2, 3}
