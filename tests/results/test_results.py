"""kdnb.results on run folders that are written here by hand, and on one that was trained."""

import json
import shutil
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers import TINY, quiet, tiny, tiny_run

from kdnb import METHODS, InputError, Run, grid, plots, results, train
from kdnb.data import DATASETS
from kdnb.progress import percent
from kdnb.results import curves, frame, grouping, published, records, tables
from kdnb.results.__main__ import main
from kdnb.results.differences import method_differences
from kdnb.results.pages import fill_documents, full_runs, make_pages, overview
from kdnb.runs.folder import RunFolder
from kdnb.runs.identity import describe_overrides
from kdnb.study import __main__ as study

TEACHER_RECORD = {
    "network": "wrn_40_2",
    "dataset": "cifar100",
    "weights": "wrn_40_2.pth",
    "sha256": "aaaa1111",
    "changes": {},
}
ROOT = Path(__file__).resolve().parents[2]
AFD, ALONE = (
    ("wrn_16_2", "afd", "75.50 ± 0.50"),
    ("wrn_16_2", "labels only", "73.00 ± 1.00"),
)  # the sample's: n - 1

ONE_LINE = [
    {"teacher": {"changes": {"epochs": [4, 240]}}}
]  # the same weights, whatever is said of them
TWO_LINES = [
    {"run": {"method": "ce + afd:50"}},
    {"result": {"train_images": 49_999}},
    {"left_out": ["kd"]},
]
TWO_LINES += [
    {"run": {"precision": "bfloat16"}},
    {"run": {"data_id": "0123abcd"}},
    {"teacher": {"sha256": "bbbb2222"}},
]
TOLD = {
    "method": "(ce + afd:200)",
    "precision": "(float32)",
    "data_id": "(images )",
    "sha256": "(weights aaaa)",
}
TOLD |= {"train_images": "(50,000 images)"}


def make(
    outputs,
    top1,
    network="wrn_16_2",
    method="none",
    seed=0,
    changes=None,
    teacher=None,
    result=None,
    **config,
):
    """The folder of a finished run, as training leaves it, without weights; `config`: other entries
    of config.json."""
    asked = {"dataset": "cifar100", "student": network, "seed": seed, "epochs": 240, "data_id": ""}
    asked |= {"precision": "float32", "method": "ce + afd:200"} | config.pop("run", {})
    asked |= {field: value for field, (value, _) in (changes or {}).items()}
    told = {
        "run": asked,
        "preset": {},
        "label": method,
        "changes": changes or {},
        "left_out": [],
        "classes": ["a", "b"],
    }
    machine = {"device": "NVIDIA H200", "versions": {"torch": "2.11.0"}, "commit": "abc123"}
    told |= {
        "machines": [machine],
        "teacher": None if method == "none" else TEACHER_RECORD | (teacher or {}),
    } | config
    measured = {"top1": top1, "top5": 93.0, "best": {"epoch": 2, "top1": top1 + 0.25, "top5": 93.0}}
    measured |= {
        "epoch_seconds": 10.0,
        "parameters": 703_284,
        "train_images": 50_000,
        "test_images": 10_000,
    }
    measured |= result or {}
    folder = Path(outputs, "runs", f"{network}-{method}-{seed}-{top1}")
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(told))
    (folder / "result.json").write_text(json.dumps(measured))
    epochs = asked["epochs"]
    rows = [f"{epoch},1,10,{top1 - 20},30" for epoch in range(1, epochs)]
    rows = ["epoch,lr,train_top1,test_top1,seconds", *rows, f"{epochs},1,20,{top1},10\n"]
    (folder / "metrics.csv").write_text("\n".join(rows))


@pytest.fixture
def outputs(tmp_path):
    """A small study: a teacher, three baselines, three distilled students; and a shortened run."""
    make(tmp_path, 76.0, "wrn_40_2")
    for seed, (alone, afd) in enumerate([(72.0, 75.0), (73.0, 75.5), (74.0, 76.0)]):
        make(tmp_path, alone, seed=seed)
        make(tmp_path, afd, method="afd", seed=seed)
    make(tmp_path, 30.0, changes={"epochs": [2, 240]})
    return tmp_path


def load(outputs):
    return results.load_frame(outputs / "runs")


def rows(outputs):
    told = tables.summary_table(load(outputs)).to_dict("records")
    return {(row["network"], row["trained with"], row[tables.TOP1]): row for row in told}


def test_seeds_are_averaged_and_what_is_short_is_said(outputs):
    table, pages, short = (
        rows(outputs),
        make_pages(load(outputs)),
        ("wrn_16_2", "labels only", "30.00"),
    )
    assert set(table) == {("wrn_40_2", "labels only", "76.00"), ALONE, AFD, short}
    row = table[AFD]
    assert (
        row["teacher"] == "wrn_40_2 (cifar100)"
        and row["seeds"] == "3"
        and row["best epoch (%)"] == "75.75 ± 0.50"
    )
    assert (
        row[tables.QUOTED] == "75.47 (Ji 2021); 75.56 (earlier study)" and row[tables.REMARK] == ""
    )
    assert (
        table[ALONE][tables.QUOTED].startswith("72.89 (Ji 2021)")
        and not table[short][tables.QUOTED]
    )
    assert (
        row["made on"] == "NVIDIA H200, float32, torch 2.11.0, commit abc123"
        and row["s/epoch"] == "10.0"
    )
    assert "### cifar100: epochs 2 instead of 240\n\n| network" in pages["short-runs"]
    assert (
        "30.00" not in pages["results"]
        and "30.00" in pages["short-runs"]
        and "75.50" not in pages["short-runs"]
    )
    assert (
        row[tables.GAIN] == "+2.50 [+1.26, +3.74]" and not table[ALONE][tables.GAIN]
    )  # 3, 2.5 and 2 points: t is 4.3
    assert all(top1 in pages["headline"] for _, _, top1 in table) and "readme" not in pages


@pytest.mark.parametrize("other", [*ONE_LINE, *TWO_LINES])
def test_nothing_is_averaged_that_differs_in_more_than_its_seed(outputs, other):
    make(outputs, 50.0, method="afd", seed=3, **{"run": {}} | other)
    assert {("wrn_16_2", "afd", "50.00"), AFD} <= rows(outputs).keys()
    drawn = {
        (name, line)
        for name, part in curves.group_by_protocol(load(outputs)).items()
        for line in part["line"]
    }
    assert sum("afd" in line for _, line in drawn) == 1 + (other in TWO_LINES)
    said = next((told for name, told in TOLD.items() if name in str(other)), "")
    assert (
        rows(outputs)[AFD][tables.REMARK] == said
    )  # two rows of one name say what tells them apart


def test_a_smaller_set_in_the_same_layout_is_not_full_length(tmp_path):
    small = {"run": {"dataset": "stanford40"}, "result": {"test_images": 10, "train_images": 20}}
    make(tmp_path, 90.0, "resnet18", **small)
    pages = make_pages(load(tmp_path))
    assert (
        "stanford40: test_images 10 instead of 5532" in pages["short-runs"]
        and "90.00" not in pages["results"]
    )


def test_a_baseline_that_is_the_usual_teacher_is_compared_with_its_students(tmp_path, monkeypatch):
    preset = replace(TINY, for_teacher={"epochs": 1, "lr": 0.01})
    monkeypatch.setitem(DATASETS, "other", DATASETS["tiny"]._replace(preset=preset))
    asked = {
        "student": "wrn_16_1",
        "teacher": "wrn_22_1",
        "method": ["none", "kd"],
        "outputs": str(tmp_path),
    }
    alone, taught = grid(dataset="other", **asked)
    assert (
        not alone.reported_overrides
        and not taught.reported_overrides
        and not taught.teacher_run.reported_overrides
    )
    assert (
        alone.overrides
        and taught.teacher_run.overrides
        and len({run.name for run in (alone, taught.teacher_run)}) == 2
    )
    runs = results.load_frame(*(train(run, quiet).folder.parent for run in (alone, taught)))
    runs = pd.concat([runs, runs.assign(seed=1)], ignore_index=True)
    gains = tables.summary_table(runs).set_index("trained with")[tables.GAIN]
    assert gains["kd"] and grouping.is_full_recipe(runs).all()


def test_a_baseline_is_of_its_students_preset_even_where_the_teachers_is_nearer(
    tmp_path, monkeypatch
):
    preset = replace(TINY, for_teacher={"epochs": 1, "batch_size": 32})
    monkeypatch.setitem(DATASETS, "other", DATASETS["tiny"]._replace(preset=preset))
    asked = {"method": ["none", "kd"], "epochs": 1, "batch_size": 20, "outputs": str(tmp_path)}
    alone, taught = grid(dataset="other", **asked)
    assert (
        alone.reported_overrides
        == taught.reported_overrides
        == {"epochs": [1, 3], "batch_size": [20, 16]}
    )
    alike = Run(
        dataset="other", teacher="wrn_10_1", outputs=str(tmp_path)
    )  # its teacher is what its student is
    assert alike.teacher_run.overrides and not alike.teacher_run.reported_overrides


def test_the_seconds_of_runs_that_were_trained_together_are_left_out(outputs):
    machine = {"device": "NVIDIA H200", "versions": {"torch": "2.11.0"}, "commit": "abc123"}
    slow = {"epoch_seconds": 50.0}
    make(outputs, 73.0, seed=3, machines=[machine | {"together": 5}], result=slow)
    assert rows(outputs)["wrn_16_2", "labels only", "73.00 ± 0.82"]["s/epoch"] == "10.0"


def test_another_device_is_said_and_changes_are_words(outputs):
    make(
        outputs,
        73.0,
        seed=3,
        machines=[{"device": "CPU", "versions": {"torch": "3"}, "commit": ""}],
        shared=True,
    )
    row = rows(outputs)["wrn_16_2", "labels only", "73.00 ± 0.82"]
    assert (
        row["made on"].endswith("; CPU, float32, torch 3, commit unknown")
        and row["s/epoch"] == "10.0"
    )
    machine = {"device": "H100", "versions": {"torch": "3"}, "commit": ""}
    moved = machine | {
        "versions": {"torch": "4"},
        "commit": "def456",
    }  # it went on under another commit
    make(outputs, 73.0, seed=4, machines=[machine | {"commit": "abc123"}, moved])
    row = rows(outputs)["wrn_16_2", "labels only", "73.00 ± 0.71"]
    assert row["s/epoch"] == ""  # no time of two devices means anything
    assert row["made on"].endswith("; H100, float32, torch 3; 4, commit abc123; def456")
    limited, likewise = {"train_limit": [100, -1], "lr": [0.1, 0.05]}, {"epochs": [4, 240]}
    told = "train_limit 100 instead of all, lr 0.1 instead of 0.05"
    assert (
        describe_overrides(limited) == told
        and frame.describe_teacher({}, limited) == f"its teacher: {told}"
    )
    assert frame.describe_teacher(likewise, likewise) == "its teacher likewise"
    make(
        outputs, 60.0, method="afd", teacher={"changes": limited}
    )  # a short teacher makes no full-length run
    pages = make_pages(load(outputs))
    assert f"its teacher: {told}" in pages["short-runs"] and "60.00" not in pages["results"]


def test_what_was_published_has_sources_and_an_empty_row_says_what_fills_it(outputs, capsys):
    empty = tables.with_empty_rows(load(outputs)[grouping.is_full_recipe(load(outputs))]).query(
        "seeds == ''"
    )
    wanted = published.read_published().query("command != ''")
    assert len(empty) == len(wanted) - 3 and set(empty[tables.TOP1]) == {
        ""
    }  # three of them were made
    told = {
        "74.92 (Tian 2020, last epoch)",
        "76.11 (Sun 2024, best epoch; last epoch of its log: 75.59; 76.08 in its own log)",
    }
    assert told <= {*empty[tables.QUOTED]}
    short = outputs / "teachers/wrn_40_2-cifar100.safetensors"  # of no full-length row
    short.parent.mkdir()
    short.touch()
    for command in empty["to fill it"]:
        words = (
            command.strip("`")
            .replace("outputs/teachers/wrn_40_2-cifar100.safetensors", "none")
            .split()
        )
        assert words[:3] == ["python", "-m", "kdnb.study"]
        assert study.main([*words[3:], "--dry-run", "--outputs", str(outputs)]) == 0
    planned = capsys.readouterr().out
    assert planned.count("to run") >= len(empty) and short.name not in planned
    cited, sources = (
        published.read_published().query("top1 != ''"),
        set(published.read_csv("sources.csv")["source"]),
    )
    page = make_pages(load(outputs))["results"]
    assert set(cited["source"]) == sources and all(
        text in page for text in [*cited[tables.QUOTED], *sources]
    )
    by_group = (
        published.published_by_protocol(load(outputs))["cifar100"]
        .groupby("study")["top1"]
        .agg(list)
    )
    assert (
        sorted(by_group["this study"]) == [72.0, 73.0, 74.0, 75.0, 75.5, 76.0, 76.0]
        and 75.47 in by_group["published"]
    )
    other = {"network": "wrn_16_4", "sha256": "cccc3333"}
    make(outputs, 60.0, method="afd", seed=4, teacher=other)  # of which nothing was published
    by_group = (
        published.published_by_protocol(load(outputs))["cifar100"].groupby("line")["study"].agg(set)
    )
    assert (
        by_group["wrn_16_2, afd from wrn_16_4"] == {"this study"}
        and len(by_group["wrn_16_2, afd from wrn_40_2"]) == 3
    )
    make(outputs, 76.0, method="dkd")
    by_group = (
        published.published_by_protocol(load(outputs))["cifar100"].groupby("line")["study"].agg(set)
    )
    assert "published, best epoch" in by_group["wrn_16_2, dkd from wrn_40_2"]


def test_a_seed_counts_once(outputs):
    make(
        outputs, 75.01, method="afd", seed=0, run={"teacher_id": "of a file"}
    )  # whose bytes are the trained one's
    assert rows(outputs)[AFD]["seeds"] == "3"
    assert (
        len(curves.group_by_protocol(load(outputs))["cifar100"]) == 7
    )  # nor does a plot count it twice


def test_many_pairs_have_a_picture_for_each_student(tmp_path):
    students = ["resnet20", "resnet8x4", "wrn_40_1"]
    for network, method in product(students, METHODS):
        make(tmp_path, 70.0, network, method)
    drawn = results.curves_by_protocol(load(tmp_path))
    assert [*drawn] == [f"cifar100, {student}" for student in students] and len(
        plots.STYLES
    ) == curves.MAX_LINES
    for title, table in drawn.items():
        figure = plots.accuracy_over_time(table, title)
        assert (
            table["line"].nunique() == len(METHODS) and figure.axes[0].get_position().height > 0.3
        )
        plots.learning_curves(table, title)


def test_curves_are_drawn_by_line(outputs):
    parts = curves.group_by_protocol(load(outputs))
    assert parts.keys() == {"cifar100", "cifar100, epochs 2"}
    orders = {
        "wrn_40_2, labels only": 0,
        "wrn_16_2, labels only": 1,
        "wrn_16_2, afd from wrn_40_2": 2,
    }
    assert dict(zip(parts["cifar100"]["line"], parts["cifar100"]["order"], strict=True)) == orders
    drawn = results.curves_by_protocol(load(outputs))["cifar100"].query("order == 0")
    assert list(drawn["spent"])[::239] == [30.0, 7180.0]
    assert list(drawn["test_top1"])[::239] == [56.0, 76.0]


def test_a_student_of_its_teachers_architecture_is_no_teacher(tmp_path):
    make(tmp_path, 70.0)
    make(tmp_path, 71.0, method="afd", teacher={"network": "wrn_16_2", "dataset": "imagenet"})
    ((_, part),) = curves.group_by_protocol(load(tmp_path)).items()
    assert part.set_index("line")["order"].to_dict() == {
        "wrn_16_2, labels only": 1,
        "wrn_16_2, afd from wrn_16_2": 2,
    }


@pytest.mark.parametrize(
    "content", ["{", "", "[]", '{"top1": 5}', '{"top1": NaN, "top5": 1, "best": {"top1": 1}}']
)
@pytest.mark.parametrize("file", ["config.json", "result.json", "metrics.csv"])
def test_a_damaged_run_is_named_and_left_out(outputs, file, content):
    (outputs / "runs/wrn_16_2-none-1-73.0" / file).write_text(content)
    with pytest.warns(UserWarning, match=r"left out.*wrn_16_2-none-1-73.0.*damaged"):
        runs = load(outputs)
        drawn = results.curves_by_protocol(runs).values()
        assert sum(part["folder"].nunique() for part in drawn) == 7 and len(runs) == 7 + (
            file == "metrics.csv"
        )


def test_a_run_that_cannot_be_read_is_named_and_left_out(outputs):
    result = outputs / "runs/wrn_16_2-none-1-73.0/result.json"
    result.unlink()
    result.symlink_to(result)
    with pytest.warns(UserWarning, match=r"left out of the tables: cannot read .*73.0/result.json"):
        assert len(load(outputs)) == 7


def test_what_departs_from_two_presets_alike_is_drawn_together(tmp_path):
    """A data set may train a teacher by another preset: 20 epochs are too few for the one and many
    for the other."""
    make(tmp_path, 80.0, "wrn_40_2", changes={"epochs": [20, 6]})
    make(tmp_path, 70.0, changes={"epochs": [20, 40]})
    ((title, part),) = curves.group_by_protocol(load(tmp_path)).items()
    assert title == "cifar100, epochs 20" and sorted(part["top1"]) == [70.0, 80.0]


def test_a_record_is_a_run_without_its_weights(tmp_path):
    run = train(tiny_run(tmp_path, epochs=1, method="ce + afd:9"), quiet)
    record = records.make_record(run, tmp_path)
    assert {path.name for path in record.iterdir()} == {
        "config.json",
        "metrics.csv",
        "history.npz",
        "result.json",
    }
    with pytest.raises(
        InputError, match=r"has no student\.safetensors: the run is finished, but did not keep it"
    ):
        _ = Run.open(record).weights
    other = shutil.copytree(run.folder, tmp_path / "elsewhere" / "runs" / "as it was called then")
    assert records.make_record(Run.open(other), tmp_path).name == other.name != run.name
    shutil.rmtree(tmp_path / "records/as it was called then")
    own = results.load_frame(tmp_path / "runs").set_index("network")
    assert own["origin"].to_dict() == {"wrn_10_1": "mine", "wrn_16_1": "mine"}
    both = results.load_frame(tmp_path / "records", tmp_path / "runs").set_index("network")
    # A run and its record are one row.
    assert both["origin"].to_dict() == {"wrn_10_1": "records", "wrn_16_1": "mine"}
    again = train(replace(run, seed=1), quiet)
    ((what, (links, teacher, student)),) = results.links_by_protocol(
        results.load_frame(tmp_path / "runs")
    ).items()
    assert what.endswith("wrn_10_1, ce + afd:9 from wrn_16_1, mean of 2 seeds")
    np.testing.assert_allclose(
        links, (run.links_by_epoch[0] + again.links_by_epoch[0]) / 2, rtol=1e-6
    )
    assert (len(teacher), len(student)) == links.shape[1:] == (6, 3)
    (again.folder / "history.npz").write_bytes(b"torn")
    with pytest.warns(UserWarning, match=r"left out of the tables: .*history\.npz is damaged"):
        (what,) = results.links_by_protocol(results.load_frame(tmp_path / "runs"))
    assert what.endswith("from wrn_16_1")
    table = tables.network_table({"teacher": run.teacher_run, "distilled": run})
    assert list(table.loc["network"]) == ["wrn_16_1", "wrn_10_1"]
    assert table.loc["top1", "distilled"] == percent(run.result["top1"], run.result["test_images"])
    assert list(results.run_curves({"distilled": run})["line"]) == ["distilled"]


def test_runs_of_any_machine_are_gathered_and_a_damaged_one_is_said(tmp_path, capsys):
    whole, torn = (
        train(tiny_run(tmp_path / "there", epochs=1, method="none", seed=seed), quiet)
        for seed in (0, 1)
    )
    (torn.folder / "metrics.csv").write_text("")
    home = ["--outputs", str(tmp_path / "home")]
    for fresh in (True, False):  # the second time, nothing is new
        assert main([str(tmp_path / "there"), *home]) == 1
        out, err = capsys.readouterr()
        assert out.startswith(f"new: {whole.name}, top-1 ") == fresh == bool(out)
        assert err.startswith(f"left out: {torn.folder / 'metrics.csv'} is damaged")
    assert [path.name for path in (tmp_path / "home/records").iterdir()] == [whole.name]
    (tmp_path / "home/records" / whole.name / "result.json").write_text("torn")
    assert main([str(whole.folder), *home]) == 0
    assert capsys.readouterr().out.startswith(f"replaced: {whole.name}, top-1 ")
    assert "wrn_10_1" in (tmp_path / "home/tables/short-runs.md").read_text()
    with pytest.raises(SystemExit) as end:
        main([str(tmp_path / "nowhere"), *home])
    assert end.value.code == 2 and "nowhere: no such folder" in capsys.readouterr().err


def test_the_notebook_finds_its_folders_and_nothing_in_them_is_no_error(tmp_path):
    given, both = {"outputs": str(tmp_path), "In": []}, [tmp_path / "records", tmp_path / "runs"]
    assert results.from_notebook(given) == (both[1:], tmp_path / "runs")
    assert results.from_notebook(given | {"source": "both"}) == (both, tmp_path / "runs")
    assert results.from_notebook(given | {"source": "records"}) == (both[:1], tmp_path)
    for wrong in (
        {"source": "all"},
        {"outputs": str(tmp_path / "nowhere")},
        {"In": ["# Parameters\noutput = 'x'\n"]},
    ):
        with pytest.raises(
            InputError, match=r"unknown (source 'all'|parameter 'output')|no such folder"
        ):
            results.from_notebook(given | wrong)
    runs = results.load_frame(*both)
    assert (
        runs.empty
        and results.curves_by_protocol(runs) == {}
        and "no finished run yet" in make_pages(runs)["headline"]
    )
    assert (
        curves.group_by_protocol(runs)
        == results.links_by_protocol(runs)
        == published.published_by_protocol(runs)
        == {}
    )


@pytest.mark.parametrize("is_checkout", [True, False])
def test_documents_of_a_checkout_are_filled_in_and_others_left_alone(
    tmp_path, monkeypatch, is_checkout
):
    before = (
        "<!-- toc -->\nmine\n<!-- end -->\n<!-- outputs/tables/readme.md -->\nold\n<!-- end -->\n"
    )
    (tmp_path / "README.md").write_text(before)
    if is_checkout:
        (tmp_path / "kdnb").mkdir()
    monkeypatch.setattr("kdnb.results.pages.project_root", lambda: tmp_path)
    fill_documents({"readme": "# Title\n\nnew\n"})
    expected = before.replace("old", "new") if is_checkout else before
    assert (tmp_path / "README.md").read_text() == expected


@pytest.fixture
def own_and_records(tmp_path):
    """Two seeds of KD and their baselines as records; mine: seed 7 of both, and other bits of the
    record's seed 0, under its name."""
    for seed, (alone, kd) in enumerate([(70.0, 72.0), (71.0, 74.0)]):
        make(tmp_path, alone, seed=seed)
        make(tmp_path, kd, method="kd", seed=seed)
    (tmp_path / "runs").rename(tmp_path / "records")
    make(tmp_path, 60.0, seed=7)
    make(tmp_path, 65.0, method="kd", seed=7)
    make(tmp_path, 50.0, method="kd", seed=0)
    (tmp_path / "runs/wrn_16_2-kd-0-50.0").rename(tmp_path / "runs/wrn_16_2-kd-0-72.0")
    return results.load_frame(tmp_path / "records", tmp_path / "runs")


def test_own_runs_and_records_are_told_apart_and_never_averaged(own_and_records):
    table = tables.summary_table(own_and_records)
    cells = table[["trained with", tables.ORIGIN, tables.TOP1, "seeds"]].to_numpy().tolist()
    assert cells == [
        ["labels only", "records", "70.50 ± 0.71", "2"],
        ["labels only", "mine", "60.00", "1"],
        ["kd", "records", "73.00 ± 1.41", "2"],
        ["kd", "mine", "57.50 ± 10.61", "2"],
    ]
    lines = curves.group_by_protocol(own_and_records)["cifar100"]["line"]
    assert {"wrn_16_2, kd from wrn_40_2 (mine)", "wrn_16_2, labels only (records)"} <= set(lines)
    text = overview(own_and_records)
    (header,) = (line for line in text.splitlines() if line.startswith("| network"))
    assert f"| {tables.ORIGIN} " in header and header.count("|") <= 8 + 1
    alone = own_and_records[own_and_records["origin"] == "mine"]
    assert f"| {tables.ORIGIN} " not in overview(alone)  # nothing to tell apart


def test_a_run_is_paired_with_an_own_baseline_first_and_a_missing_pair_is_a_remark(own_and_records):
    table = tables.summary_table(own_and_records).set_index(["trained with", tables.ORIGIN])
    # Seed 7 has a baseline here, seed 0 only among the records: +5 and -20 points.
    assert table.loc[("kd", "mine"), tables.GAIN].startswith("-7.50 [")
    assert table.loc[("kd", "records"), tables.GAIN].startswith("+2.50 [")
    runs = own_and_records.assign(origin="mine")
    is_missing = (runs["method"] == "none") & (runs["seed"] == 7)
    (kd,) = tables.summary_table(runs[~is_missing]).query("`trained with` == 'kd'")[tables.REMARK]
    assert kd == "gain of 2 of 3 seeds"


def test_rows_of_tables_and_lines_of_figures_have_one_order(tmp_path):
    for method in ("none", "crd", "afd", "kd"):
        for seed in (0, 1):
            make(tmp_path, 70.0 + seed, method=method, seed=seed)
    runs = load(tmp_path)
    methods = ["none", "kd", "afd", "crd"]
    assert list(curves.group_by_protocol(runs)["cifar100"]["method"].unique()) == methods
    assert list(method_differences(runs)["method"]) == methods
    shown = tables.summary_table(runs)["trained with"].replace("labels only", "none")
    assert list(shown) == methods


def test_a_teacher_that_was_given_has_a_column_with_what_its_file_says(tmp_path):
    make(tmp_path, 70.0, method="kd", teacher={"top1": 76.2}, result={"teacher_parameters": 9})
    (path,) = (tmp_path / "runs").iterdir()
    table = tables.network_table({"distilled": RunFolder(path)})
    assert table["teacher"][["network", "top1", "parameters"]].tolist() == [
        "wrn_40_2 (cifar100)",
        "76.20",
        9,
    ]
    rows = tables.method_table(load(tmp_path), tables.teacher_row(RunFolder(path)))
    assert rows.iloc[-1][["trained with", tables.TOP1]].tolist() == ["the teacher", "76.20"]


def test_rows_without_a_run_are_folded(outputs):
    text = full_runs(load(outputs))
    before, folded = text.split("<details>")
    assert "75.47 (Ji 2021)" in before and "python -m kdnb.study" not in before
    assert "python -m kdnb.study" in folded and folded.endswith("</details>")


def test_no_runs_have_no_curves():
    assert results.run_curves({}).empty


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_own_runs_beside_the_records_make_all_pages(tmp_path, precision):
    """Two trainings of one method, such as one's own and the study's, are no two methods."""
    (own,) = (ROOT / "outputs/records").glob("digits-wrn_16_1-kd-from=wrn_16_2-seed=0-*")
    folder = shutil.copytree(own, tmp_path / "runs" / own.name.replace("seed=0", "seed=9"))
    config = json.loads((folder / "config.json").read_text())
    config["run"] |= {"seed": 9, "precision": precision}
    config["teacher"]["sha256"] = "0123456789abcdef"
    (folder / "config.json").write_text(json.dumps(config))
    runs = results.load_frame(ROOT / "outputs/records", tmp_path / "runs")
    assert len(runs) == 1 + len(results.load_frame(ROOT / "outputs/records"))
    committed = (ROOT / "outputs/tables/readme.md").read_text()
    assert make_pages(runs)["readme"] == committed  # of the training with the most seeds
