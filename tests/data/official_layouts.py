"""Small copies of torchvision's data sets, in the files and folders of the official ones.

A function makes each; `image(label, size)` gives its images. Those of class 0 are dark, of class 1
bright. Where torchvision compares MD5 sums, those of the copy take the place of the official ones.
"""

import bz2
import hashlib
import json
import pickle
import struct
from pathlib import Path

import h5py
import numpy as np
from PIL import Image
from scipy.io import savemat
from torchvision import datasets

TRAIN, TEST = [0, 1, 1, 0, 1], [1, 0, 0]  # labels
DARK, BRIGHT = 40, 200


def image(label, *shape):
    return np.full(shape, BRIGHT if label else DARK, np.uint8)


def images(labels, *shape):
    return np.stack([image(label, *shape) for label in labels])


def photograph(path, label, size=(20, 16)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image(label, *size[::-1], 3)).save(path, quality=95)


def photographs(folder, labels, name, **how):
    """One file for each label; name: function of the index and the label."""
    for i, label in enumerate(labels):
        photograph(folder / name(i, label), label, **how)


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


def write_idx(path, array):
    """The format of MNIST."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = {"uint8": 8, "int32": 12}[array.dtype.name]
    head = struct.pack(f">HBB{array.ndim}I", 0, kind, array.ndim, *array.shape)
    path.write_bytes(head + array.astype(array.dtype.newbyteorder(">")).tobytes())


def cifar10(root, patch):
    folder = root / "cifar-10-batches-py"
    folder.mkdir()
    files = {"data_batch_1": TRAIN[:3], "data_batch_2": TRAIN[3:], "test_batch": TEST}
    for name, labels in files.items():
        content = {"data": images(labels, 3072), "labels": labels}
        (folder / name).write_bytes(pickle.dumps(content))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": ["airplane", "bird"]}))
    sums = [[name, md5(folder / name)] for name in files]
    meta = {"filename": "batches.meta", "key": "label_names", "md5": md5(folder / "batches.meta")}
    for name, value in (("train_list", sums[:2]), ("test_list", sums[2:]), ("meta", meta)):
        patch.setattr(datasets.CIFAR10, name, value)


def mnist_like(root, name, prefixes):
    for prefix, labels in zip(prefixes, (TRAIN, TEST), strict=True):
        raw = root / name / "raw"
        write_idx(raw / f"{prefix}-images-idx3-ubyte", images(labels, 28, 28))
        if name == "QMNIST":
            about = np.zeros((len(labels), 8), np.int32)
            about[:, 0] = labels
            write_idx(raw / f"{prefix}-labels-idx2-int", about)
        else:
            write_idx(raw / f"{prefix}-labels-idx1-ubyte", np.array(labels, np.uint8))


def mnist(root, patch):
    mnist_like(root, "MNIST", ("train", "t10k"))


def fashionmnist(root, patch):
    mnist_like(root, "FashionMNIST", ("train", "t10k"))


def kmnist(root, patch):
    mnist_like(root, "KMNIST", ("train", "t10k"))


def emnist(root, patch):
    mnist_like(root, "EMNIST", ("emnist-balanced-train", "emnist-balanced-test"))


def qmnist(root, patch):
    mnist_like(root, "QMNIST", ("qmnist-train", "qmnist-test"))


def usps(root, patch):
    for name, labels in (("usps.bz2", TRAIN), ("usps.t.bz2", TEST)):
        lines = []
        for label in labels:
            value = image(label)[()] / 255 * 2 - 1 + 1e-4
            pixels = " ".join(f"{i + 1}:{value:.6f}" for i in range(256))
            lines.append(f"{label + 1} {pixels}\n")
        (root / name).write_bytes(bz2.compress("".join(lines).encode()))


def svhn(root, patch):
    sums = {}
    for split, labels in (("train", TRAIN), ("test", TEST)):
        path = root / f"{split}_32x32.mat"
        pixels = images(labels, 32, 32, 3).transpose(1, 2, 3, 0)
        digits = [[label or 10] for label in labels]  # a 0 has label 10
        savemat(path, {"X": pixels, "y": np.array(digits, np.uint8)})
        sums[split] = ["http://127.0.0.1:9/", path.name, md5(path)]
    patch.setattr(datasets.SVHN, "split_list", sums)


def stl10(root, patch):
    folder = root / "stl10_binary"
    folder.mkdir()
    for split, labels in (("train", TRAIN), ("test", TEST), ("unlabeled", [0, 1])):
        (folder / f"{split}_X.bin").write_bytes(images(labels, 3, 96, 96).tobytes())
        if split != "unlabeled":
            (folder / f"{split}_y.bin").write_bytes(bytes(label + 1 for label in labels))
    (folder / "class_names.txt").write_text("airplane\nbird\n")
    for split in ("train", "test"):
        names = [name for name, _ in getattr(datasets.STL10, f"{split}_list")]
        patch.setattr(datasets.STL10, f"{split}_list", [[n, md5(folder / n)] for n in names])


def pcam(root, patch):
    (root / "pcam").mkdir()
    for split, labels in (("train", TRAIN), ("test", TEST)):
        start = f"{root}/pcam/camelyonpatch_level_2_split_{split}"
        with h5py.File(f"{start}_x.h5", "w") as x, h5py.File(f"{start}_y.h5", "w") as y:
            x["x"] = images(labels, 96, 96, 3)
            y["y"] = np.array(labels, np.uint8).reshape(-1, 1, 1, 1)


def eurosat(root, patch):
    labels = [0, 1] * 5
    name = "{1}/{1}_{0}.jpg".format
    photographs(root / "eurosat/2750", labels, lambda i, label: name(i, "AB"[label]), size=(64, 64))


def caltech101(root, patch):
    folder = root / "caltech101/101_ObjectCategories"
    labels = [0] * 5 + [1] * 5
    photographs(
        folder, labels, lambda i, label: f"{('ant', 'bass')[label]}/image_{i % 5 + 1:04}.jpg"
    )
    photograph(folder / "BACKGROUND_Google/image_0001.jpg", 0)


def caltech256(root, patch):
    labels = [0] * 5 + [1] * 5
    photographs(
        root / "caltech256/256_ObjectCategories",
        labels,
        lambda i, label: f"{('001.ak47', '002.flag')[label]}/{label + 1:03}_{i % 5 + 1:04}.jpg",
    )


def splits_of_folders(root, splits, classes, end, **how):
    for split, labels in zip(splits, (TRAIN, TEST), strict=True):
        photographs(root / split, labels, lambda i, label: f"{classes[label]}/{i}.{end}", **how)


def country211(root, patch):
    splits_of_folders(root / "country211", ("train", "test"), ("AD", "ZW"), "jpg")


def imagenette(root, patch):
    classes = "n01440764", "n02102040"
    splits_of_folders(root / "imagenette2", ("train", "val"), classes, "JPEG")


def renderedsst2(root, patch):
    splits_of_folders(root / "rendered-sst2", ("train", "test"), ("negative", "positive"), "png")


def dtd(root, patch):
    folder = root / "dtd/dtd"
    names = {}
    for split, labels in (("train", TRAIN[:2]), ("val", TRAIN[2:]), ("test", TEST)):
        name = "{0}/{0}_{1}{2}.jpg".format
        names[split] = [name(("banded", "woven")[c], split, i) for i, c in enumerate(labels)]
        photographs(folder / "images", labels, lambda i, label, split=split: names[split][i])
        write(folder / f"labels/{split}1.txt", "\n".join(names[split]) + "\n")


def fgvcaircraft(root, patch):
    folder = root / "fgvc-aircraft-2013b/data"
    variants = "707-320", "A300 B4"
    write(folder / "variants.txt", "\n".join(variants) + "\n")
    for split, labels in (("trainval", TRAIN), ("test", TEST)):
        photographs(folder / "images", labels, lambda i, label, split=split: f"{split}{i}.jpg")
        lines = [f"{split}{i} {variants[label]}\n" for i, label in enumerate(labels)]
        write(folder / f"images_variant_{split}.txt", "".join(lines))


def flowers102(root, patch):
    folder = root / "flowers-102"
    labels = TRAIN + TEST
    photographs(folder / "jpg", labels, lambda i, label: f"image_{i + 1:05}.jpg")
    savemat(folder / "imagelabels.mat", {"labels": np.array([label + 1 for label in labels])})
    savemat(folder / "setid.mat", {"trnid": [1, 2, 3], "valid": [4, 5], "tstid": [6, 7, 8]})
    files = dict(datasets.Flowers102._file_dict)
    for part in ("label", "setid"):
        files[part] = files[part][0], md5(folder / files[part][0])
    patch.setattr(datasets.Flowers102, "_file_dict", files)
    patch.setattr(datasets.Flowers102, "classes", ["pink primrose", "canterbury bells"])


def food101(root, patch):
    folder = root / "food-101"
    for split, labels in (("train", TRAIN), ("test", TEST)):
        names = [f"{('apple_pie', 'waffles')[c]}/{split}{i}" for i, c in enumerate(labels)]
        photographs(folder / "images", labels, lambda i, label, names=names: names[i] + ".jpg")
        listed = {c: [n for n in names if n.startswith(c)] for c in ("apple_pie", "waffles")}
        write(folder / f"meta/{split}.json", json.dumps(listed))


def gtsrb(root, patch):
    folder = root / "gtsrb/GTSRB"
    photographs(folder / "Training", TRAIN, lambda i, label: f"{label:05}/{i:05}.ppm")
    photographs(folder / "Final_Test/Images", TEST, lambda i, label: f"{i:05}.ppm")
    lines = [f"{i:05}.ppm;{label}\n" for i, label in enumerate(TEST)]
    write(root / "gtsrb/GT-final_test.csv", "".join(["Filename;ClassId\n", *lines]))


def oxfordiiitpet(root, patch):
    folder = root / "oxford-iiit-pet"
    for split, labels in (("trainval", TRAIN), ("test", TEST)):
        names = [f"{('Abyssinian', 'beagle')[c]}_{split}{i}" for i, c in enumerate(labels)]
        photographs(folder / "images", labels, lambda i, label, names=names: names[i] + ".jpg")
        lines = [f"{n} {c + 1} {c + 1} 1\n" for n, c in zip(names, labels, strict=True)]
        write(folder / f"annotations/{split}.txt", "".join(lines).replace(split, f"x_{split}"))
        for name in names:
            path = folder / f"images/{name}.jpg"
            path.rename(path.with_name(path.name.replace(split, f"x_{split}")))


def stanfordcars(root, patch):
    folder = root / "stanford_cars"
    (folder / "devkit").mkdir(parents=True)
    kinds = np.array(["Acura RL", "BMW M3"], object)
    savemat(folder / "devkit/cars_meta.mat", {"class_names": kinds})
    annotations = {"train": "devkit/cars_train_annos", "test": "cars_test_annos_withlabels"}
    for split, labels in (("train", TRAIN), ("test", TEST)):
        photographs(folder / f"cars_{split}", labels, lambda i, label: f"{i:05}.jpg")
        rows = [(f"{i:05}.jpg", label + 1) for i, label in enumerate(labels)]
        table = np.array(rows, [("fname", object), ("class", object)])
        savemat(folder / f"{annotations[split]}.mat", {"annotations": table})


def sun397(root, patch):
    write(root / "SUN397/ClassName.txt", "/a/abbey\n/y/yard\n")
    labels = [0, 1] * 5
    photographs(
        root / "SUN397", labels, lambda i, label: f"{('a/abbey', 'y/yard')[label]}/sun_{i:03}.jpg"
    )
