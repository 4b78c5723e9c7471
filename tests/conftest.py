"""Small images, photographs and a web server that every test file may use."""

import functools
import http.server
import os
import sys
import threading

# Several processes share the cores: see docs/performance.md on threads that spin.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from kdnb.data import DATASETS, Images
from kdnb.data.ragged import Ragged
from kdnb.losses import LOSSES, METHODS
from kdnb.models.base import FAMILIES
from kdnb.runs.plugins import LOADED

# Without a deadline, since tests share the cores; the short profile tries the same every time.
hypothesis.settings.register_profile("short", max_examples=30, deadline=None, derandomize=True)
hypothesis.settings.register_profile("long", max_examples=3000, deadline=None)
hypothesis.settings.load_profile("short")

# The discard port: it refuses at once, as a machine without a network does.
NOBODY = "http://127.0.0.1:9/"


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def same_threads():
    """A run's number of threads is not that of the tests after it: they would spin for a core."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def image_set(n=40, size=8, classes=4, aspect=None, seed=0):
    """Random bytes whose brightness gives the class away, so that a network can learn it.

    With aspect ratios (n,) they are photographs, whose shorter side is `size`.
    """
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % classes
    noise = torch.randint(0, 80, (n, 3, size, size), generator=generator)
    images = (noise + 50 * labels.view(-1, 1, 1, 1)).clamp(max=255).to(torch.uint8)
    names = tuple(f"class {i}" for i in range(classes))
    mean, std = (0.5,) * 3, (0.25,) * 3
    if aspect is not None:
        shapes = [(size / min(a, 1), size * max(a, 1)) for a in aspect.tolist()]
        arrays = [
            np.resize(image.permute(1, 2, 0).numpy(), (round(h), round(w), 3))
            for image, (h, w) in zip(images, shapes, strict=True)
        ]
        images = Ragged.from_arrays(arrays)
    return Images(images, labels, names, mean, std)


def picture(width, height, seed, mode="RGB"):
    """A smooth random photograph: noise would not survive JPEG."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def resized(path, size):
    """The pixels of an image file, whose shorter side is resized as torchvision does."""
    return np.asarray(v2.functional.resize(Image.open(path).convert("RGB"), size))


def left_in(folder):
    """The names of all files below a folder, but for locks; none if there is no folder."""
    paths = folder.rglob("*") if folder.is_dir() else ()
    return sorted(path.name for path in paths if path.suffix != ".lock")


@pytest.fixture
def registries():
    """Whatever a test registers, with the modules that it imports, is gone after it."""
    tables = (LOSSES, METHODS, FAMILIES, DATASETS, LOADED, sys.modules)
    copies = [dict(table) for table in tables]
    yield
    for table, copy in zip(tables, copies, strict=True):
        for name in table.keys() - copy.keys():
            del table[name]


@pytest.fixture(scope="session", autouse=True)
def session_cache(tmp_path_factory):
    """A cache for all tests: what runs of before left in the user's is not read, nor added to."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KDNB_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def teacher_outputs(tmp_path_factory):
    """The outputs folder in which `helpers.teacher` is trained, once for all test files."""
    return tmp_path_factory.mktemp("teacher")


@pytest.fixture
def cache_folder(tmp_path, monkeypatch):
    """A cache in the test's own folder: never the user's."""
    monkeypatch.setenv("KDNB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Serves the files of `server.folder` under `server.url`."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    folder = tmp_path / "served"
    folder.mkdir()
    handler = functools.partial(Quiet, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.folder = folder
        server.url = f"http://127.0.0.1:{server.server_port}/"
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        yield server
        server.shutdown()
