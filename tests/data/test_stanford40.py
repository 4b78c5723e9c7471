"""Stanford40 as a torchvision data set and its download, on a small tree and on the real one."""

import os
import pickle
import shutil
import zipfile

import numpy as np
import pytest
import torch
from conftest import NOBODY, left_in, picture, resized
from PIL import Image
from torch.utils.data import DataLoader

from kdnb import Run, photographs
from kdnb.data import DATASETS, load_data
from kdnb.data.stanford40 import Stanford40
from kdnb.errors import InputError
from kdnb.paths import data_folder

DATA = data_folder()
with_stanford40 = pytest.mark.skipif(
    not (DATA / "stanford40/JPEGImages").is_dir(), reason=f"no Stanford40 in {DATA}"
)
CLASSES = ["applauding", "riding_a_horse", "watching_TV"]
FILES = {  # of the training and of the test split
    "train": [
        f"{CLASSES[label]}_{n:03}" for label, n in ((0, 1), (0, 2), (0, 3), (1, 2), (1, 1), (2, 1))
    ],
    "test": [f"{CLASSES[label]}_{n:03}" for label, n in ((0, 4), (1, 3), (2, 2), (2, 3))],
}
SIZES = [(40, 30), (31, 47), (64, 64), (90, 17), (33, 33)] * 2
BOX = "<annotation><object><name>person</name><bndbox>{}</bndbox></object></annotation>"


@pytest.fixture(autouse=True)
def alone(cache_folder, monkeypatch):
    monkeypatch.setattr(Stanford40, "url", NOBODY)


@pytest.fixture
def tree(tmp_path):
    """A small tree like Stanford40's: CRLF or LF, blank last lines, one greyscale image."""
    root = tmp_path / "tree"
    for part in Stanford40.parts:
        (root / part).mkdir(parents=True)
    for split, files in FILES.items():
        for end, name in zip((" \r\n", "\n", "\r\n"), CLASSES, strict=True):
            listed = [f"{file}.jpg{end}" for file in files if file.startswith(name)]
            (root / f"ImageSplits/{name}_{split}.txt").write_bytes(
                ("".join(listed) + 2 * end).encode()
            )
    for seed, (file, (width, height)) in enumerate(
        zip([*FILES["train"], *FILES["test"]], SIZES, strict=True)
    ):
        picture(width, height, seed, "L" if seed == 9 else "RGB").save(
            root / f"JPEGImages/{file}.jpg"
        )
        edges = f"<xmax>{width}</xmax><xmin>{seed}</xmin><ymax>{height}</ymax><ymin>2.5</ymin>"
        (root / f"XMLAnnotations/{file}.xml").write_text(BOX.format(edges))
    (root / "ImageSplits/train.txt").write_text("applauding_001.jpg\n")
    (root / "ImageSplits/actions.txt").write_text(
        "action_name\t\t\tnumber_of_images\napplauding\t\t\t4\n"
    )
    (root / "ImageSplits/._applauding_train.txt").write_bytes(
        b"\x00\x05\x16\x07"
    )  # as macOS leaves them
    return root


def test_names_labels_and_photographs(tree):
    for split, targets in (("train", [0, 0, 0, 1, 1, 2]), ("test", [0, 1, 2, 2])):
        dataset = Stanford40(tree, split)
        assert dataset.classes == CLASSES and dataset.class_to_idx == dict(
            zip(CLASSES, range(3), strict=True)
        )
        assert (len(dataset), dataset.targets) == (len(targets), targets)
        assert dataset.names == [f"{file}.jpg" for file in FILES[split]]
        for name, due, (image, label) in zip(
            dataset.names, targets, map(dataset.__getitem__, range(6)), strict=False
        ):
            assert label == due and image.mode == "RGB"
            assert np.array_equal(image, Image.open(tree / "JPEGImages" / name).convert("RGB"))
    assert "Split: test" in repr(dataset) and "Number of datapoints: 4" in repr(dataset)
    with pytest.raises(InputError, match="test, train"):
        Stanford40(tree, "valid")


@pytest.mark.parametrize("name", ["stanford40", "Stanford40"])
def test_in_a_parent_folder(name, tree):
    tree = tree.rename(tree.parent / name)
    assert Stanford40(str(tree.parent)).folder == tree
    assert len(Stanford40(tree.parent, download=True)) == 6  # there already: nothing is fetched


def test_boxes_and_transforms(tree):
    image, (label, box) = Stanford40(tree, "test", boxes=True)[3]
    assert label == 2 and box.dtype == torch.float32 and box.tolist() == [9, 2.5, *image.size]
    turned = Stanford40(
        tree, "test", transform=lambda image: image.size, target_transform=lambda label: -label
    )
    assert turned[3] == (image.size, -2)
    only_box = Stanford40(tree, "test", target_transform=lambda target: target[1], boxes=True)
    assert torch.equal(only_box[3][1], box)
    both = Stanford40(tree, "test", transforms=lambda image, label: (label, image.size))
    assert both[3] == (2, image.size)


def as_tensor(image):
    return torch.from_numpy(np.array(image.resize((8, 8))))


def test_in_a_data_loader_and_a_pickle(tree):
    dataset = Stanford40(tree, transform=as_tensor, boxes=True)
    images, (labels, boxes) = next(iter(DataLoader(dataset, batch_size=6, num_workers=2)))
    assert (
        images.shape == (6, 8, 8, 3)
        and labels.tolist() == [0, 0, 0, 1, 1, 2]
        and boxes.shape == (6, 4)
    )
    again = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(again[5][0], images[5]) and again.targets == dataset.targets


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda t: (t / "JPEGImages/applauding_002.jpg").unlink(),
            "lacks 1 of the 6 listed files: applauding_002.jpg",
        ),
        (
            lambda t: (t / "ImageSplits/applauding_train.txt").write_text(
                "../ImageSplits/actions.txt\n"
            ),
            "/actions.txt",
        ),
        (lambda t: (t / "XMLAnnotations/watching_TV_001.xml").unlink(), "watching_TV_001.xml"),
        (lambda t: (t / "ImageSplits/watching_TV_test.txt").unlink(), "missing for watching_TV"),
        (lambda t: [path.unlink() for path in (t / "ImageSplits").iterdir()], "missing for all"),
    ],
)
def test_a_tree_that_lacks_something(damage, message, tree):
    damage(tree)
    with pytest.raises(InputError, match=message):
        Stanford40(tree, boxes=True)


@pytest.mark.parametrize("text", ["", "<annotation/>", BOX.format("")])
def test_an_annotation_without_a_box(text, tree):
    (tree / "XMLAnnotations/applauding_001.xml").write_text(text)
    with pytest.raises(InputError, match=r"applauding_001\.xml holds no object/bndbox"):
        Stanford40(tree, boxes=True)[0]


def test_as_images(tree):
    for split, images in zip(FILES, load_data("stanford40", tree, 24), strict=True):
        dataset = Stanford40(tree, split)
        assert images.labels.tolist() == dataset.targets and images.classes == tuple(
            dataset.classes
        )
        assert images.mean == (0.485, 0.456, 0.406)
        for i, name in enumerate(dataset.names):
            path = tree / "JPEGImages" / name
            size = 24 if split == "test" else min(48, *Image.open(path).size)
            assert np.array_equal(images.images[i].permute(1, 2, 0), resized(path, size))


def test_the_digest_knows_the_split(tree):
    digest = DATASETS["stanford40"].digest
    shutil.copytree(tree, tree.parent / "copy/stanford40")
    assert digest(tree) == digest(tree.parent / "copy") != ""
    (tree / "ImageSplits/watching_TV_train.txt").write_text(
        "watching_TV_001.jpg\nwatching_TV_002.jpg"
    )
    (tree / "ImageSplits/watching_TV_test.txt").write_text("watching_TV_003.jpg")
    assert digest(tree) != digest(tree.parent / "copy")
    assert digest(tree.parent / "nowhere") == ""  # and nothing is downloaded


@with_stanford40
def test_the_real_one():
    splits = Stanford40(DATA), Stanford40(DATA, "test", boxes=True)
    for dataset, images in zip(splits, load_data("stanford40", DATA, 16), strict=True):
        assert images.labels.tolist() == dataset.targets and len(images.images) == len(dataset)
        assert [name.rsplit("_", 1)[0] for name in dataset.names] == [
            dataset.classes[t] for t in dataset.targets
        ]
        due = resized(images.files[-1], images.size).astype(int)
        pixels = images.images[len(images) - 1].permute(1, 2, 0).numpy()
        assert images.files[-1].name == dataset.names[-1] and np.abs(pixels - due).mean() < 2
    train, test = splits
    assert (len(train), len(test), len(train.classes)) == (4000, 5532, 40)
    assert {"throwing_frisby", "watching_TV"} < set(train.classes) and not set(train.names) & set(
        test.names
    )
    assert np.bincount(train.targets).tolist() == [100] * 40
    for index in range(0, len(test), 400):
        image, (_, (xmin, ymin, xmax, ymax)) = test[index]
        assert (
            image.mode == "RGB"
            and 0 <= xmin < xmax <= image.width
            and 0 <= ymin < ymax <= image.height
        )


def test_photographs_of_a_validation_split_are_training_images(tree):
    """A run with `validation` is tested on training images, so their boxes are shown."""
    of = {"dataset": "stanford40", "data_root": str(tree), "method": "none", "device": "cpu"}
    for validation, split in ((0.5, "train"), (0.0, "test")):
        found = photographs(Run(**of, validation=validation), "test")
        assert found.names == [f"{file}.jpg" for file in FILES[split]] and found.boxes


# ------------------------------------------------------------------------------------ the download


@pytest.fixture
def official(server, tree, monkeypatch):
    """Serves the small tree as the official archives; to be called again after it changed."""
    monkeypatch.setattr(Stanford40, "url", server.url)
    monkeypatch.setattr(Stanford40, "official", (6, 4))

    def pack():
        for part in Stanford40.parts:
            with zipfile.ZipFile(server.folder / f"Stanford40_{part}.zip", "w") as archive:
                for path in sorted((tree / part).iterdir()):
                    archive.write(path, f"{part}/{path.name}")
                for stranger in ("__MACOSX/._nothing", "../../escaped.txt", "/escaped.txt"):
                    archive.writestr(stranger, "outside")
        return server.folder

    pack()
    return pack


def test_download(official, tmp_path, monkeypatch):
    root = tmp_path / "deep" / "data"
    train, test = load_data("stanford40", root, 16)
    assert (len(train), len(test)) == (6, 4) and Stanford40(root, boxes=True)[0][1][0] == 0
    assert sorted(path.name for path in (root / "stanford40").iterdir()) == sorted(Stanford40.parts)
    assert os.listdir(tmp_path / "deep") == ["data"] and not list(tmp_path.rglob("escaped.txt"))
    assert sorted(os.listdir(root)) == [".stanford40.lock", "stanford40"] and not os.path.exists(
        "/escaped.txt"
    )
    monkeypatch.setattr(Stanford40, "url", NOBODY)
    assert len(Stanford40(root, "test", download=True)) == 4  # nothing is fetched again


@pytest.mark.parametrize(
    ("damaged", "message"),
    [
        ("served/Stanford40_XMLAnnotations.zip", "zip file"),
        ("served/Stanford40_ImageSplits.zip", "404"),
        (
            "tree/ImageSplits/applauding_test.txt",
            r"has \(6, 3\) training and test images, not \(6, 4\)",
        ),
        ("tree/JPEGImages/applauding_002.jpg", "applauding_002.jpg"),
    ],
)
def test_a_download_that_fails_leaves_nothing(damaged, message, official, tmp_path):
    path = tmp_path / damaged
    if message == "404" or path.suffix == ".jpg":
        path.unlink()
    else:
        os.truncate(path, path.stat().st_size - 200 if path.suffix == ".zip" else 0)
    if damaged.startswith("tree"):
        official()
    with pytest.raises(InputError, match=f"Stanford40 is not complete .*{message}.* unpack http"):
        Stanford40(tmp_path / "data", download=True)
    assert left_in(tmp_path / "data") == []


def test_without_a_network_urls_and_folder_are_named(tmp_path):
    for attempt in (lambda: load_data("stanford40", tmp_path, 16), lambda: Stanford40(tmp_path)):
        with pytest.raises(InputError) as error:
            attempt()
        for part in Stanford40.parts:
            assert f"{NOBODY}Stanford40_{part}.zip" in str(error.value)
        assert str(tmp_path / "stanford40") in str(error.value)


def test_a_download_spares_what_is_there(official, tmp_path):
    (tmp_path / "stanford40").mkdir()
    (tmp_path / "stanford40/mine.txt").write_text("mine")
    with pytest.raises(InputError, match="move them away"):
        Stanford40(tmp_path, download=True)
    (tmp_path / "stanford40/mine.txt").unlink()
    assert len(Stanford40(tmp_path, download=True)) == 6  # an empty folder is in nobody's way
