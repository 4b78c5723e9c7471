"""The cache of decoded photographs, without a data set around it."""

import io
from functools import partial

from conftest import picture
from PIL import Image

from kdnb.data.cache import load_or_build
from kdnb.data.image_file import read_image


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
    images, is_readable, _ = load_or_build("any", tmp_path, {"of": "a"}, source, 8)
    assert set(source.taken) == {0, 1, 2, 3}
    assert is_readable.tolist() == [True, True, False, True]
    due = read_image(path, 8).transpose(2, 0, 1)
    assert len(images) == 3 and all((images[i].numpy() == due).all() for i in range(3))
    source.taken.clear()
    load_or_build("any", tmp_path, {"of": "a"}, source, 8)
    assert source.taken == [2]  # the damaged one may be readable by now
    load_or_build("any", tmp_path, {"of": "b"}, source, 8)
    assert set(source.taken) == {0, 1, 2, 3}


def test_a_flipped_bit_of_the_pixels_is_noticed(tmp_path, cache_folder, capsys):
    path = tmp_path / "a.png"
    picture(20, 30, 1).save(path)
    load = partial(load_or_build, "any", tmp_path, {}, [path], 8)
    first = load().images[0].clone()
    (file,) = cache_folder.glob("*.images")
    content = bytearray(file.read_bytes())
    content[-5] ^= 0x80
    file.write_bytes(content)
    assert (load().images[0] == first).all()
    assert "is damaged: the images are decoded anew" in capsys.readouterr().out
