"""Runs that the code wrote whose config.json has format 1 (commit 8d20a9a) are read and resumed.

tests/runs/format1 holds what that code left of three runs on the digits: a teacher, a finished
distilled student without its weights, and one that was interrupted after step 1 of epoch 2. Fields
had other names then.
"""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import edit, quiet

from kdnb import InputError, Run, load_weights, results, train
from kdnb.models import read_metadata
from kdnb.progress import percent
from kdnb.runs.checkpoint import load_checkpoint
from kdnb.runs.folder import RunFolder
from kdnb.training.step import Engine

RUNS = Path(__file__).parent / "format1" / "runs"
RENAMED = {
    "teacher_id": "teacher_weights_hash",
    "pretrained": "student_weights_hash",
    "data_id": "data_hash",
}
(TEACHER,) = RUNS.glob("digits-wrn_10_1-none-*")
(FINISHED,) = RUNS.glob("*-seed=0-66da0d")
(INTERRUPTED,) = RUNS.glob("*-seed=1-d325e4")
FOLDERS = [TEACHER, FINISHED, INTERRUPTED]


def stored_config(folder):
    return json.loads((folder / "config.json").read_text())


def content(folder):
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}


def interrupted_copy(tmp_path, **fields):
    folder = shutil.copytree(INTERRUPTED, tmp_path / "runs" / INTERRUPTED.name)
    return Run.open(folder, **fields)


@pytest.mark.parametrize("folder", FOLDERS, ids=["teacher", "finished", "interrupted"])
def test_a_run_is_opened_under_its_name_with_the_fields_of_today(folder):
    run = Run.open(folder)
    assert run.name == folder.name
    stored = stored_config(folder)
    assert stored["format"] == 1
    fields = {RENAMED.get(name, name): value for name, value in stored["run"].items()}
    defaults = Run.parameters() | run.defaults
    later = {name: defaults[name] for name in run.identity.keys() - fields.keys()}
    assert run.identity == fields | later  # fields that came later have their defaults
    overrides = {RENAMED.get(name, name): pair for name, pair in stored["changes"].items()}
    assert run.reported_overrides == run.config["overrides"] == overrides


def test_a_finished_run_is_only_read():
    run = Run.open(FINISHED)
    before = content(FINISHED)
    lines = []
    trained = train(run, lines.append)
    assert trained.result == json.loads((FINISHED / "result.json").read_text())
    top1 = percent(run.result["top1"], run.result["test_images"])
    assert lines == [f"{run.name}: finished before, top-1 {top1} %"]
    assert content(FINISHED) == before
    assert run.teacher_run == Run.open(TEACHER)


def test_the_history_of_a_run_is_read_to_the_bit():
    run = Run.open(FINISHED)
    rows = list(csv.DictReader((FINISHED / "metrics.csv").read_text().splitlines()))
    assert run.metrics.columns.tolist() == list(rows[0])
    assert run.metrics.to_numpy().tolist() == [list(map(float, row.values())) for row in rows]
    attention, teacher_blocks, student_blocks = run.links_by_epoch
    with np.load(FINISHED / "history.npz") as file:
        assert np.array_equal(attention, file["afd.links"])
    assert attention.shape == (2, len(teacher_blocks), len(student_blocks))
    assert attention.sum(2) == pytest.approx(1, abs=1e-5)


def test_its_weights_are_read():
    weights = Run.open(TEACHER).weights
    metadata = read_metadata(weights)
    assert metadata["classes"] == [str(digit) for digit in range(10)]
    assert metadata["top1"] == Run.open(TEACHER).result["top1"]
    assert load_weights("wrn_10_1", weights).fc.out_features == 10


def test_its_row_in_the_results_is_complete():
    frame = results.load_frame(RUNS).set_index("method")
    assert len(frame) == 2
    row = frame.loc["ce + kd:0.9 + afd:50(qk_dim=8)"]
    assert not row.drop("override_values").isna().any()
    assert (row["teacher"], row["classes"], row["seed"]) == ("wrn_10_1 (digits)", 10, 0)
    assert row["overrides"].startswith("epochs 2 instead of 40, lr 0.05 instead of 0.1")
    assert row["teacher_overrides"] == (
        "its teacher: epochs 1 instead of 6, image_size 8 instead of 16"
    )
    assert row["top1"] == json.loads((FINISHED / "result.json").read_text())["top1"]


def test_an_interrupted_run_resumes_with_every_tensor_of_its_checkpoint(tmp_path, monkeypatch):
    weights = str(TEACHER / "student.safetensors")
    run = interrupted_copy(tmp_path, teacher_weights=weights, student_weights=weights)
    saved = load_checkpoint(INTERRUPTED)
    loaded = []

    def load(engine, state, original=Engine.load):
        original(engine, state)
        state = engine.state()
        trained = {name: value.clone() for name, value in state["trained"].items()}
        momenta = [
            entry["momentum_buffer"].clone() for entry in state["optimizer"]["state"].values()
        ]
        running = {name: value.clone() for name, value in state["running"].items()}
        loaded.append((trained, momenta, running, state["sums"].clone(), state["rng"].clone()))

    monkeypatch.setattr(Engine, "load", load)
    lines = []
    train(run, lines.append)
    assert f"{run.name}: resuming after epoch 1, step 1" in lines

    ((trained, momenta, running, sums, rng),) = loaded
    assert trained.keys() == saved["trained"].keys()
    assert all(torch.equal(trained[name], value) for name, value in saved["trained"].items())
    saved_momenta = [entry["momentum_buffer"] for entry in saved["optimizer"]["state"].values()]
    assert len(momenta) == len(saved_momenta) > 0
    assert all(map(torch.equal, momenta, saved_momenta))
    assert running.keys() == saved["running"].keys()
    assert all(torch.equal(running[name], value) for name, value in saved["running"].items())
    assert torch.equal(sums, saved["sums"])
    assert torch.equal(rng, saved["rng"])

    assert run.done
    first_epoch = (INTERRUPTED / "metrics.csv").read_text().splitlines()[1]
    assert run.metrics["epoch"].tolist() == [1, 2]
    assert run.metrics.iloc[0].tolist() == [float(cell) for cell in first_epoch.split(",")]
    assert stored_config(run.folder)["format"] == 2
    assert Run.open(run.folder).identity == Run.open(INTERRUPTED).identity


def test_weights_that_have_moved_are_asked_for(tmp_path):
    run = interrupted_copy(tmp_path)
    with pytest.raises(InputError, match=r"teacher_weights 'elsewhere/student\.safetensors'"):
        train(run, quiet)


@pytest.mark.parametrize(
    ("version", "sentence"),
    [
        (3, r"config\.json has format 3, and this version of kdnb reads formats up to 2"),
        ("two", r"config\.json is damaged \(its format is 'two', not a number\)"),
        (None, r"config\.json is damaged \(its format is None, not a number\)"),
    ],
)
def test_another_format_is_refused_in_one_sentence(tmp_path, version, sentence):
    run = interrupted_copy(tmp_path)
    edit(run.folder / "config.json", format=version)
    for read in (lambda: Run.open(run.folder), lambda: RunFolder(run.folder).config):
        with pytest.raises(InputError, match=sentence):
            read()
