"""A distilled run and its baseline stand under one heading, with a gain; and what a teacher from a
file is called."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import quiet, tiny, tiny_run

from kdnb import Run, create_model, results, train
from kdnb.data import DATASETS, register
from kdnb.results import tables
from kdnb.results.frame import run_row
from kdnb.results.pages import make_pages
from kdnb.training.outputs import make_config

# On the digits, this recipe is nearer to the preset's for a teacher (epochs 6, batch_size 64, all
# images) than to that for a student (epochs 40, batch_size 25, 100 images).
NEAR_THE_TEACHERS = {"epochs": 2, "batch_size": 64, "train_limit": -1, "image_size": 8}
TEACHER = {"network": "wrn_16_2", "dataset": "digits", "weights": "t", "overrides": {}}
MACHINE = {"device": "CPU", "device_type": "cpu", "versions": {"torch": "3"}, "commit": ""}


def write_folder(run, top1):
    """Write what training leaves in the folder of a run, without weights."""
    config = make_config(run) | {
        "format": 2,
        "left_out": [],
        "classes": [str(digit) for digit in range(10)],
        "same_classes_assumed": False,
        "teacher": TEACHER | {"sha256": run.teacher_weights_hash} if run.teacher else None,
        "machines": [MACHINE],
    }
    result = {
        "top1": top1,
        "top5": 99.0,
        "best": {"epoch": 2, "top1": top1, "top5": 99.0},
        "epoch_seconds": 1.0,
        "total_seconds": 2.0,
        "parameters": 1000,
        "teacher_parameters": 2000 if run.teacher else None,
        "train_images": 1437,
        "test_images": 360,
    }
    run.folder.mkdir(parents=True)
    (run.folder / "config.json").write_text(json.dumps(config))
    (run.folder / "result.json").write_text(json.dumps(result))


@pytest.fixture
def frame(tmp_path):
    """Two seeds of a student that is not the preset's, alone and under a teacher from a file."""
    weights = tmp_path / "teacher.safetensors"
    weights.write_bytes(b"weights")
    fields = NEAR_THE_TEACHERS | {"student": "wrn_22_1", "outputs": str(tmp_path)}
    for seed, (alone, distilled) in enumerate([(90.0, 92.0), (91.0, 94.0)]):
        run = Run(**fields, method="kd", teacher_weights=str(weights), seed=seed)
        assert run.baseline == Run(**fields, method="none", seed=seed)
        # What each would be called by itself: the baseline by the nearer preset, the teacher's.
        assert run.baseline.reported_overrides.keys() == {"epochs", "image_size"}
        assert run.reported_overrides.keys() == NEAR_THE_TEACHERS.keys()
        write_folder(run, distilled)
        write_folder(run.baseline, alone)
    return results.load_frame(tmp_path / "runs")


def test_a_baseline_near_the_teachers_preset_has_the_heading_of_its_students(frame):
    assert frame["overrides"].nunique() == 1
    assert frame["overrides"][0] == (
        "epochs 2 instead of 40, batch_size 64 instead of 25, image_size 8 instead of 16, "
        "train_limit all instead of 100"
    )
    assert all(values["epochs"] == [2, 40] for values in frame["override_values"])
    page = make_pages(frame)["short-runs"]
    assert page.count("### digits") == 1


def test_a_student_near_the_teachers_preset_has_a_gain(frame):
    table = tables.summary_table(frame).set_index("trained with")
    assert table.loc["kd", tables.GAIN].startswith("+2.50 [")  # of 2 and 3 points
    assert table.loc["labels only", tables.GAIN] == ""
    assert table.loc["kd", "seeds"] == table.loc["labels only", "seeds"] == "2"


def save_weights(path, classes):
    """The file of a teacher as other projects publish them: without the names of its classes."""
    torch.save({"state_dict": create_model("wrn_16_1", classes).state_dict()}, path)
    return str(path)


def test_a_pth_teacher_of_as_many_classes_is_named_after_the_data_set_with_a_remark(tmp_path):
    weights = save_weights(tmp_path / "wrn_16_1.pth", classes=4)
    run = train(tiny_run(tmp_path, teacher_weights=weights, method="kd", epochs=1), quiet)
    assert run_row(run)["teacher"] == "wrn_16_1 (tiny)"
    row = tables.summary_table(results.load_frame(tmp_path / "runs")).iloc[0]
    assert row["teacher"] == "wrn_16_1 (tiny)"
    assert (
        "its teacher's training is unknown, its classes are assumed to be these"
        in row[tables.REMARK]
    )


def test_a_pth_teacher_of_other_classes_is_named_after_its_file_without_that_remark(tmp_path):
    weights = save_weights(tmp_path / "wrn_16_1.pth", classes=3)
    run = train(tiny_run(tmp_path, teacher_weights=weights, method="afd", epochs=1), quiet)
    assert run_row(run)["teacher"] == "wrn_16_1 (wrn_16_1.pth)"
    row = tables.summary_table(results.load_frame(tmp_path / "runs")).iloc[0]
    assert row[tables.REMARK] == "kd left out"


def test_a_baseline_of_another_schedule_gives_no_gain(frame):
    """The preset may have changed between two runs whose own fields are equal."""
    for path in (Path(folder, "config.json") for folder in frame["folder"]):
        config = json.loads(path.read_text())
        if config["label"] == "none":
            config["preset"]["gamma"] = 0.5
            path.write_text(json.dumps(config))
    changed = results.load_frame(Path(frame["folder"][0]).parent)
    assert any(tables.summary_table(frame)[tables.GAIN])
    assert not any(tables.summary_table(changed)[tables.GAIN])


def test_a_data_set_of_a_plug_in_keeps_the_published_results_of_its_images(tmp_path, monkeypatch):
    """And the row says how its preset differs."""
    monkeypatch.setitem(DATASETS, "longer", None)
    cifar100 = DATASETS["cifar100"]
    register("longer", replace(cifar100.preset, epochs=480), cited_as="cifar100")(cifar100.load)
    for dataset in ("cifar100", "longer"):
        weights = {"teacher_weights_hash": "trained", "data_hash": "0123abcd"}
        write_folder(Run(dataset=dataset, method="dkd", outputs=str(tmp_path), **weights), 76.0)
    for path in tmp_path.glob("runs/*/config.json"):
        config = json.loads(path.read_text())
        config["teacher"] |= {"network": "wrn_40_2", "dataset": config["run"]["dataset"]}
        path.write_text(json.dumps(config))
        result = json.loads(path.with_name("result.json").read_text()) | {"test_images": 10_000}
        path.with_name("result.json").write_text(json.dumps(result))
    table = tables.summary_table(results.load_frame(tmp_path / "runs"))
    assert table[tables.QUOTED].str.startswith("76.24 (Zhao 2022").tolist() == [True, True]
    assert table[tables.REMARK].str.contains("preset: epochs 480 instead of 240").tolist() == [
        False,
        True,
    ]
