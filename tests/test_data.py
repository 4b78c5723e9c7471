"""kdnb.data and kdnb.stanford40, on the real data where they lie and on small ones made here. data/ is left alone."""

from __future__ import annotations

import errno
import functools
import hashlib
import http.server
import io
import os
import pickle
import resource
import sys
import tarfile
import threading
import zipfile
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader
from torchvision.datasets import CIFAR100

from kdnb import data
from kdnb.data import ImageSet, load
from kdnb.errors import InputError
from kdnb.stanford40 import Stanford40, each_in_threads

DATA = Path(os.environ.get("KDNB_DATA") or Path(__file__).parents[1] / "data")
with_cifar100 = pytest.mark.skipif(not (DATA / "cifar-100-python").is_dir(), reason=f"no CIFAR-100 in {DATA}")
with_stanford40 = pytest.mark.skipif(not (DATA / "stanford40/JPEGImages").is_dir(), reason=f"no Stanford40 in {DATA}")
zip_ = functools.partial(zip, strict=True)
NOBODY = "http://127.0.0.1:9/"  # the discard port: refuses at once, as a machine without a network does


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The cache folder of every test: never the data's own."""
    monkeypatch.setenv("KDNB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(Stanford40, "url", NOBODY)
    monkeypatch.setattr(CIFAR100, "url", NOBODY + "cifar-100-python.tar.gz")
    return tmp_path / "cache"


# ------------------------------------------------------------------------------------------------- small data


def picture(width, height, seed, mode="RGB"):
    """A smooth random photograph: noise would not survive JPEG."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).convert(mode)


SIZES = [(40, 30), (31, 47), (64, 64), (90, 17), (33, 33)]
TREE = {  # class -> training and test images, two names with several underscores
    "applauding": (["applauding_001.jpg", "applauding_002.jpg", "applauding_003.jpg"], ["applauding_004.jpg"]),
    "riding_a_horse": (["riding_a_horse_002.jpg", "riding_a_horse_001.jpg"], ["riding_a_horse_003.jpg"]),
    "watching_TV": (["watching_TV_001.jpg"], ["watching_TV_002.jpg", "watching_TV_003.jpg"]),
}
GREY = "watching_TV_003.jpg"
COUNTS = {"classes": 3, "train": 6, "test": 4}


@pytest.fixture
def tree(tmp_path):
    """A tree laid out like Stanford40: CRLF or LF, blank last lines, odd sizes, a greyscale image."""
    root = tmp_path / "tree"
    for part in Stanford40.parts:
        (root / part).mkdir(parents=True)
    splits = root / "ImageSplits"
    seed = 0
    for name, lists in TREE.items():
        for split, files in zip_(("train", "test"), lists):
            end = " \r\n" if seed % 2 else "\n"
            (splits / f"{name}_{split}.txt").write_bytes((end.join(files) + end * 3).encode())
            with open(splits / f"{split}.txt", "a") as overall:
                overall.write("\n".join(files) + "\n")
            for file in files:
                width, height = SIZES[seed % len(SIZES)]
                picture(width, height, seed, "L" if file == GREY else "RGB").save(root / "JPEGImages" / file)
                edges = f"<xmax>{width}</xmax><xmin>{seed}</xmin><ymax>{height}</ymax><ymin>2.5</ymin>"
                (root / "XMLAnnotations" / f"{file[:-4]}.xml").write_text(
                    f"<annotation><object><name>person</name><bndbox>{edges}</bndbox></object></annotation>"
                )
                seed += 1
    (splits / "actions.txt").write_text("action_name\t\t\tnumber_of_images\napplauding\t\t\t4\n")
    (splits / "._applauding_train.txt").write_bytes(b"\x00\x05\x16\x07")  # as macOS leaves them
    return root


@pytest.fixture
def own(tmp_path):
    """A tree of folders per class, with what editors and systems leave lying about."""
    root = tmp_path / "own"
    for seed, name in enumerate(
        ["train/cat/a.jpg", "train/cat/more/b.PNG", "train/dog/c.jpeg", "valid/dog/d.png", "test/dog/e.png"]
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        picture(20 + seed, 30, seed).save(root / name)
    (root / "train/.ipynb_checkpoints").mkdir()
    (root / "train/cat/._a.jpg").write_bytes(b"\x00\x05\x16\x07")
    (root / "train/cat/notes.txt").write_text("not an image")
    return root


def squashed(path, size):
    return np.asarray(Image.open(path).convert("RGB").resize((size, size), Image.Resampling.BILINEAR))


def left_in(folder):
    return sorted(path.name for path in folder.rglob("*") if path.suffix != ".lock") if folder.is_dir() else []


@pytest.fixture
def decoded(monkeypatch):
    """The names of the images that the canvas decodes from here on."""
    names, read_image = [], data.read_image

    def read(path, size):
        names.append(path.name)
        return read_image(path, size)

    monkeypatch.setattr(data, "read_image", read)
    return names


# --------------------------------------------------------------------------------------------------- ImageSet


def numbered(labels, aspect=True):
    n = len(labels)
    images = torch.arange(n, dtype=torch.uint8).reshape(n, 1, 1, 1).repeat(1, 3, 2, 2)
    aspect = torch.arange(n, dtype=torch.float32) if aspect else None
    return ImageSet(images, torch.tensor(labels), ("a", "b", "c"), (0.5,) * 3, (0.5,) * 3, aspect)


@pytest.mark.parametrize("n", range(1, 9))
def test_limit_takes_from_each_class_in_turn(n):
    labels = [2, 0, 0, 0, 1, 2, 0, 1, 0]
    queues = defaultdict(list)
    for index, label in enumerate(labels):
        queues[label].append(index)
    turns = [queues[label].pop(0) for _ in labels for label in range(3) if queues[label]]
    few = numbered(labels).limit(n)
    assert few.images[:, 0, 0, 0].tolist() == few.aspect.tolist() == turns[:n]
    assert few.labels.tolist() == [labels[index] for index in turns[:n]]
    assert len(few) == n and few.size == 2 and few.classes == ("a", "b", "c")


def test_limit_of_all_and_of_less_than_none():
    whole = numbered([0, 1, 2], aspect=False)
    assert whole.limit(0) is whole and whole.limit(3) is whole and whole.limit(99) is whole
    assert whole.limit(2).aspect is None
    with pytest.raises(InputError, match="-1"):
        whole.limit(-1)


def test_repr_is_one_line():
    assert repr(numbered([0, 1])) == "ImageSet(2 images of 2 x 2 pixels, 3 classes)"


def test_unknown_name_lists_those_that_exist(tmp_path):
    with pytest.raises(InputError, match="cifar100, digits, folder, stanford40"):
        load("cifar10", tmp_path, 32)


# ------------------------------------------------------------------------------------------ digits and CIFAR-100


def test_digits(tmp_path):
    train, test = load("digits", tmp_path, 8)
    assert (len(train), len(test), train.size) == (1437, 360, 8)
    assert train.images.dtype == torch.uint8 and train.labels.dtype == torch.int64 and train.aspect is None
    assert torch.equal(train.images[:, 0], train.images[:, 2])
    kept = [
        (*image[0].flatten().tolist(), int(label)) for s in (train, test) for image, label in zip_(s.images, s.labels)
    ]
    pixels, labels = load_digits(return_X_y=True)
    due = [(*np.rint(image / 16 * 255).astype(int).tolist(), int(label)) for image, label in zip_(pixels, labels)]
    assert sorted(kept) == sorted(due)  # each once, in one split
    assert (test.labels.bincount() - 36).abs().max() <= 1 and len(test.classes) == 10
    scaled = train.images.double() / 255
    assert train.mean == pytest.approx(scaled.mean((0, 2, 3)).tolist()) and test.mean == train.mean
    assert train.std == pytest.approx(scaled.std((0, 2, 3)).tolist(), rel=1e-4)
    assert torch.equal(load("digits", tmp_path, 8)[1].images, test.images)


@pytest.mark.parametrize(("name", "size", "due"), [("digits", 32, "8"), ("cifar100", 224, "32")])
def test_size_that_a_data_set_does_not_come_in(name, size, due, tmp_path):
    with pytest.raises(InputError, match=f"has to be {due}, not {size}"):
        load(name, tmp_path, size)


@with_cifar100
def test_cifar100():
    train, test = load("cifar100", DATA, 32)
    assert train.images.shape == (50_000, 3, 32, 32) and test.images.shape == (10_000, 3, 32, 32)
    assert train.images.is_contiguous() and train.images.dtype == torch.uint8
    assert train.labels.bincount().tolist() == [500] * 100 and test.labels.bincount().tolist() == [100] * 100
    assert train.classes[:2] == ("apple", "aquarium_fish") and len(test.classes) == 100
    means = train.images.mean((0, 2, 3), dtype=torch.float32) / 255
    assert means.tolist() == pytest.approx(train.mean, abs=1e-3)  # red, green and blue in their places
    image, label = CIFAR100(DATA, train=False)[77]
    assert np.array_equal(np.asarray(image), test.images[77].permute(1, 2, 0)) and label == test.labels[77]


class Trap:
    """A pickle that makes a folder when it is opened."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def cifar_files(monkeypatch):
    """Small files in CIFAR-100's format, made the official ones: their MD5 sums are those that torchvision checks."""
    rng = np.random.default_rng(0)
    files = {"meta": {"fine_label_names": ["fox", "owl"]}}
    for name, n in (("train", 5), ("test", 3)):
        labels = [i % 2 for i in range(n)]
        files[name] = {"data": rng.integers(0, 256, (n, 3072), np.uint8), "fine_labels": labels}
    files = {name: pickle.dumps(content) for name, content in files.items()}
    sums = {name: hashlib.md5(content).hexdigest() for name, content in files.items()}
    monkeypatch.setattr(CIFAR100, "train_list", [["train", sums["train"]]])
    monkeypatch.setattr(CIFAR100, "test_list", [["test", sums["test"]]])
    monkeypatch.setattr(CIFAR100, "meta", {"filename": "meta", "key": "fine_label_names", "md5": sums["meta"]})
    return files


def test_cifar100_without_a_network_names_url_and_folder(tmp_path):
    with pytest.raises(InputError) as error:
        load("cifar100", tmp_path, 32)
    assert CIFAR100.url in str(error.value) and str(tmp_path / "cifar-100-python") in str(error.value)


@pytest.mark.parametrize("name", ["train", "meta"])
def test_cifar100_unpickles_no_stranger(name, tmp_path, monkeypatch):
    files = cifar_files(monkeypatch)
    (tmp_path / "cifar-100-python").mkdir()
    for file, content in files.items():
        (tmp_path / "cifar-100-python" / file).write_bytes(content)
    train, test = load("cifar100", tmp_path, 32)
    assert (len(train), len(test), test.classes) == (5, 3, ("fox", "owl"))
    stored = pickle.loads(files["test"])["data"]  # channels, rows, columns
    assert np.array_equal(test.images.flatten(1), stored)
    (tmp_path / "cifar-100-python" / name).write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    with pytest.raises(InputError, match="not whole"):
        load("cifar100", tmp_path, 32)
    assert not (tmp_path / "sprung").exists()


def test_cifar100_download(server, tmp_path, monkeypatch):
    files = cifar_files(monkeypatch)
    with tarfile.open(server.folder / "cifar-100-python.tar.gz", "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"cifar-100-python/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    packed = (server.folder / "cifar-100-python.tar.gz").read_bytes()
    monkeypatch.setattr(CIFAR100, "tgz_md5", hashlib.md5(packed).hexdigest())
    monkeypatch.setattr(CIFAR100, "url", server.url + "cifar-100-python.tar.gz")
    train, test = load("cifar100", tmp_path / "new", 32)
    assert (len(train), len(test)) == (5, 3)


# ------------------------------------------------------------------------------------------ Stanford40, the data set


def test_stanford40(tree):
    train, test = Stanford40(tree), Stanford40(tree, "test")
    assert train.classes == ["applauding", "riding_a_horse", "watching_TV"]
    assert train.class_to_idx == {"applauding": 0, "riding_a_horse": 1, "watching_TV": 2}
    assert train.names == [name for lists in TREE.values() for name in lists[0]] and len(train) == 6
    assert test.names == [name for lists in TREE.values() for name in lists[1]] and test.targets == [0, 1, 2, 2]
    for dataset in (train, test):
        for name, (image, label) in zip_(dataset.names, (dataset[i] for i in range(len(dataset)))):
            assert dataset.classes[label] == name.rsplit("_", 1)[0] and image.mode == "RGB"
            assert np.array_equal(image, Image.open(tree / "JPEGImages" / name).convert("RGB"))
    assert "Split: test" in repr(test) and "Number of datapoints: 4" in repr(test)


@pytest.mark.parametrize("name", ["stanford40", "Stanford40"])
def test_stanford40_in_a_parent_folder(name, tree):
    parent = tree.parent / "parent"
    parent.mkdir()
    tree.rename(parent / name)
    assert Stanford40(str(parent)).folder == parent / name
    assert len(Stanford40(parent, download=True)) == 6  # there already: nothing is fetched


def test_stanford40_boxes_and_transforms(tree):
    plain = Stanford40(tree, "test", boxes=True)
    image, (label, box) = plain[3]
    assert plain.names[3] == GREY and label == 2
    assert box.dtype == torch.float32 and box.tolist() == [9, 2.5, *image.size]
    turned = Stanford40(tree, "test", transform=lambda image: image.size, target_transform=lambda label: -label)
    assert turned[3] == (image.size, -2)
    boxed = Stanford40(tree, "test", target_transform=lambda target: target[1], boxes=True)
    assert torch.equal(boxed[3][1], box)
    both = Stanford40(tree, "test", transforms=lambda image, label: (label, image.size))
    assert both[3] == (2, image.size)


def as_tensor(image):
    return torch.from_numpy(np.array(image.resize((8, 8))))


def test_stanford40_in_a_data_loader_and_a_pickle(tree):
    dataset = Stanford40(tree, transform=as_tensor, boxes=True)
    images, (labels, boxes) = next(iter(DataLoader(dataset, batch_size=6, num_workers=2)))
    assert images.shape == (6, 8, 8, 3) and labels.tolist() == [0, 0, 0, 1, 1, 2] and boxes.shape == (6, 4)
    again = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(again[5][0], images[5]) and again.targets == dataset.targets


def lose_image(tree):
    (tree / "JPEGImages/applauding_002.jpg").unlink()


def list_outsider(tree):
    (tree / "ImageSplits/applauding_train.txt").write_text("../ImageSplits/actions.txt\n")


def lose_annotation(tree):
    (tree / "XMLAnnotations/watching_TV_001.xml").unlink()


def lose_split(tree):
    (tree / "ImageSplits/watching_TV_test.txt").unlink()


def lose_all_splits(tree):
    for path in (tree / "ImageSplits").iterdir():
        path.unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lose_image, "applauding_002.jpg"),
        (list_outsider, "../ImageSplits/actions.txt"),
        (lose_annotation, "watching_TV_001.xml"),
        (lose_split, "missing for watching_TV"),
        (lose_all_splits, "missing for all"),
    ],
)
def test_stanford40_incomplete(damage, message, tree):
    assert len(Stanford40(tree, boxes=True)) == 6
    damage(tree)
    with pytest.raises(InputError, match=message):
        Stanford40(tree, boxes=True)


@pytest.mark.parametrize("text", ["", "<annotation/>", "<annotation><object><bndbox/></object></annotation>"])
def test_stanford40_annotation_without_a_box(text, tree):
    (tree / "XMLAnnotations/applauding_001.xml").write_text(text)
    with pytest.raises(InputError, match=r"applauding_001\.xml holds no object/bndbox"):
        Stanford40(tree, boxes=True)[0]


def test_stanford40_unknown_split(tree):
    with pytest.raises(InputError, match="test, train"):
        Stanford40(tree, "valid")


@with_stanford40
def test_stanford40_real():
    train, test = Stanford40(DATA), Stanford40(DATA, "test", boxes=True)
    assert (len(train), len(test), len(train.classes)) == (4000, 5532, 40)
    assert train.classes == sorted(train.classes) and {"throwing_frisby", "watching_TV"} < set(train.classes)
    assert np.bincount(train.targets).tolist() == [100] * 40
    for dataset in (train, test):
        assert [name.rsplit("_", 1)[0] for name in dataset.names] == [dataset.classes[t] for t in dataset.targets]
    assert not set(train.names) & set(test.names)
    for index in range(0, len(test), 400):
        image, (_, (xmin, ymin, xmax, ymax)) = test[index]
        assert image.mode == "RGB" and 0 <= xmin < xmax <= image.width and 0 <= ymin < ymax <= image.height


# ----------------------------------------------------------------------------------------- Stanford40, the download


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture
def server(tmp_path):
    """Serves the files of ``server.folder`` under ``server.url``."""
    folder = tmp_path / "served"
    folder.mkdir()
    handler = functools.partial(Quiet, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.folder, server.url = folder, f"http://127.0.0.1:{server.server_port}/"
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        yield server
        server.shutdown()


def pack(tree, folder):
    for part in Stanford40.parts:
        with zipfile.ZipFile(folder / f"Stanford40_{part}.zip", "w") as archive:
            for path in sorted((tree / part).iterdir()):
                archive.write(path, f"{part}/{path.name}")
            archive.writestr("__MACOSX/._nothing", "")
            archive.writestr("../../escaped.txt", "outside")
            archive.writestr("/escaped.txt", "outside")


@pytest.fixture
def official(server, tree, monkeypatch):
    """The small tree in the place of the official archives."""
    monkeypatch.setattr(Stanford40, "url", server.url)
    monkeypatch.setattr(Stanford40, "official", COUNTS)
    return tree


def test_stanford40_download(official, server, tmp_path, monkeypatch):
    pack(official, server.folder)
    root = tmp_path / "deep" / "data"
    assert Stanford40(root, download=True, boxes=True)[0][1][0] == 0
    assert sorted(path.name for path in (root / "stanford40").iterdir()) == sorted(Stanford40.parts)
    assert os.listdir(tmp_path / "deep") == ["data"] and not list(tmp_path.rglob("escaped.txt"))
    assert sorted(os.listdir(root)) == [".stanford40.lock", "stanford40"]
    monkeypatch.setattr(Stanford40, "url", NOBODY)
    assert len(Stanford40(root, "test", download=True)) == 4  # nothing is fetched again
    assert not os.path.exists("/escaped.txt")


def test_stanford40_is_downloaded_by_load(official, server, tmp_path):
    pack(official, server.folder)
    train, test = load("stanford40", tmp_path / "stanford40", 16)
    assert (len(train), len(test)) == (6, 4) and (tmp_path / "stanford40/JPEGImages").is_dir()


def cut_archive(tree, folder):
    pack(tree, folder)
    path = folder / "Stanford40_XMLAnnotations.zip"
    path.write_bytes(path.read_bytes()[:-200])


def no_archive(tree, folder):
    pack(tree, folder)
    (folder / "Stanford40_ImageSplits.zip").unlink()


def image_too_few(tree, folder):
    (tree / "ImageSplits/applauding_test.txt").write_text("\n")
    pack(tree, folder)


def image_not_there(tree, folder):
    lose_image(tree)
    pack(tree, folder)


def image_of_another_class(tree, folder):
    (tree / "ImageSplits/applauding_test.txt").write_text("watching_TV_003.jpg")
    pack(tree, folder)


def image_cut(tree, folder):
    path = tree / "JPEGImages/watching_TV_001.jpg"
    path.write_bytes(path.read_bytes()[:-100])
    pack(tree, folder)


def other_folder(tree, folder):
    pack(tree, folder)
    os.replace(folder / "Stanford40_XMLAnnotations.zip", folder / "Stanford40_ImageSplits.zip")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut_archive, "zip file"),
        (no_archive, "404"),
        (other_folder, "404"),
        (image_too_few, "'test': 3"),
        (image_not_there, "applauding_002.jpg"),
        (image_of_another_class, "another class: watching_TV_003.jpg"),
        (image_cut, "cannot be decoded: watching_TV_001.jpg"),
    ],
)
def test_stanford40_download_that_fails_leaves_nothing(damage, message, official, server, tmp_path):
    damage(official, server.folder)
    root = tmp_path / "data"
    with pytest.raises(InputError, match=message):
        Stanford40(root, download=True)
    assert left_in(root) == []


def test_stanford40_without_a_network_names_urls_and_folder(tmp_path):
    for attempt in (lambda: load("stanford40", tmp_path, 16), lambda: Stanford40(tmp_path)):
        with pytest.raises(InputError) as error:
            attempt()
        for part in Stanford40.parts:
            assert f"{NOBODY}Stanford40_{part}.zip" in str(error.value)
        assert str(tmp_path / "stanford40") in str(error.value)


def test_stanford40_download_spares_what_is_there(official, server, tmp_path):
    pack(official, server.folder)
    (tmp_path / "stanford40").mkdir()
    (tmp_path / "stanford40" / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="move it away"):
        Stanford40(tmp_path, download=True)
    (tmp_path / "stanford40" / "mine.txt").unlink()
    assert len(Stanford40(tmp_path, download=True)) == 6  # an empty folder is in nobody's way


# --------------------------------------------------------------------------------------------------- the canvas


def test_canvas_holds_every_image_squashed(tree, cache, capsys):
    sets = load("stanford40", tree, 24)
    for split, images in zip_(("train", "test"), sets):
        dataset = Stanford40(tree, split)
        assert images.images.shape == (len(dataset), 3, 24, 24) and images.size == 24
        assert images.labels.tolist() == dataset.targets and images.classes == tuple(dataset.classes)
        for name, pixels, aspect in zip_(dataset.names, images.images, images.aspect):
            path = tree / "JPEGImages" / name
            width, height = Image.open(path).size
            assert np.array_equal(pixels.permute(1, 2, 0), squashed(path, 24)), name
            assert aspect == torch.tensor(width / height)
    assert sets[0].mean == (0.485, 0.456, 0.406) and sets[0].aspect.dtype == torch.float32
    assert [Path(name).suffix for name in left_in(cache)] == [".json", ".npy"] and not (tree / ".kdnb").exists()


@with_stanford40
def test_canvas_of_the_real_stanford40(cache, decoded):
    train, test = load("stanford40", DATA, 64)
    assert train.images.shape == (4000, 3, 64, 64) and test.images.shape == (5532, 3, 64, 64)
    assert len(decoded) == 9532
    names = Stanford40(DATA, "test").names
    for index in range(0, 5532, 331):
        path = DATA / "stanford40/JPEGImages" / names[index]
        assert np.array_equal(test.images[index].permute(1, 2, 0), squashed(path, 64))
    assert train.labels.bincount().tolist() == [100] * 40
    again, _ = load("stanford40", DATA / "stanford40", 64)  # the same folder, named directly
    assert len(decoded) == 9532 and torch.equal(again.images[::99], train.images[::99])
    assert torch.equal(again.aspect, train.aspect)


def test_canvas_lies_beside_the_data_by_default(tree, cache, monkeypatch):
    monkeypatch.delenv("KDNB_CACHE")
    load("stanford40", tree, 8)
    assert left_in(tree / ".kdnb") == ["stanford40-8.json", "stanford40-8.npy"] and not cache.exists()


def test_canvas_is_decoded_once_and_opened_without_a_lock(own, decoded, monkeypatch):
    first = load("folder", own, 8)
    assert len(decoded) == 4
    monkeypatch.setattr(data, "FileLock", None)  # a read-only folder cannot be locked
    again = load("folder", own, 8)
    assert len(decoded) == 4
    for a, b in zip_(first, again):
        assert torch.equal(a.images, b.images) and torch.equal(a.aspect, b.aspect) and torch.equal(a.labels, b.labels)


def test_canvas_on_disk_never_changes(own):
    train, _ = load("folder", own, 8)
    before = train.images.clone()
    train.images.fill_(7)
    assert torch.equal(load("folder", own, 8)[0].images, before)


def test_canvas_of_two_folders_in_one_cache(own, cache, decoded):
    other = own.parent / "other"
    (own / "valid").rename(own / "val")
    picture(9, 9, 77).save(own / "train/dog/z.png")
    first = load("folder", own, 8)
    own.rename(other)
    picture(9, 9, 78).save(other / "train/dog/z.png")
    second = load("folder", other, 8)
    assert len(left_in(cache)) == 4 and not torch.equal(first[0].images, second[0].images)


def spoil_pixels(pixels, notes, root):
    os.truncate(pixels, pixels.stat().st_size - 1)


def lengthen_pixels(pixels, notes, root):
    os.truncate(pixels, pixels.stat().st_size + 1)


def other_shape(pixels, notes, root):
    np.save(pixels, np.load(pixels)[:-1])


def other_type(pixels, notes, root):
    np.save(pixels, np.load(pixels).view(np.int8))


def pickled_pixels(pixels, notes, root):
    np.save(pixels, np.array([Trap(root / "sprung")], dtype=object), allow_pickle=True)


def no_pixels(pixels, notes, root):
    pixels.unlink()


def no_notes(pixels, notes, root):
    notes.unlink()


def half_notes(pixels, notes, root):
    notes.write_text(notes.read_text()[:40])


def other_notes(pixels, notes, root):
    notes.write_text("[]")


def image_touched(pixels, notes, root):
    os.utime(root / "train/cat/a.jpg", ns=(1, 1))


def image_added(pixels, notes, root):
    picture(9, 9, 9).save(root / "valid/dog/z.png")


def image_renamed(pixels, notes, root):
    (root / "train/cat/a.jpg").rename(root / "train/cat/aa.jpg")


def new_version(pixels, notes, root):
    data.CANVAS_VERSION += 1


@pytest.mark.parametrize(
    "change",
    [
        spoil_pixels,
        lengthen_pixels,
        other_shape,
        other_type,
        pickled_pixels,
        no_pixels,
        no_notes,
        half_notes,
        other_notes,
        image_touched,
        image_added,
        image_renamed,
        new_version,
    ],
)
def test_canvas_is_built_anew(change, own, cache, decoded, monkeypatch):
    monkeypatch.setattr(data, "CANVAS_VERSION", data.CANVAS_VERSION)
    before = load("folder", own, 8)[0].images.clone()
    [pixels], [notes] = cache.glob("*.npy"), cache.glob("*.json")
    decoded.clear()
    change(pixels, notes, own)
    train, valid = load("folder", own, 8)
    assert len(decoded) == len(train) + len(valid) and torch.equal(train.images, before)
    load("folder", own, 8)
    assert len(decoded) == len(train) + len(valid) and not (own / "sprung").exists()
    assert len(left_in(cache)) == 2


def test_canvas_of_another_size_is_another_canvas(own, cache):
    small, large = load("folder", own, 8)[0], load("folder", own, 16)[0]
    assert (small.size, large.size, len(left_in(cache))) == (8, 16, 4)
    with pytest.raises(InputError, match="at least 1"):
        load("folder", own, 0)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_canvas_applies_exif_orientation(orientation, own):
    path = own / "train/cat/a.jpg"
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture(30, 60, 11).save(path, quality=95, exif=exif)
    train, _ = load("folder", own, 16)
    upright = ImageOps.exif_transpose(Image.open(path))
    due = np.asarray(upright.resize((16, 16), Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(train.images[0].permute(1, 2, 0).numpy() - due).max() <= 1  # PIL rounds between its two passes
    assert train.aspect[0] == upright.width / upright.height == (2 if orientation > 4 else 0.5)


def test_canvas_ignores_damaged_exif(own):
    notes = PngInfo()
    notes.add_text("Raw profile type exif", "\nexif\n 4\nno hexadecimal digits")
    path = own / "train/cat/a.png"
    picture(60, 30, 1).save(path, pnginfo=notes)
    with pytest.raises(ValueError), Image.open(path) as image:
        image.getexif()
    assert load("folder", own, 8)[0].aspect[1] == 2


def test_canvas_of_a_large_photograph(own):
    path = own / "train/cat/a.jpg"
    picture(1001, 803, 3).save(path, quality=95)  # decoded at a fraction of its size
    train, _ = load("folder", own, 32)
    difference = np.abs(train.images[0].permute(1, 2, 0).numpy().astype(int) - squashed(path, 32))
    assert difference.mean() < 1 and difference.max() < 8
    assert train.aspect[0] == torch.tensor(1001 / 803)


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1"])
def test_canvas_of_other_colour_modes(mode, own):
    path = own / "train/cat/a.png"
    picture(20, 10, 5).convert(mode).save(path)
    train, _ = load("folder", own, 8)  # a.jpg, a.png, ...
    assert np.array_equal(train.images[1].permute(1, 2, 0), squashed(path, 8))


def cut(path):
    picture(200, 200, 0).save(path, "JPEG")
    path.write_bytes(path.read_bytes()[:-500])


def cut_progressive(path):
    picture(200, 200, 0).save(path, "JPEG", progressive=True)
    path.write_bytes(path.read_bytes()[:-500])


def dangling(path):
    path.symlink_to(path.with_name("nowhere.jpg"))


SPOILED = {
    "bomb.png": lambda path: picture(101, 100, 0).save(path),
    "cut.jpg": cut,
    "cut-progressive.jpg": cut_progressive,
    "dangling.jpg": dangling,
    "deep.png": lambda path: Image.fromarray(np.full((9, 9), 40_000, np.uint16)).save(path),
    "empty.png": lambda path: path.write_bytes(b""),
    "text.jpg": lambda path: path.write_text("<html>404</html>"),
}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("name", SPOILED)
def test_image_that_cannot_be_decoded(name, own, cache, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_099 if name == "bomb.png" else 40_000)
    SPOILED[name](own / "valid/dog" / name)
    with pytest.raises(InputError, match=f"1 of 5 images .*: valid/dog/{name}$"):
        load("folder", own, 8)
    assert left_in(cache) == []


def test_images_that_cannot_be_decoded_are_all_named_up_to_ten(own, cache):
    for i in range(13):
        (own / f"train/cat/x{i:02}.jpg").write_bytes(b"")
    with pytest.raises(InputError) as error:
        load("folder", own, 8)
    named = [f"train/cat/x{i:02}.jpg" for i in range(10)]
    assert str(error.value).endswith(f": {', '.join(named)} and 3 more") and "13 of 17" in str(error.value)
    assert left_in(cache) == []


@pytest.mark.parametrize("at", [0, 3])
def test_interrupted_build_leaves_nothing(at, own, cache, monkeypatch):
    read_image = data.read_image

    def interrupted(path, size):
        if path.name == ["a.jpg", "b.PNG", "c.jpeg", "d.png"][at]:
            raise KeyboardInterrupt
        return read_image(path, size)

    with monkeypatch.context() as patch:
        patch.setattr(data, "read_image", interrupted)
        with pytest.raises(KeyboardInterrupt):
            load("folder", own, 8)
    assert left_in(cache) == []
    assert len(load("folder", own, 8)[0]) == 3


def test_cache_that_cannot_be_written(own, cache):
    cache.write_text("a file where the folder should be")
    with pytest.raises(InputError, match="KDNB_CACHE") as error:
        load("folder", own, 8)
    assert str(cache) in str(error.value) and "\n" not in str(error.value)


def test_full_disk(own, cache):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # a write beyond it fails, as on a full disk
    try:
        with pytest.raises(InputError, match="KDNB_CACHE") as error:
            load("folder", own, 128)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert str(cache) in str(error.value) and left_in(cache) == []
    assert load("folder", own, 128)[0].size == 128


def test_disk_that_is_full_at_the_very_end(own, cache, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(data.json, "dump", full)
        with pytest.raises(InputError, match="No space left"):
            load("folder", own, 8)
    assert left_in(cache) == []


def test_threads_end_with_what_they_work_for():
    before = set(threading.enumerate())
    with pytest.raises(ZeroDivisionError), each_in_threads(str, range(500), "numbers") as texts:
        assert next(texts) == "0"
        1 / 0  # noqa: B018  such as a full disk
    assert not [t for t in threading.enumerate() if "Pool" in t.name and t not in before] and list(texts) == []


def test_what_a_killed_build_left_is_overwritten(own, cache):
    load("folder", own, 8)
    for path in list(cache.glob("*.[nj]*")):
        path.rename(f"{path}.part")
    load("folder", own, 8)
    assert [Path(name).suffix for name in left_in(cache)] == [".json", ".npy"]


def test_two_at_once_build_once(tree, decoded):
    sets, start = [], threading.Barrier(2)

    def run():
        start.wait()
        sets.append(load("stanford40", tree, 16)[0])

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(decoded) == 10 and torch.equal(sets[0].images, sets[1].images)


@pytest.mark.parametrize(("progress", "terminal"), [(True, False), (False, True), (True, True)])
def test_progress(progress, terminal, own, cache, capsys, monkeypatch):
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    load("folder", own, 8, progress)
    out, err = capsys.readouterr()
    if progress and terminal:
        assert "0/4" in err and out == ""  # a bar, which goes away when it is full
    else:
        assert err == "" and out.count("\n") == 1 and "canvas" in out and "4 images in" in out and str(cache) in out
    load("folder", own, 8, progress)
    assert capsys.readouterr() == ("", "")


# --------------------------------------------------------------------------------------------------- own folders


def test_folder(own):
    train, valid = load("folder", str(own), 16)
    assert train.classes == valid.classes == ("cat", "dog")
    assert train.labels.tolist() == [0, 0, 1] and valid.labels.tolist() == [1]
    for pixels, name in zip_(
        [*train.images, *valid.images],
        ["train/cat/a.jpg", "train/cat/more/b.PNG", "train/dog/c.jpeg", "valid/dog/d.png"],
    ):
        assert np.array_equal(pixels.permute(1, 2, 0), squashed(own / name, 16)), name
    assert train.std == (0.229, 0.224, 0.225)


@pytest.mark.parametrize("name", ["valid", "val", "test"])
def test_folder_takes_the_first_of_valid_val_test(name, own):
    (own / "valid").rename(own / "val")
    if name == "valid":
        (own / "valid/cat").mkdir(parents=True)
        picture(10, 10, 50).save(own / "valid/cat/x.png")
    if name == "test":
        (own / "val").rename(own / "elsewhere")
    _, held_out = load("folder", own, 16)
    file = {"valid": "valid/cat/x.png", "val": "val/dog/d.png", "test": "test/dog/e.png"}[name]
    assert np.array_equal(held_out.images[0].permute(1, 2, 0), squashed(own / file, 16)) and len(held_out) == 1


def no_train(root):
    (root / "train").rename(root / "training")


def nothing_held_out(root):
    (root / "valid").rename(root / "train/fox")
    (root / "test").rename(root / "train/owl")


def new_class(root):
    (root / "valid/dog").rename(root / "valid/wolf")


def empty_class(root):
    (root / "train/fox").mkdir()


def empty_held_out_class(root):
    (root / "valid/cat").mkdir()


def no_classes(root):
    (root / "valid/dog/d.png").unlink()
    (root / "valid/dog").rmdir()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (no_train, "needs a folder train and one of valid, val and test"),
        (nothing_held_out, "needs a folder train and one of valid, val and test"),
        (new_class, "lacks: wolf"),
        (empty_class, "train: fox"),
        (empty_held_out_class, "valid: cat"),
        (no_classes, "valid has no class folders"),
    ],
)
def test_folder_that_lacks_something(damage, message, own):
    damage(own)
    with pytest.raises(InputError, match=message):
        load("folder", own, 8)


def test_folder_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match="nowhere"):
        load("folder", tmp_path / "nowhere", 8)
