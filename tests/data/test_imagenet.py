"""ImageNet and Tiny ImageNet, from small copies in the official folders."""

import hashlib
import zipfile

import numpy as np
import pytest
from conftest import left_in, picture
from PIL import Image
from torch import nn

from kdnb import InputError, Run, load_data
from kdnb.data import DATASETS, tiny_imagenet
from kdnb.data.imagenet import CATEGORIES
from kdnb.training.teacher import Teacher

WORDS = {"n02": "bull frog, Rana catesbeiana", "n01": "goldfish, Carassius auratus"}


@pytest.fixture(autouse=True)
def alone(cache_folder, monkeypatch):
    monkeypatch.setattr(tiny_imagenet, "URL", "http://127.0.0.1:9/tiny-imagenet-200.zip")


def make_tiny(root):
    folder = root / "tiny-imagenet-200"
    for name in ("val/images", *(f"train/{wnid}/images" for wnid in WORDS)):
        (folder / name).mkdir(parents=True)
    (folder / "wnids.txt").write_text("n02\nn01\n")  # the official file is not sorted either
    lines = [f"{wnid}\t{words}\n" for wnid, words in WORDS.items()]
    (folder / "words.txt").write_text("n00\tanother class\n" + "".join(lines))
    for i, wnid in enumerate(["n01", "n02", "n01"]):
        picture(64, 64, i).save(folder / f"train/{wnid}/images/{wnid}_{i}.JPEG")
        (folder / f"train/{wnid}/{wnid}_boxes.txt").write_text("")
    annotations = ""
    for i, wnid in enumerate(["n02", "n01"]):
        picture(64, 64, 9 + i, "L").save(folder / f"val/images/val_{i}.JPEG")
        annotations += f"val_{i}.JPEG\t{wnid}\t0\t0\t62\t62\n"
    (folder / "val/val_annotations.txt").write_text(annotations)
    return folder


def test_tiny_imagenet(tmp_path):
    folder = make_tiny(tmp_path)
    train, val = load_data("tiny_imagenet", tmp_path)
    assert train.classes == val.classes == ("goldfish", "bull frog")
    assert train.labels.tolist() == [0, 0, 1] and val.labels.tolist() == [1, 0]
    assert (train.size, train.aspect, train.mean) == (64, None, (0.4802, 0.4481, 0.3975))
    with Image.open(folder / "train/n02/images/n02_1.JPEG") as image:
        assert np.array_equal(train.images[2].permute(1, 2, 0), np.asarray(image))
    assert (val.images[:, 0] == val.images[:, 2]).all()  # grey in all channels
    assert len(DATASETS["tiny_imagenet"].digest(tmp_path)) == 8


def test_tiny_imagenet_is_downloaded_whole_or_not_at_all(tmp_path, server, monkeypatch):
    with pytest.raises(InputError, match=r"Tiny ImageNet is not complete in .*tiny-imagenet-200 "):
        load_data("tiny_imagenet", tmp_path)
    assert DATASETS["tiny_imagenet"].digest(tmp_path / "data") == ""
    folder = make_tiny(tmp_path / "made")
    archive = server.folder / "tiny-imagenet-200.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(folder.rglob("*")):
            file.write(path, path.relative_to(folder.parent))
    monkeypatch.setattr(tiny_imagenet, "URL", server.url + archive.name)
    with pytest.raises(InputError, match="the download failed"):  # by the official MD5 sum
        load_data("tiny_imagenet", tmp_path / "data")
    assert left_in(tmp_path / "data") == []
    monkeypatch.setattr(tiny_imagenet, "MD5", hashlib.md5(archive.read_bytes()).hexdigest())
    train, val = load_data("tiny_imagenet", tmp_path / "data")
    assert (len(train), len(val)) == (3, 2)


@pytest.mark.parametrize("name", ["val/images/val_1.JPEG", "words.txt"])
def test_a_damaged_tiny_imagenet_is_named(name, tmp_path):
    folder = make_tiny(tmp_path)
    (folder / name).write_bytes(b"")
    with pytest.raises(InputError, match=r"tiny-imagenet-200.* unpack http"):
        load_data("tiny_imagenet", tmp_path)


def make_imagenet(root, classes):
    for i in range(classes):
        (root / f"train/n{i:08}").mkdir(parents=True)
        picture(8, 8, i).save(root / f"train/n{i:08}/{i}.JPEG")
    (root / "val/n00000001").mkdir(parents=True)
    picture(20, 10, 0).save(root / "val/n00000001/a.JPEG")


def test_a_teacher_with_imagenets_weights_knows_the_classes_of_imagenet(tmp_path):
    """torchvision's weights have the classes in the order of the sorted folders."""
    make_imagenet(tmp_path / "imagenet", 1000)
    train, val = load_data("imagenet", tmp_path, 8)
    assert len(train) == 1000 and val.labels.tolist() == [1]
    assert val.classes[1] == "goldfish" and train.aspect is not None
    teacher = Teacher(nn.Linear(1, 1000), tuple(CATEGORIES))
    assert teacher.same_classes(train.classes) == (True, False)
    assert Run(dataset="imagenet", method="kd").teacher_weights_hash == "imagenet"
    with pytest.raises(InputError, match="knows other classes"):
        Run(dataset="stanford40", method="kd")


def test_some_classes_of_imagenet_keep_the_names_of_their_folders(tmp_path):
    make_imagenet(tmp_path, 3)
    train, _ = load_data("imagenet", tmp_path, 8)
    assert train.classes == ("n00000000", "n00000001", "n00000002")


def test_a_missing_imagenet_is_named(tmp_path):
    assert DATASETS["imagenet"].digest(tmp_path) == ""
    with pytest.raises(InputError, match=r"no ImageNet in .* needs train/CLASS/\*\.JPEG"):
        load_data("imagenet", tmp_path)
