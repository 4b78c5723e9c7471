import errno
import json
import os
import resource
import shutil
import stat
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import quiet, tiny, tiny_run

from kdnb import InputError, Run, train
from kdnb.models import load_weights, read_state_dict
from kdnb.runs.checkpoint import CHECKPOINT, drop_checkpoints, load_checkpoint, save_checkpoint
from kdnb.runs.files import write_atomically
from kdnb.runs.folder import RunFolder, write_history


@pytest.fixture
def folder(tmp_path):
    """A run's folder after two epochs."""
    for epoch in (1, 2):
        save_checkpoint(
            tmp_path,
            {"epoch": epoch, "weights": torch.arange(1000) + epoch, "means": [torch.ones(2)]},
        )
    return tmp_path


def files(folder):
    return {path.name for path in folder.iterdir()}


def flipped(path, seed):
    """The content of a file with one bit flipped."""
    rng, content = np.random.default_rng(seed), bytearray(path.read_bytes())
    content[rng.integers(len(content))] ^= 1 << rng.integers(8)
    return content


def test_checkpoints_come_back_and_the_one_before_is_kept(folder):
    assert torch.equal(load_checkpoint(folder)["weights"], torch.arange(1000) + 2)
    (folder / CHECKPOINT).unlink()  # killed between the two renames
    assert load_checkpoint(folder)["epoch"] == 1
    drop_checkpoints(folder)
    assert not files(folder)
    assert load_checkpoint(folder) is None


@pytest.mark.parametrize("seed", range(10))
def test_a_torn_checkpoint_is_noticed_and_the_older_one_used(folder, seed):
    path = folder / CHECKPOINT
    path.write_bytes(flipped(path, seed) if seed % 2 else path.read_bytes()[: -100 * seed - 1])
    with pytest.warns(UserWarning, match=r"checkpoint is damaged.*the one before"):
        assert load_checkpoint(folder)["epoch"] == 1


@pytest.mark.parametrize("content", [b"", b"torn", b"[1]"])
def test_two_torn_checkpoints_start_over_with_a_warning(folder, content):
    for name in files(folder):
        (folder / name).write_bytes(content)
    with pytest.warns(UserWarning, match="damaged"):
        assert load_checkpoint(folder) is None


def test_a_checkpoint_runs_no_code_whatever_its_checksum_says(folder):
    save_checkpoint(folder, {"epoch": files})  # a function
    with pytest.warns(UserWarning, match="damaged"):
        assert load_checkpoint(folder)["epoch"] == 2


def test_a_full_disk_leaves_what_was_there(folder):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, hard))
    try:
        with pytest.raises(
            InputError,
            match=r"cannot write .*checkpoint: File too large; the previous file is unchanged",
        ):
            save_checkpoint(folder, {"epoch": 3, "weights": torch.arange(1000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert load_checkpoint(folder)["epoch"] == 2
    assert files(folder) == {CHECKPOINT, f"{CHECKPOINT}.previous"}


def test_an_unwritable_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot write .*a: File exists$"):
        write_atomically(tmp_path / "file" / "a", "one")


def test_write_atomically_replaces_whole_files(tmp_path):
    write_atomically(tmp_path / "new" / "a", "one")
    write_atomically(tmp_path / "new" / "a", b"two", keep=tmp_path / "new" / "b")
    assert {path.name: path.read_text() for path in (tmp_path / "new").iterdir()} == {
        "a": "two",
        "b": "one",
    }


def test_a_disk_that_flushes_no_folders_is_written_to(tmp_path, monkeypatch):
    def refused(file):
        if stat.S_ISDIR(os.fstat(file).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "fsync", refused)
    write_atomically(tmp_path / "a", "one")
    assert (tmp_path / "a").read_text() == "one"


@pytest.mark.skipif(os.name != "posix", reason="only POSIX flushes folders")
def test_the_name_of_a_file_reaches_the_disk_too(tmp_path, monkeypatch):
    """The folder is flushed after the rename."""
    flushed = []

    def fsync(file):
        if stat.S_ISDIR(os.fstat(file).st_mode):
            flushed.append((os.fstat(file).st_ino, (tmp_path / "a").exists()))

    monkeypatch.setattr(os, "fsync", fsync)
    write_atomically(tmp_path / "a", "one")
    assert flushed == [(tmp_path.stat().st_ino, True)]


class Trap:
    """A pickle that makes a folder when it is opened."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_history_runs_no_code(tmp_path):
    links = np.array([Trap(tmp_path / "sprung")], dtype=object)
    np.savez(tmp_path / "history.npz", **{"afd.links": links})
    with pytest.raises(InputError, match=r"history\.npz is damaged"):
        _ = RunFolder(tmp_path).history
    assert not (tmp_path / "sprung").exists()


def test_a_history_that_lacks_an_array_is_damaged(tmp_path):
    """Two arrays whose names have become the same would be read as one."""
    np.savez(tmp_path / "history.npz", links_a=np.eye(2), links_b=np.eye(2))
    content = (tmp_path / "history.npz").read_bytes()
    (tmp_path / "history.npz").write_bytes(content.replace(b"links_b.npy", b"links_a.npy"))
    with pytest.raises(InputError, match=r"history\.npz is damaged \(an array is missing\)"):
        _ = RunFolder(tmp_path).history


def test_what_is_not_there_yet_gets_a_sentence(tmp_path):
    for name in ("config", "result", "metrics", "history", "weights", "loss_weights"):
        with pytest.raises(InputError, match=r"has no \w+\.\w+: the run has not written it yet"):
            getattr(RunFolder(tmp_path), name)
    assert not RunFolder(tmp_path).done


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory):
    return train(
        tiny_run(tmp_path_factory.mktemp("finished"), teacher="wrn_10_1", epochs=1), log=quiet
    )


@pytest.mark.parametrize(
    "content", [b"", b"\x93\x00\xffbytes", b"[1]", b"{}", b"PK\x03\x04 torn", b"a,b\n1,x\n"]
)
def test_a_damaged_file_gets_one_sentence_that_names_it(finished, tmp_path, content):
    folder = shutil.copytree(finished.folder, tmp_path / "runs" / finished.name)
    run = replace(finished, folder_override=str(folder))
    readers = {
        "result.json": [lambda: train(run, log=quiet), lambda: run.result],
        "config.json": [lambda: train(run, log=quiet), lambda: Run.open(folder)],
        "metrics.csv": [lambda: run.metrics],
        "history.npz": [lambda: run.history],
        "student.safetensors": [lambda: load_weights(run.student, run.weights)],
        "losses.safetensors": [lambda: read_state_dict(run.loss_weights)],
    }
    for name, reads in readers.items():
        stored = (folder / name).read_bytes()
        (folder / name).write_bytes(content)
        for read in reads:
            with pytest.raises(
                InputError, match=rf"^\S*{name} is (damaged|not a readable weights file) .*$"
            ):
                read()
        (folder / name).write_bytes(stored)
    (folder / "result.json").unlink()  # broken off
    (folder / "config.json").write_bytes(content)
    with pytest.raises(InputError, match=r"config\.json is damaged"):
        train(run, log=quiet)


@pytest.mark.parametrize("entry", [{"top1": 250}, {"top1": "NaN"}, {"top5": None}, {"best": 3}])
def test_a_result_without_an_accuracy_is_damaged(finished, tmp_path, entry):
    write_atomically(tmp_path / "result.json", json.dumps(finished.result | entry))
    with pytest.raises(InputError, match=r"result\.json is damaged"):
        _ = RunFolder(tmp_path).result


@pytest.mark.parametrize("seed", range(40))
def test_no_bit_that_flips_in_a_history_gives_a_raw_error(tmp_path, seed):
    stored = {"afd.links": np.eye(9), "teacher.blocks": np.array(["1.1", "1.2"])}
    write_history(tmp_path, [], stored)
    (tmp_path / "history.npz").write_bytes(flipped(tmp_path / "history.npz", seed))
    try:
        found = RunFolder(tmp_path).history
    except InputError as error:
        assert "history.npz is damaged" in str(error)
    else:
        assert found.keys() == stored.keys()
        assert all((found[name] == stored[name]).all() for name in stored)
