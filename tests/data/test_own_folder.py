"""Folders of one's own photographs: names, kinds of images, and images without a label."""

import os
import struct
import zlib

import numpy as np
import pytest
from conftest import picture
from PIL import Image

from kdnb import InputError, load_data
from kdnb.data import DATASETS

SIZE = 16


@pytest.fixture
def own(tmp_path, cache_folder):
    for name in ("train/cat/a.png", "train/dog/b.png", "val/cat/c.png"):
        save(tmp_path / "own" / name)
    return tmp_path / "own"


def save(path, mode="RGB", seed=3):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(30, 20, seed).convert(mode).save(path)
    return path


def load(root, **how):
    return load_data("folder", root, SIZE, **how)


@pytest.mark.parametrize("name", ["a\nb", "tab\t", "caf\udce9", "\u2028", "\x7f"])
def test_a_class_folder_with_an_unusable_name_is_named(name, own):
    try:
        os.rename(own / "train/dog", own / "train" / name)
    except (OSError, UnicodeError):
        pytest.skip("this file system has no such names")
    with pytest.raises(
        InputError, match=r"own/train has a class folder named '.*': rename"
    ) as error:
        load(own)
    text = str(error.value)
    assert "\n" not in text and text.encode() and repr(name) in text
    assert DATASETS["folder"].digest(own) == ""


@pytest.mark.parametrize("name", ["cat ", "-rf", "ねこ\u3000いぬ", "a'b\"c", "%s {x} $HOME"])
def test_other_names_of_classes_are_fine(name, own):
    os.rename(own / "train/dog", own / "train" / name)
    train, _ = load(own)
    assert set(train.classes) == {"cat", name} and len(train) == 2


def test_a_file_name_may_be_any_bytes(own, capsys):
    try:
        save(own / "train/cat/caf\udce9.png", seed=5)
    except (OSError, UnicodeError):
        pytest.skip("this file system has no such names")
    (own / "train/cat/\udce9.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"decoded .*train/cat/\\udce9.png; skip_damaged"):
        load(own)
    assert len(load(own, skip_damaged=True)[0]) == 3
    capsys.readouterr().out.encode()


def write_deep_png(path, pixels):
    """A PNG of 16 bits a channel, which PIL cannot write; pixels: uint16 (height, width, 3)."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    head = struct.pack(">2I5B", pixels.shape[1], pixels.shape[0], 16, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n"
    for kind, content in ((b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")):
        check = struct.pack(">I", zlib.crc32(kind + content))
        data += struct.pack(">I", len(content)) + kind + content + check
    path.write_bytes(data)


def test_colours_of_16_bits_become_those_of_8(own):
    pixels = np.asarray(picture(30, 20, 4))
    write_deep_png(own / "train/cat/deep.png", pixels.astype(np.uint16) * 257)
    Image.fromarray(pixels).save(own / "train/cat/flat.png")
    images = load(own)[0].images
    assert (images[1] == images[2]).all() and images[1].float().std() > 10


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_greys_of_more_than_8_bits_are_named(mode, own):
    dtype = {"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]
    path = own / "train/cat/deep.tif"
    Image.fromarray(np.full((9, 9), 40_000, dtype)).save(path)
    with pytest.raises(InputError, match=r"not an image of 8 bits a channel.*cat/deep\.tif"):
        load(own)


@pytest.mark.parametrize(
    ("name", "mode", "near"),
    [("x.jpg", "CMYK", 12), ("x.tif", "CMYK", 2), ("x.jpg", "L", 6), ("x.gif", "P", 40)],
)
def test_images_of_other_colours_are_right(name, mode, near, own):
    save(own / "train/cat" / name, mode)
    images = load(own)[0].images
    expected = images[0].float()  # the same picture, as a PNG
    if mode == "L":
        expected = np.asarray(Image.open(own / "train/cat/a.png").convert("L"))
    difference = np.abs(np.asarray(images[1], float) - np.asarray(expected, float))
    assert difference.mean() < near


def test_images_without_a_label_lie_next_to_train(own):
    digest = DATASETS["folder"].digest(own)
    for name in ("x.png", "deep/er/y.JPG", "._z.png", "notes.txt"):
        save(own / "unlabelled" / name) if name[-1] != "t" else None
    (own / "unlabelled/notes.txt").write_text("not an image")
    (own / "unlabelled/._z.png").write_bytes(b"")
    train, val = load(own)
    assert train.labels.tolist() == [0, 1, -1, -1] and val.labels.tolist() == [0]
    assert [path.name for path in train.files] == ["a.png", "b.png", "y.JPG", "x.png"]
    assert train.classes == ("cat", "dog") and DATASETS["folder"].digest(own) != digest
    (own / "unlabelled/x.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"1 of 5 images .*: unlabelled/x\.png; skip_damaged"):
        load(own)


def test_hidden_folders_and_links_into_the_tree_add_no_image(own, capsys):
    for name in (".ipynb_checkpoints/0.png", "@eaDir/0.png", ".Trash-1000/files/0.png"):
        save(own / "train/cat" / name)
    save(own / "train/@eaDir/x.png")
    (own / "train/mice").symlink_to("cat")
    (own / "train/cat/self").symlink_to(".")
    (own / "train/dog/up").symlink_to("..")
    (own / "train/dog/other.png").symlink_to("../cat/a.png")
    outside = save(own.parent / "outside/sub/o.png", seed=7)
    (own / "train/dog/outside").symlink_to(outside.parents[1])
    (own / "train/dog/twice").symlink_to(outside.parents[1])
    (own / "train/dog/again.png").symlink_to(outside)
    train, _ = load(own)
    assert train.classes == ("cat", "dog")
    assert [path.name for path in train.files] == ["a.png", "again.png", "b.png"]
    assert "6 files in" in (out := capsys.readouterr().out) and out.count("train/mice") == 1


def test_a_link_to_nothing_is_a_damaged_image_wherever_it_points(own):
    for i, target in enumerate(("../cat/gone.png", "/nowhere/gone.png", f"link{2}.png")):
        (own / f"train/dog/link{i}.png").symlink_to(target)
    with pytest.raises(InputError, match=r"3 of .* cannot be decoded .*link0.*link1.*link2"):
        load(own)


def test_what_is_no_image_or_no_regular_file_is_named(own, capsys):
    for end in ("jfif", "jpe", "gif", "webp", "jp2"):
        save_as = {"jfif": "JPEG", "jpe": "JPEG"}.get(end)
        picture(30, 20, 4).save(own / f"train/cat/x.{end}", save_as)
    os.mkfifo(own / "train/cat/pipe.jpg")
    (own / "train/cat/IMG.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    assert len(load(own)[0]) == 7
    assert "2 files in" in (out := capsys.readouterr().out)
    assert "train/cat/IMG.HEIC, train/cat/pipe.jpg" in out


def test_a_postscript_file_reaches_no_other_program(own, tmp_path, monkeypatch):
    program = tmp_path / "bin/gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {tmp_path / 'was-run'}\necho 10.0\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None, raising=False)
    header = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"
    (own / "train/cat/photo.jpg").write_bytes(header)
    with pytest.raises(InputError, match=r"cat/photo\.jpg; skip_damaged"):
        load(own)
    assert not (tmp_path / "was-run").exists()


def test_damaged_names_and_a_digest_of_the_pixels_are_known(own):
    (own / "train/cat/torn.png").write_bytes(b"torn")
    train, _ = load(own, skip_damaged=True)
    assert train.damaged == ("train/cat/torn.png",)
    save(own / "train/cat/torn.png", seed=8)
    again, _ = load(own, skip_damaged=True)
    assert again.damaged == () and again.pixels_digest != train.pixels_digest
