"""kdnb.data: arrays, presets, digits, CIFAR-100, folders of photographs and their cache."""

import hashlib
import os
import pickle
import resource
import shutil
import socket
import sys
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import NOBODY, image_set, left_in, picture, resized
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo
from sklearn.datasets import load_digits
from torchvision.datasets import CIFAR100
from torchvision.transforms import v2

from kdnb import Run
from kdnb.data import DATASETS, Images, Preset, cache, load_data, register
from kdnb.data.download import downloading
from kdnb.data.image_file import read_image
from kdnb.data.ragged import Ragged
from kdnb.errors import InputError
from kdnb.paths import data_folder

DATA = data_folder()
with_cifar100 = pytest.mark.skipif(
    not (DATA / "cifar-100-python").is_dir(), reason=f"no CIFAR-100 in {DATA}"
)


@pytest.fixture(autouse=True)
def alone(cache_folder, monkeypatch):
    monkeypatch.setattr(CIFAR100, "url", NOBODY + "cifar-100-python.tar.gz")


# ------------------------------------------------------------------------ Images, Preset, registry


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("n", [-1, 0, 1, 4, 8, 9])
def test_limit_takes_from_each_class_in_turn(n, ragged):
    turns = [1, 4, 0, 2, 7, 5, 3, 6, 8]  # of the classes 0, 1, 2; 0, 1, 2; 0, 0, 0
    pixels = torch.arange(9, dtype=torch.uint8).reshape(9, 1, 1, 1).repeat(1, 3, 2, 2)
    labels = torch.tensor([2, 0, 0, 0, 1, 2, 0, 1, 0])
    if ragged:
        pixels = Ragged.from_arrays([image.permute(1, 2, 0).numpy() for image in pixels])
    images = Images(pixels, labels, ("a", "b", "c"), (0.5,) * 3, (0.5,) * 3)
    few, due = images.limit(n), turns[:n] if 0 < n < 9 else list(range(9))
    assert [int(few.images[i][0, 0, 0]) for i in range(len(few))] == due
    assert few.labels.tolist() == labels[due].tolist()
    size = "2 pixels and more" if ragged else "2 x 2 pixels"
    assert repr(few) == f"Images({len(due)} of {size}, 3 classes)"
    with pytest.raises(InputError, match="train_limit is 10: there are only 9 training images"):
        images.limit(10)


def test_a_share_of_every_class_is_held_out():
    images = image_set(n=22)  # of four classes in turn: 6, 6, 5, 5
    remaining, held_out = images.split(0.3)  # 1.8 of 6, 1.5 of 5: two each, the last
    assert len(remaining) == 14 and held_out.labels.tolist() == [2, 3, 0, 1] * 2
    assert torch.equal(held_out.images, images.images[14:]) and torch.equal(
        remaining.images, images.images[:14]
    )
    with pytest.raises(
        InputError, match=r"validation is 0\.9: that leaves no training image of class 0"
    ):
        images.split(0.9)


def test_a_data_set_is_a_registered_function(monkeypatch, tmp_path):
    monkeypatch.setitem(DATASETS, "noise", None)  # and away with it after the test
    preset = Preset(
        student="a", teacher="b", image_size=12, stored_size=16, epochs=1, batch_size=2, lr=0.1
    )

    @register("noise", preset, digest=lambda root: root.name)
    def load(root, size, *, skip_damaged):
        return image_set(40, size), image_set(20, size, seed=int(skip_damaged))

    train, test = load_data("noise", tmp_path)
    assert (len(train), len(test), train.size) == (40, 20, 16)
    assert load_data("noise", size=8)[0].size == 8 and DATASETS["noise"].digest(Path("a/b")) == "b"
    with pytest.raises(InputError, match=f"choose one of {', '.join(sorted(DATASETS))}$"):
        load_data("cifar10", tmp_path)


def test_where_the_data_lie(monkeypatch, tmp_path):
    monkeypatch.setenv("KDNB_DATA", "~/there")
    assert data_folder(tmp_path) == tmp_path and data_folder() == Path.home() / "there"
    with pytest.raises(InputError, match="there is no home folder for '~nobody-here'"):
        data_folder("~nobody-here/data")
    monkeypatch.delenv("KDNB_DATA")
    assert data_folder() == Path(__file__).parents[2] / "data"


def test_cifar100_is_trained_by_the_official_recipe():
    p = DATASETS["cifar100"].preset
    assert (p.teacher, p.student, p.image_size, p.padding, p.flip) == (
        "wrn_40_2",
        "wrn_16_2",
        32,
        4,
        True,
    )
    assert (p.epochs, p.batch_size, p.lr, p.momentum, p.weight_decay, p.gamma) == (
        240,
        64,
        0.05,
        0.9,
        5e-4,
        0.1,
    )
    assert [m * p.epochs for m in p.milestones] == [150, 180, 210]
    runs = [
        Run(dataset="cifar100", student=name)
        for name in ("wrn_16_2", "cifar_shufflenetv1", "cifar_mobilenetv2")
    ]
    assert [run.lr for run in runs] == [0.05, 0.01, 0.01] and not any(run.overrides for run in runs)


@pytest.mark.parametrize("epochs", [1, 2, 5, 6, 8, 240])
@pytest.mark.parametrize("name", ["cifar100", "stanford40", "digits", "folder"])
def test_schedules_keep_their_shape_when_shortened(name, epochs):
    preset = DATASETS[name].preset
    drops = [
        max(1, int(m * epochs)) for m in preset.milestones
    ]  # the first epoch has the full rate
    for epoch in np.arange(0, epochs, 0.125):
        due = 0.3 * 0.1 ** sum(epoch >= drop for drop in drops)  # between epochs only
        if preset.schedule == "cosine":
            due = 0.15 * (1 + np.cos(np.pi * epoch / epochs))
        elif not drops:
            due = np.interp(epoch / epochs, [0, 0.3, 1], [0.012, 0.3, 0])
        assert preset.lr_at(epoch, epochs, 0.3) == pytest.approx(due)


def test_stored_size_follows_image_size(tmp_path):
    due = {
        ("digits", 0): 16,
        ("digits", 8): 8,
        ("cifar100", 32): 32,
        ("folder", 0): 128,
        ("stanford40", 112): 128,
    }
    assert {key: DATASETS[key[0]].preset.stored(key[1]) for key in due} == due
    for name, size, needed in (
        ("digits", 7, "at least 8"),
        ("cifar100", 64, "32"),
        ("folder", -1, "at least 8"),
    ):
        for ask in (
            DATASETS[name].preset.stored,
            lambda size, name=name: load_data(name, tmp_path, size),
        ):
            with pytest.raises(
                InputError, match=f"image_size is {size}: for these images it has to be {needed}$"
            ):
                ask(size)


# ---------------------------------------------------------------------------- digits and CIFAR-100


def test_digits():
    train, test = load_data("digits", size=8)
    assert (len(train), len(test), train.size, train.aspect) == (1437, 360, 8, None)
    assert train.images.dtype == torch.uint8 and train.labels.dtype == torch.int64
    every = [
        (s.images[i, 0].flatten().tolist(), int(s.labels[i]))
        for s in (train, test)
        for i in range(len(s))
    ]
    pixels, labels = load_digits(return_X_y=True)
    due = zip(np.rint(pixels / 16 * 255).astype(int).tolist(), labels, strict=True)
    assert sorted(every) == sorted(due)  # each once, in one split
    assert (test.labels.bincount() - 36).abs().max() <= 1 and len(test.classes) == 10
    scaled = train.images.double() / 255
    assert train.mean == pytest.approx(scaled.mean((0, 2, 3)).tolist())
    assert train.std == pytest.approx(scaled.std((0, 2, 3)).tolist(), rel=1e-4)
    large, again = load_data("digits")
    assert (
        (large.size, large.mean, large.std)
        == (16, train.mean, train.std)
        == (again.size, test.mean, test.std)
    )
    assert torch.equal(large.images[:, 0, ::15, ::15], train.images[:, 2, ::7, ::7])
    assert torch.equal(again.labels, test.labels)
    corner = train.images[:, :, 2:4, 3:5].double()  # the enlarged pixel (5, 7) lies at (2.25, 3.25)
    due = (corner * torch.tensor([[9, 3], [3, 1]]) / 16).sum((2, 3)).round()
    assert torch.equal(large.images[:, :, 5, 7], due.byte())


@with_cifar100
def test_cifar100():
    train, test = load_data("cifar100", DATA)
    assert train.images.shape == (50_000, 3, 32, 32) and test.images.shape == (10_000, 3, 32, 32)
    assert train.images.is_contiguous() and train.images.dtype == torch.uint8
    assert (
        train.labels.bincount().tolist() == [500] * 100
        and test.labels.bincount().tolist() == [100] * 100
    )
    assert train.classes[:2] == ("apple", "aquarium_fish") and len(test.classes) == 100
    means = train.images.mean((0, 2, 3), dtype=torch.float32) / 255
    assert means.tolist() == pytest.approx(
        train.mean, abs=1e-3
    )  # red, green and blue in their places
    image, label = CIFAR100(DATA, train=False)[77]
    assert (
        np.array_equal(np.asarray(image), test.images[77].permute(1, 2, 0))
        and label == test.labels[77]
    )


class Trap:
    """A pickle that makes a folder when it is opened."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_cifar100_is_downloaded_and_no_stranger_unpickled(server, tmp_path, monkeypatch):
    folder, pixels = (
        tmp_path / "cifar-100-python",
        np.random.default_rng(0).integers(0, 256, (5, 3072), np.uint8),
    )
    contents = {  # small files in CIFAR-100's format, whose MD5 sums become the official ones
        "meta": {"fine_label_names": ["fox", "owl"]},
        "train": {"data": pixels, "fine_labels": [0, 1, 0, 1, 0]},
        "test": {"data": pixels[:3], "fine_labels": [0, 1, 1]},
    }
    packed = {name: pickle.dumps(content) for name, content in contents.items()}
    md5 = {name: hashlib.md5(content).hexdigest() for name, content in packed.items()}
    monkeypatch.setattr(
        CIFAR100, "meta", {"filename": "meta", "key": "fine_label_names", "md5": md5["meta"]}
    )
    for name in ("train", "test"):
        monkeypatch.setattr(CIFAR100, f"{name}_list", [[name, md5[name]]])
    with pytest.raises(InputError) as error:  # without a network
        load_data("cifar100", tmp_path)
    assert CIFAR100.url in str(error.value) and str(folder) in str(error.value)
    archive = server.folder / "cifar-100-python.tar.gz"
    for name, content in packed.items():
        (server.folder / name).write_bytes(content)
    with tarfile.open(archive, "w:gz") as tar:
        for name in packed:
            tar.add(server.folder / name, f"{folder.name}/{name}")
    with monkeypatch.context() as patch:
        patch.setattr(CIFAR100, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
        patch.setattr(CIFAR100, "url", server.url + archive.name)
        train, test = load_data("cifar100", tmp_path)
    assert (len(train), test.labels.tolist(), test.classes) == (5, [0, 1, 1], ("fox", "owl"))
    assert np.array_equal(test.images.flatten(1), pixels[:3])  # channels, rows, columns
    for name in ("meta", "train"):
        (folder / name).write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
        with pytest.raises(InputError, match="not complete"):
            load_data("cifar100", tmp_path)
    assert not (tmp_path / "sprung").exists()


# ------------------------------------------------------------------------------ folders, the cache

NAMES = ["train/cat/a.jpg", "train/cat/more/b.PNG", "train/dog/c.jpeg", "valid/dog/d.png"]


@pytest.fixture
def own(tmp_path):
    """A tree of folders per class, with what editors and systems leave lying about."""
    root = tmp_path / "own"
    for seed, name in enumerate([*NAMES, "test/dog/e.png"]):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        picture(20 + seed, 30, seed).save(root / name)
    (root / "train/.ipynb_checkpoints").mkdir()
    (root / "train/cat/._a.jpg").write_bytes(b"\x00\x05\x16\x07")
    return root


def load(root, size=8, **how):
    return load_data("folder", root, size, **how)


@pytest.fixture
def decoded(monkeypatch):
    """The names of the images that are decoded from here on."""
    names = []
    monkeypatch.setattr(
        cache, "read_image", lambda path, **how: names.append(path.name) or read_image(path, **how)
    )
    return names


def same(images, others):
    """Whether two sets of photographs have the same sizes and pixels."""
    return torch.equal(images.sizes, others.sizes) and torch.equal(images.pixels, others.pixels)


def test_folder_takes_the_first_of_valid_val_test(own):
    (own / "val/cat").mkdir(parents=True)
    picture(10, 10, 50).save(own / "val/cat/x.png")
    for held_out, label in (("valid/dog/d.png", 1), ("val/cat/x.png", 0), ("test/dog/e.png", 1)):
        train, other = load(str(own), 16)
        assert train.classes == other.classes == ("cat", "dog") and train.std == (
            0.229,
            0.224,
            0.225,
        )
        assert train.labels.tolist() == [0, 0, 1] and other.labels.tolist() == [label]
        assert train.files == [own / name for name in NAMES[:3]]
        assert np.array_equal(other.images[0].permute(1, 2, 0), resized(own / held_out, 16))
        shutil.rmtree(own / held_out[: held_out.index("/")])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda r: (r / "train").rename(r / "training"),
            "data_root .*own' has to contain the folder train and one of valid, val and",
        ),
        (
            lambda r: [(r / name).rename(r / "train" / name) for name in ("valid", "test")],
            "one of valid, val and test",
        ),
        (lambda r: (r / "valid/dog").rename(r / "valid/wolf"), "lacks: wolf"),
        (lambda r: (r / "train/fox").mkdir(), "train: fox"),
        (lambda r: (r / "valid/cat").mkdir(), "valid: cat"),
        (lambda r: shutil.rmtree(r / "valid/dog"), "valid has no class folders"),
    ],
)
def test_folder_that_lacks_something(damage, message, own, monkeypatch):
    assert len(DATASETS["folder"].digest(own)) == 8
    damage(own)
    monkeypatch.setenv("KDNB_DATA", str(own))
    with pytest.raises(InputError, match=message):
        load_data("folder")
    assert DATASETS["folder"].digest(own) == ""


def test_the_digest_tells_folders_apart_without_opening_images(own, decoded):
    digest = DATASETS["folder"].digest
    other = shutil.copytree(own, own.parent / "other/own")
    os.utime(other / NAMES[0], ns=(1, 1))
    assert digest(own) == digest(other) and int(digest(own), 16) >= 0
    picture(9, 9, 1).save(other / NAMES[0])
    seen = {digest(own), digest(other)}
    (other / NAMES[0]).rename(other / "train/dog/a.jpg")
    assert len(seen | {digest(other)}) == 3 and not decoded


def test_cache_lies_in_a_folder_of_its_own(own, cache_folder, monkeypatch):
    before, parent = left_in(own), own.parent
    monkeypatch.setenv("XDG_CACHE_HOME", str(parent / "xdg"))
    monkeypatch.setenv("HOME", str(parent))
    for variable, place in (
        ("KDNB_CACHE", cache_folder),
        ("XDG_CACHE_HOME", "xdg/kdnb"),
        ("HOME", ".cache/kdnb"),
    ):
        load(own)
        assert len(left_in(parent / place)) == 2 and left_in(own) == before
        monkeypatch.delenv(variable)


def test_photographs_are_decoded_once_and_opened_without_a_lock(
    own, cache_folder, decoded, monkeypatch
):
    first = load(own)
    with monkeypatch.context() as patch:
        patch.setattr(cache, "one_process", None)  # a read-only folder cannot be locked
        for a, b in zip(first, load(own), strict=True):
            assert same(a.images, b.images)
            b.images.pixels.fill_(7)  # a copy of its own: the file never changes
        assert same(load(own)[0].images, first[0].images) and len(decoded) == 4
    other = own.rename(own.parent / "other")
    picture(9, 9, 78).save(other / "train/cat/a.jpg")
    assert not same(load(other)[0].images, first[0].images)
    assert load(other, 16)[1].size == 16 and len(left_in(cache_folder)) == 6


@pytest.mark.parametrize(
    "change",
    [
        lambda file, root: os.truncate(file, file.stat().st_size - 1),
        lambda file, root: os.truncate(file, 20),
        lambda file, root: os.truncate(file, 49),
        lambda file, root: file.write_bytes(bytes(file.stat().st_size)),
        lambda file, root: file.rename(file.with_suffix(".part")),  # what a killed build left
        lambda file, root: os.utime(root / "train/cat/a.jpg", ns=(1, 1)),
        lambda file, root: picture(9, 9, 9).save(root / "train/dog/z.png"),
        lambda file, root: (root / "train/cat/a.jpg").rename(root / "train/cat/aa.jpg"),
        lambda file, root: setattr(cache, "VERSION", cache.VERSION + 1),
    ],
)
def test_cache_is_built_anew(change, own, cache_folder, decoded, monkeypatch):
    monkeypatch.setattr(cache, "VERSION", cache.VERSION)
    before = load(own)[0].images[:3].to("cpu")
    files = left_in(cache_folder)
    [file] = cache_folder.glob("folder-train-*.images")
    decoded.clear()
    change(file, own)
    for _ in range(2):
        train, valid = load(own)
        assert same(train.images[:3].to("cpu"), before)
        assert len(decoded) - len(train) in (0, len(valid))  # each once; both files, or one
    assert left_in(cache_folder) == files


def supported_image(mode):
    return lambda path: picture(20, 10, 5).convert(mode).save(path)


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return lambda path: picture(30, 60, 11).save(path, quality=95, exif=exif)


def with_damaged_exif(path):
    notes = PngInfo()
    notes.add_text("Raw profile type exif", "\nexif\n 4\nno hexadecimal digits")
    picture(60, 30, 1).save(path, pnginfo=notes)


@pytest.mark.parametrize(
    ("name", "make", "size", "near"),  # near: PIL rounds between its two passes
    [(f"{mode}.png", supported_image(mode), 8, 0) for mode in ("L", "LA", "RGBA", "P", "1")]
    + [
        (f"turned{i}.{end}", turned(i), 16, 1)
        for i in range(1, 9)
        for end in ("jpg", "png", "tif", "webp")
    ]
    + [("exif.png", with_damaged_exif, 8, 0)]
    + [
        ("large.jpg", lambda p: picture(1001, 803, 3).save(p, quality=95), 32, 8)
    ],  # decoded at a fraction of its size
)
def test_photographs_of_all_kinds(name, make, size, near, own):
    path = own / "train/cat" / name
    make(path)
    image = Image.open(path) if name == "exif.png" else ImageOps.exif_transpose(Image.open(path))
    due = v2.functional.resize(image.convert("RGB"), size)
    difference = np.abs(read_image(path, size).astype(int) - np.asarray(due))
    assert difference.max() <= near and difference.mean() <= max(near / 8, near == 1)


def test_a_large_jpeg_is_not_decoded_at_the_size_asked_for(tmp_path):
    """The decoder's own reduction stops at four times that size; antialiasing does the rest."""
    pixels = np.random.default_rng(0).integers(0, 256, (1024, 1024), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "noise.jpg", quality=95)
    found = read_image(tmp_path / "noise.jpg", 128).astype(int)
    assert np.abs(found - resized(tmp_path / "noise.jpg", 128)).mean() < 5
    assert found.std() == pytest.approx(resized(tmp_path / "noise.jpg", 128).std(), rel=0.1)


def test_training_photographs_are_stored_larger_but_never_enlarged(own):
    """A random-resized crop shows a part of the photograph; a test image is cut to the pixel."""
    picture(40, 80, 1).save(own / "train/cat/a.jpg")
    train, valid = load(own, 16)
    assert train.images.sizes.tolist() == [[64, 32], [30, 21], [30, 22]]
    assert valid.images.sizes.tolist() == [[16 * 30 // 23, 16]]


@pytest.mark.parametrize("enlarge", [False, True])
@pytest.mark.parametrize("size", [(1000, 20), (20, 1000)])
def test_a_strip_is_cut_to_the_centre_that_crops_can_reach(size, enlarge, tmp_path):
    """Or a data set of strips would need fifty times the room on disk."""
    image = picture(*size, seed=1)
    image.save(tmp_path / "strip.png")
    pixels = read_image(tmp_path / "strip.png", 40, enlarge)
    assert sorted(pixels.shape) == ([3, 40, 17 * 40] if enlarge else [3, 20, 17 * 20])
    if not enlarge:
        left, top = ((side - min(side, 340)) // 2 for side in size)
        assert (pixels == np.asarray(image)[top : top + 340, left : left + 340]).all()


def cut(path, **how):
    picture(200, 200, 0).save(path, "JPEG", **how)
    path.write_bytes(path.read_bytes()[:-500])


SPOILED = {
    "bomb.png": lambda path: picture(101, 100, 0).save(path),
    "cut.jpg": cut,
    "cut-progressive.jpg": lambda path: cut(path, progressive=True),
    "deep.png": lambda path: Image.fromarray(np.full((9, 9), 40_000, np.uint16)).save(path),
    "empty.png": lambda path: path.write_bytes(b""),
    "text.jpg": lambda path: path.write_text("<html>404</html>"),
}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("name", SPOILED)
def test_a_damaged_image_is_named_or_left_out(name, own, decoded, capsys, monkeypatch):
    whole = load(own)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_099 if name == "bomb.png" else 40_000)
    SPOILED[name](own / "train/cat" / name)
    for _ in range(2):
        with pytest.raises(
            InputError,
            match=rf"1 of 5 images .*\): train/cat/{name}; skip_damaged leaves them out$",
        ):
            load(own)
    capsys.readouterr(), decoded.clear()
    for images, due in zip(load(own, skip_damaged=True), whole, strict=True):
        assert same(images.images, due.images) and torch.equal(images.labels, due.labels)
    out = capsys.readouterr().out
    assert (
        out.count("\n") == 1
        and out.endswith(f"are left out: train/cat/{name}\n")
        and decoded == [name]
    )
    (own / "train/cat" / name).unlink()
    picture(9, 9, 1).save(own / "train/cat" / name)
    assert len(load(own)[0]) == 4


def test_damaged_images_are_all_counted_and_ten_named(own):
    for i in range(13):
        (own / f"train/cat/x{i:02}.jpg").write_bytes(b"")
    named = ", ".join(f"train/cat/x{i:02}.jpg" for i in range(10))
    with pytest.raises(InputError, match=f"13 of 17 .*: {named} and 3 more; skip_damaged"):
        load(own)


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        (NAMES[2:3], "has no training images of dog$"),
        (NAMES[3:], "no test images"),
        (NAMES, "of cat, .* of dog$"),
    ],
)
def test_skipping_leaves_no_class_without_images(lost, message, own):
    for name in lost:
        (own / name).write_bytes(b"")
    with pytest.raises(InputError, match=message):
        load(own, skip_damaged=True)


def test_an_image_that_can_be_read_again_is(own, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(
            cache, "read_image", lambda path, **how: None
        )  # such as while a network is away
        with pytest.raises(InputError, match="4 of 4 images"):
            load(own)
    assert len(load(own)[0]) == 3


def test_the_cache_is_flushed_to_disk_before_it_gets_its_name(own, cache_folder, monkeypatch):
    """After a power cut there is a whole file under that name, or none."""
    calls, fsync, replace = [], os.fsync, os.replace

    def recorded_fsync(file):
        calls.append(("fsync", os.fstat(file).st_ino))
        fsync(file)

    def recorded_replace(source, target):
        calls.append(("replace", os.stat(source).st_ino))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(os, "replace", recorded_replace)
    load(own)
    files = [next(cache_folder.glob(f"folder-{split}-*.images")) for split in ("train", "test")]
    numbers = [file.stat().st_ino for file in files]
    assert calls == [(call, number) for number in numbers for call in ("fsync", "replace")]


def test_a_download_waits_for_a_silent_server_no_longer_than_a_minute(tmp_path):
    before = socket.getdefaulttimeout()
    with downloading("it", ["http://there"], tmp_path / "it"):
        assert socket.getdefaulttimeout() == 60
    assert socket.getdefaulttimeout() == before


@pytest.mark.parametrize("at", ["a.jpg", "c.jpeg"])
def test_interrupted_build_leaves_nothing(at, own, cache_folder, monkeypatch):
    before = set(threading.enumerate())

    def interrupted(path, **how):
        if path.name == at:
            raise KeyboardInterrupt
        return read_image(path, **how)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(cache, "read_image", interrupted)
        load(own)
    assert left_in(cache_folder) == [] and not set(threading.enumerate()) - before
    assert len(load(own)[0]) == 3


def test_cache_that_cannot_be_written(own, cache_folder):
    cache_folder.write_text("a file where the folder should be")
    with pytest.raises(InputError, match=f"{cache_folder} .*KDNB_CACHE.*$"):
        load(own)


@pytest.mark.parametrize(
    "room", [1000, 3 * (20 + 21 + 22) * 30]
)  # bytes: the pixels do not fit, nor does their head
def test_full_disk(room, own, cache_folder):
    before, (soft, hard) = set(threading.enumerate()), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (room, hard)
    )  # a write beyond it fails, as on a full disk
    try:
        with pytest.raises(InputError, match=f"{cache_folder} .*KDNB_CACHE"):
            load(own, 128)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert left_in(cache_folder) == [] and not set(threading.enumerate()) - before
    assert len(load(own, 128)[0]) == 3


def test_two_at_once_build_once(own, decoded):
    sets, start = [], threading.Barrier(2)
    threads = [
        threading.Thread(target=lambda: start.wait() + 1 and sets.append(load(own)[0]))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(decoded) == 4 and same(sets[0].images, sets[1].images)


@pytest.mark.parametrize("terminal", [False, True])
def test_progress(terminal, own, cache_folder, capsys, monkeypatch):
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    monkeypatch.delenv("JPY_PARENT_PID", raising=False)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    load(own)
    out, err = capsys.readouterr()
    if terminal:
        assert "0/3" in err and out == ""  # a bar, which goes away when it is full
    else:
        assert (
            err == "" and out.count("\n") == 2 and "3 images in" in out and str(cache_folder) in out
        )
    load(own)
    assert capsys.readouterr() == ("", "")
