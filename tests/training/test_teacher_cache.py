"""The teacher's answers are computed once, and a student trained on them has the same bits."""

import errno
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import image_set
from helpers import (
    TINY,
    break_off,
    press_stop,
    quiet,
    save_teacher,
    teacher,
    tiny,
    tiny_run,
    weights,
)
from safetensors.torch import save_file

from kdnb import InputError, Output, create_model, train
from kdnb.data import DATASETS, register
from kdnb.data.digests import no_digest
from kdnb.models.base import register as register_network
from kdnb.training import answer_file
from kdnb.training.answer_file import AnswerFile
from kdnb.training.setup import build_setup
from kdnb.training.teacher_cache import TeacherCache, open_cache

FULL = 4  # full batches of an epoch; a smaller one follows
PROBES = 3  # forward passes of the teacher when a cache is opened


@pytest.fixture(autouse=True)
def computed(cache_folder, monkeypatch):
    """Counts the full batches that the teacher answered, the probes included."""
    count = []
    original = TeacherCache.compute
    monkeypatch.setattr(TeacherCache, "compute", lambda *args: count.append(1) or original(*args))
    return count


@pytest.fixture
def fields(tmp_path, teacher):
    return {"outputs": tmp_path, "teacher_weights": teacher, "method": "kd"}


def trained(fields, log=quiet, **changes):
    """A run that is trained; with a cache, unless the changes say otherwise."""
    changes = {"teacher_cache": "on", **changes}
    # A folder for each: else a run would be found finished.
    place = f"{len([*fields['outputs'].glob('*')])}"
    return train(tiny_run(**fields | changes | {"outputs": fields["outputs"] / place}), log=log)


def answers(cache_folder):
    return sorted((cache_folder / "answers").glob("*"))


@pytest.mark.parametrize(
    "changes",
    [
        {"dataset": "flipped"},
        {"method": "pkt"},
        {"method": "ce + dkd + crd"},
        {"method": "kd", "teacher_size": 16},
        {"method": "kd", "precision": "bfloat16"},
    ],
    ids=["logits", "pooled", "both", "other size", "bfloat16"],
)
def test_weights_are_the_same_to_the_bit_without_with_an_empty_and_with_a_full_cache(
    fields, changes, computed, registries
):
    register("flipped", replace(TINY, flip=True), digest=no_digest)(DATASETS["tiny"].load)
    without = trained(fields, **changes, teacher_cache="off")
    assert not computed
    assert weights(trained(fields, **changes)) == weights(without)
    first = len(computed)
    assert first > PROBES
    assert weights(trained(fields, **changes)) == weights(without)
    assert len(computed) == first + PROBES  # all other answers were known


def test_answers_are_of_the_type_that_they_are_computed_in(fields, cache_folder):
    for precision in ("float32", "bfloat16"):
        trained(fields, precision=precision, epochs=1)
    rows, classes = 70 * 3 * 3, 4
    sizes = sorted(path.stat().st_size for path in answers(cache_folder))
    assert sizes == [rows * (classes * nbytes + answer_file.CHECKSUM) for nbytes in (2, 4)]


def test_seeds_and_methods_share_the_answers(fields, computed, cache_folder):
    for seed in range(8):
        trained(fields, seed=seed)
    before = len(computed)
    run = trained(fields, seed=9, method="lskd")
    assert len(computed) - before - PROBES < FULL * run.epochs / 2
    assert len(answers(cache_folder)) == 1


def test_unknown_answers_are_computed_in_full_batches(fields, monkeypatch):
    """When most are known, the few others must not cost a pass of the teacher for each batch."""
    run = tiny_run(**fields, teacher_cache="on")
    setup = build_setup(run)
    cache = open_cache(run, setup.distiller, setup.train, False, quiet)
    plan = setup.train.plan(0)
    unknown = [3, 20, 40, 50]  # one in each full batch
    known = np.delete(np.arange(FULL * 16), unknown)
    for part in np.array_split(known, FULL):
        cache.add(plan, cache.rows(plan), part)
    passes = []
    add = cache.add
    monkeypatch.setattr(cache, "add", lambda *args: passes.append([*args[-1]]) or add(*args))
    batches = [*map(cache.batch_of, cache.inputs(0))]
    assert passes == [unknown]
    for batch, expected in zip(batches, setup.train.epoch(0), strict=True):
        assert all(map(torch.equal, batch[:3], expected[:3]))
    assert [batch.teacher_logits is None for batch in batches] == [False] * FULL + [True]


@pytest.mark.parametrize("lost", [False, True], ids=["present", "lost"])
def test_an_interrupted_run_resumes_to_the_same_bits(fields, cache_folder, lost):
    without = trained(fields, teacher_cache="off")
    run = tiny_run(**fields, teacher_cache="on")
    break_off(run, 8, press_stop)
    if lost:
        answers(cache_folder)[0].unlink()
    assert weights(train(run, log=quiet)) == weights(without)


def overwrite(path):
    path.write_bytes(bytes(reversed(path.read_bytes())))


def cut(path):
    os.truncate(path, path.stat().st_size // 3)


@pytest.mark.parametrize("damage", [overwrite, cut, os.unlink])
def test_a_damaged_file_is_filled_anew(fields, cache_folder, damage):
    without = trained(fields, teacher_cache="off")
    trained(fields)
    (path,) = answers(cache_folder)
    damage(path)
    lines = []
    assert weights(trained(fields, lines.append)) == weights(without)
    named = [line for line in lines if "damaged answers" in line]
    assert bool(named) == (damage is overwrite)
    lines.clear()
    trained(fields, lines.append)
    assert not [line for line in lines if "damaged answers" in line]


def test_a_row_counts_only_if_it_is_complete_and_of_this_file(tmp_path):
    path, rows = tmp_path / "x.answers", np.array([1, 5])
    values = torch.tensor([[1.0, 2.0], [0.0, 0.0]])

    def known(key=b"key"):
        return AnswerFile(path, key, 9, 2, torch.float32).read(np.arange(9))[1].nonzero()[0]

    file = AnswerFile(path, b"key", 9, 2, torch.float32)
    file.write(rows, values)
    read, _ = file.read(rows)
    assert torch.equal(read, values) and known().tolist() == [1, 5]
    assert not known(b"other").any()
    data = bytearray(path.read_bytes())
    data[2 * file.stride : 3 * file.stride] = data[file.stride : 2 * file.stride]  # a row moved
    data[5 * file.stride + 7] ^= 1  # a bit that flipped
    path.write_bytes(data)
    assert known().tolist() == [1]


def test_other_weights_and_other_images_have_other_files(fields, cache_folder, tmp_path):
    other = save_teacher(tmp_path / "other.safetensors", None)
    for changes in ({}, {"teacher_weights": other}, {"train_limit": 50}, {"batch_size": 20}):
        before = len(answers(cache_folder))
        cached = trained(fields, **changes, epochs=1)
        assert len(answers(cache_folder)) == before + 1
        assert weights(cached) == weights(trained(fields, **changes, epochs=1, teacher_cache="off"))


PROCESS = """
import sys
from kdnb import Run, train
train(Run(dataset="digits", method=sys.argv[1], seed=int(sys.argv[2]), teacher_weights=sys.argv[3],
    outputs=sys.argv[4], teacher_cache="on", epochs=2, device="cpu", precision="float32"))
"""


@pytest.mark.slow
def test_two_processes_fill_one_file(tmp_path, cache_folder):
    torch.manual_seed(0)
    path = tmp_path / "teacher.safetensors"
    save_file(create_model("wrn_16_2", 10).state_dict(), path)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, method, seed, path, tmp_path / "together"],
            cwd=Path(__file__).parents[2],
        )
        for method, seed in (("kd", "0"), ("lskd", "1"))
    ]
    assert [process.wait() for process in processes] == [0, 0]
    (file,) = answers(cache_folder)
    common = {"dataset": "digits", "teacher_weights": str(path), "epochs": 2}
    for method, seed in (("kd", 0), ("lskd", 1)):
        together = tiny_run(tmp_path / "together", **common, method=method, seed=seed)
        alone = train(tiny_run(tmp_path / "alone", **common, method=method, seed=seed), quiet)
        assert together.done and weights(together) == weights(alone)
    before = file.read_bytes()
    again = tiny_run(tmp_path / "again", **common, method="kd", seed=0, teacher_cache="on")
    assert weights(train(again, quiet)) == weights(together.with_changes(method="kd", seed=0))
    assert file.read_bytes() == before  # both wrote all of their answers


def test_a_full_disk_ends_the_writing_alone(fields, monkeypatch):
    without = trained(fields, teacher_cache="off")

    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(AnswerFile, "write", fail)
    lines = []
    assert weights(trained(fields, lines.append)) == weights(without)
    assert len([line for line in lines if "No space left" in line]) == 1


def test_what_cannot_be_kept_is_refused_or_left_out(fields, monkeypatch, cache_folder, registries):
    def refused(match, **changes):
        with pytest.raises(InputError, match=f"teacher_cache is on, but .*{match}"):
            trained(fields, **changes)
        lines = []
        assert trained(fields, lines.append, **changes, teacher_cache="auto", epochs=1).done
        return any("are not stored" in line for line in lines)

    assert not refused("^|afd needs more of a teacher", method="afd")
    assert trained(fields, method="none").done  # there is no teacher

    @register("photographs", replace(TINY, teacher_weights="none"), digest=no_digest)
    def load(root, size, **_):
        return image_set(70, aspect=torch.ones(70)), image_set(40, seed=9)

    assert not refused("augmented in too many ways", dataset="photographs")

    monkeypatch.setattr(answer_file, "MOST_BYTES", 100)
    assert len(answers(cache_folder)) == 0
    lines = []
    trained(fields, lines.append, teacher_cache="auto", epochs=1)
    assert any("they would take 0.0 GB; teacher_cache on allows it" in line for line in lines)
    monkeypatch.setattr(answer_file, "MOST_BYTES", 1e9)
    usage = answer_file.shutil.disk_usage("/")
    monkeypatch.setattr(answer_file.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    assert refused("has 0.0 GB free: make room, or set KDNB_CACHE")


def test_a_teacher_whose_answers_depend_on_the_batch_has_no_cache(fields, registries, tmp_path):
    @register_network("crowd")
    def build(num_classes):
        model = create_model("wrn_16_1", num_classes)
        forward = model.forward

        def depends(images):
            output = forward(images)
            return Output(output.logits + output.logits.mean(), *output[1:])

        model.forward = depends
        return model

    path = save_teacher(tmp_path / "crowd.safetensors", None)
    with pytest.raises(
        InputError, match="depends on the other images, or on the place, in a batch"
    ):
        trained(fields, teacher="crowd", teacher_weights=path)


def test_auto_leaves_compiled_steps_as_they_are(fields, cache_folder):
    setup = build_setup(tiny_run(**fields))
    run = tiny_run(**fields, teacher_cache="auto")
    lines = []
    assert open_cache(run, setup.distiller, setup.train, True, lines.append) is None
    assert "last bits of compiled steps" in lines[0] and not answers(cache_folder)
    assert open_cache(run, setup.distiller, setup.train, False, lines.append)
    assert str(answers(cache_folder)[0]) in lines[1]
