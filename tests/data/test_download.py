"""Locks on the data, archives that are unpacked by hand, and photographs of very many pixels."""

import threading
import time

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image
from torchvision.datasets import CIFAR100

from kdnb import InputError, load_data
from kdnb.data import download, image_file
from kdnb.data.cifar100 import unpacked_in
from kdnb.data.download import one_process


def test_who_waits_for_a_lock_prints_for_whom_and_gives_up(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(download, "WAIT", 0.05)
    monkeypatch.setattr(download, "STALLED", 0.2)
    monkeypatch.setattr(download, "read_holder", lambda lock: " (4242 on node7)")
    lock, part = tmp_path / "x.lock", tmp_path / "x.part"
    with FileLock(lock):
        refused = pytest.raises(InputError, match=r"x\.lock is held .*4242 on node7.*delete")
        with refused, one_process(lock, part):
            pass
    assert "waiting for another process (4242 on node7)" in capsys.readouterr().out


def test_who_waits_goes_on_when_the_lock_is_free(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "WAIT", 0.05)
    held = FileLock(tmp_path / "x.lock", thread_local=False)
    held.acquire()
    threading.Timer(0.2, held.release).start()
    with one_process(tmp_path / "x.lock", tmp_path / "x.part"):
        assert not held.is_locked


def test_the_holder_of_a_lock_that_is_a_file_is_read(tmp_path):
    (tmp_path / "x.lock").write_text("4242\nnode7\n1\n")
    assert download.read_holder(tmp_path / "x.lock") == " (4242 on node7)"
    (tmp_path / "x.lock").write_text("")
    assert download.read_holder(tmp_path / "x.lock") == ""


@pytest.mark.parametrize("folder", ["cifar-100-python", ".", "cifar-100-python/cifar-100-python"])
def test_cifar100_is_found_where_people_unpack_it(tmp_path, folder):
    (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    (tmp_path / folder / "train").touch()
    found = unpacked_in(tmp_path)
    assert issubclass(found, CIFAR100) and found.base_folder == folder


def test_cifar100_without_its_class_names_is_not_downloaded_again(tmp_path, monkeypatch):
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    for name in ("train", "test"):
        (folder / name).touch()

    def no_meta(self, *_, **how):
        assert "download" not in how
        raise RuntimeError("Dataset metadata file not found or corrupted.")

    monkeypatch.setattr(CIFAR100, "__init__", no_meta)
    with pytest.raises(InputError, match=rf"its file meta is missing .* into {tmp_path} again"):
        load_data("cifar100", tmp_path)


def test_few_pixels_are_decoded_at_a_time(tmp_path, monkeypatch):
    budget = image_file.PixelBudget(150)
    monkeypatch.setattr(image_file, "BUDGET", budget)
    Image.fromarray(np.zeros((10, 10), np.uint8)).save(tmp_path / "x.png")
    at_once, most = [], []
    convert = Image.Image.convert

    def slow(self, *arguments):
        at_once.append(1)
        most.append(len(at_once))
        time.sleep(0.02)
        at_once.pop()
        return convert(self, *arguments)

    monkeypatch.setattr(Image.Image, "convert", slow)
    read = [
        threading.Thread(target=image_file.read_image, args=(tmp_path / "x.png", 4))
        for _ in range(6)
    ]
    for thread in read:
        thread.start()
    for thread in read:
        thread.join()
    assert len(most) == 6 and max(most) == 1 and budget.free == 150
