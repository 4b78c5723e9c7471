"""kdnb.results and kdnb.tables on run folders that are written here by hand."""

from __future__ import annotations

import ast
import csv
import json
import math
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from kdnb import results, tables
from kdnb.errors import InputError
from kdnb.recipes import RECIPES

ROOT = Path(__file__).parents[1]
KEPT = {"from": "teachers/wrn_40_2-cifar100.safetensors", "sha256": "aaaa"}


def make(
    outputs, name, top1, method="plain", seed=0, dataset="cifar100", model="wrn_16_2", recipe=None, epochs=None, **other
):
    """A finished run's folder, as training leaves it without weights; `recipe`: changed entries, `other`: of result."""
    taught = method != "plain"
    entries = asdict(RECIPES[dataset]) | {"student": model, "teacher": "wrn_40_2" if taught else None} | (recipe or {})
    losses = {name: weight for name, weight in {"kd": 0.9, "afd": 200.0}.items() if name in method.split("+")}
    result = {
        "dataset": dataset,
        "model": model,
        "method": method,
        "seed": seed,
        "train_limit": 0,
        "recipe": entries,
        "losses": losses,
        "device_type": "cuda",
        "precision": "bfloat16",
        "compile": True,
        **({"temperature": 4.0, "qk_dim": 128, "teacher_weights": KEPT} if taught else {}),
        "top1": top1,
        "top5": 93.0,
        "best": {"epoch": 2, "top1": top1 + 0.25, "top5": 93.0},
        "epoch_seconds": 10.0,
        "total_seconds": 30.0,
        "parameters": {"wrn_16_2": 703_284, "wrn_40_2": 2_255_156}.get(model, 11_197_032),
        "teacher_parameters": 2_255_156 if taught else None,
        "train_images": 50_000,
        "test_images": 10_000,
        "left_out": [],
        "device": "NVIDIA H200",
        "versions": {"torch": "2.11.0"},
        "commit": "abc123",
        **other,
    }
    folder = outputs / "runs" / name
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps(result))
    with open(folder / "metrics.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["epoch", "test_top1", "seconds"])
        writer.writerows([(1, top1 - 20, 30.0), (2, top1 + 0.25, 10.0), (3, top1, 10.0)][: epochs or 3])
    return folder


@pytest.fixture
def outputs(tmp_path):
    """A small study: teacher, three plain, three distilled students, and one shortened run."""
    make(tmp_path, "teacher", 76.0, model="wrn_40_2")
    for seed, (plain, afd) in enumerate([(72.0, 75.0), (73.0, 75.5), (74.0, 76.0)]):
        make(tmp_path, f"plain{seed}", plain, seed=seed)
        make(tmp_path, f"afd{seed}", afd, "kd+afd", seed)
    make(tmp_path, "short", 30.0, recipe={"epochs": 2}, epochs=2)
    return tmp_path


def tidy(outputs):
    return results.tidy(results.gather(outputs / "runs"))


def headline(table):
    """{(data set, network, trained with): its row of the results table}."""
    rows = tables.results_table(table).to_dict("records")
    return {(r["data set"], r["network"], r["trained with"]): r for r in rows}


# ------------------------------------------------------------------------------------------------ the results table


def test_mean_sd_seeds_and_single_run(outputs):
    row = headline(tidy(outputs))["cifar100", "wrn_16_2", "labels, kd, afd"]
    assert row["top-1 (%)"] == "75.50 ± 0.50"  # the sample's: n - 1
    assert row["seeds"] == "3" and row["one run (%)"] == "75.00" and row["best epoch (%)"] == "75.75 ± 0.50"
    assert row["published (%)"] == "75.47 (Ji 2021)" and row["earlier study (%)"] == "75.56"
    assert row["made on"] == "NVIDIA H200, bfloat16, torch 2.11.0, commit abc123"
    assert row["to fill it"] == ""


def test_one_run_has_no_sd(outputs):
    row = headline(tidy(outputs))["cifar100", "wrn_40_2", "labels"]
    assert row["top-1 (%)"] == "76.00" and row["seeds"] == "1"


def test_missing_rows_are_empty_and_say_their_command(outputs):
    row = headline(tidy(outputs))["cifar100", "wrn_16_2", "labels, kd"]
    measured = ("top-1 (%)", "seeds", "one run (%)", "best epoch (%)", "s/epoch", "epochs", "made on")
    assert [row[name] for name in measured] == [""] * len(measured)
    assert row["to fill it"] == "`python -m kdnb.study --dataset cifar100 --methods kd --seeds 0-4`"
    assert row["published (%)"] == "74.92 (Tian 2020)"


def test_commands_of_missing_rows_are_understood_by_the_study(tmp_path):
    from kdnb import study

    for row in tables.results_table(tidy(tmp_path)).to_dict("records"):
        words = row["to fill it"].strip("`").split()
        assert words[:3] == ["python", "-m", "kdnb.study"]
        assert study.main([*words[3:], "--dry-run", "--outputs", str(tmp_path)]) == 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"recipe": {"epochs": 10}}, "epochs 10 instead of 240"),
        ({"train_limit": 500}, "500 training images instead of all"),
        ({"recipe": {"lr": 0.1}}, "lr 0.1 instead of 0.05"),
        ({"method": "kd+afd", "losses": {"kd": 0.9, "afd": 50.0}}, "beta 50 instead of 200"),
        ({"method": "afd"}, "alpha 0 instead of 0.9"),
        ({"method": "kd", "temperature": 2.0}, "temperature 2 instead of 4"),
    ],
)
def test_a_changed_run_is_no_headline(tmp_path, change, said):
    make(tmp_path, "changed", 99.0, **change)
    table = tidy(tmp_path)
    assert "99.00" not in tables.results_page(table)
    assert list(tables.short_table(table)["not as in the recipe"]) == [said]
    page = tables.short_page(table)
    assert "no results of the study" in page and "99.00" in page


def test_kd_that_the_teacher_cannot_serve_is_no_change(tmp_path):
    left_out = ["kd is left out: the teacher knows 100 classes, the data set has 40"]
    make(tmp_path, "foreign", 30.0, "afd", dataset="stanford40", left_out=left_out)
    row = headline(tidy(tmp_path))["stanford40", "wrn_16_2", "labels, afd"]
    assert row["teacher"] == "wrn_40_2 (cifar100)"
    assert row["top-1 (%)"] == "30.00" and row["earlier study (%)"] == "27.13"


def test_a_teacher_of_other_origin_is_another_row(outputs):
    make(outputs, "other", 50.0, "kd+afd", 3, teacher_weights={"from": "mine/net.pt", "sha256": "bbbb"})
    rows = tables.results_table(tidy(outputs))
    assert list(rows.loc[rows["teacher"] == "wrn_40_2 (mine/net.pt)", "top-1 (%)"]) == ["50.00"]
    assert list(rows.loc[rows["trained with"] == "labels, kd, afd", "seeds"]).count("3") == 1


def test_another_precision_is_another_row_and_another_device_is_said(outputs):
    make(outputs, "float", 70.0, seed=3, precision="float32")
    make(outputs, "cpu", 73.0, seed=4, device="AMD EPYC, 2 cores", commit="def456")
    page = tables.results_page(tidy(outputs))
    rows = tables.results_table(tidy(outputs))
    plain = rows[(rows["network"] == "wrn_16_2") & (rows["trained with"] == "labels") & (rows["seeds"] != "")]
    assert sorted(plain["seeds"]) == ["1", "4"]
    assert "cifar100, wrn_16_2, labels: the 4 runs come from 2 devices and 2 commits." in page
    assert "3 of 4: NVIDIA H200, bfloat16" in page and "1 of 4: AMD EPYC, 2 cores, bfloat16" in page


def test_an_unmixed_page_says_nothing_of_mixing(outputs):
    assert "runs come from" not in tables.results_page(tidy(outputs))


# -------------------------------------------------------------------------------------------- published, parameters


def test_every_published_number_has_a_source_and_stands_on_the_page(tmp_path):
    page = tables.results_page(tidy(tmp_path))
    for cited in results.PUBLISHED:
        assert cited.source in results.SOURCES and results.SOURCES[cited.source].strip()
        assert f"{cited.top1:.2f}" in page
    for source in {c.source for c in results.PUBLISHED}:
        assert f"- {source}: {results.SOURCES[source]}" in page


def test_published_numbers_stand_in_their_own_columns_only(tmp_path):
    row = headline(tidy(tmp_path))["cifar100", "wrn_16_2", "labels"]
    for name, text in row.items():
        assert ("72.89" in text) == (name in ("published (%)", "earlier study (%)"))


def test_defaults_are_those_of_the_notebook():
    cells = json.loads((ROOT / "notebooks/distill.ipynb").read_text())["cells"]
    source = next("".join(c["source"]) for c in cells if "parameters" in c["metadata"].get("tags", []))
    told = {n.target.id: ast.literal_eval(n.value) for n in ast.parse(source).body if isinstance(n, ast.AnnAssign)}
    assert {name: told[name] for name in results.DEFAULTS} == results.DEFAULTS


def test_parameters_are_counted_in_runs_or_left_empty(outputs):
    rows = {(r["network"], r["data set"]): r for r in tables.parameter_table(tidy(outputs)).to_dict("records")}
    assert rows["wrn_16_2", "cifar100"]["parameters"] == "703,284"
    assert rows["wrn_16_2", "cifar100"]["to fill it"] == ""
    missing = rows["resnet18", "stanford40"]
    assert missing["parameters"] == "" and missing["earlier study"] == "11,197,032"
    assert "--dataset stanford40" in missing["to fill it"]


def test_an_imagenet_teacher_has_its_own_classes(tmp_path):
    weights = {"from": "imagenet", "sha256": "cc"}
    recipe = {"teacher": "resnet34"}
    other = {"teacher_weights": weights, "teacher_parameters": 21_797_672}
    make(tmp_path, "r", 74.0, "afd", dataset="stanford40", model="resnet18", recipe=recipe, **other)
    rows = {(r["network"], r["data set"]): r for r in tables.parameter_table(tidy(tmp_path)).to_dict("records")}
    assert rows["resnet34", "imagenet"]["parameters"] == "21,797,672"
    assert rows["resnet34", "imagenet"]["classes"] == "1000"


# ----------------------------------------------------------------------------------------------------- damaged files


@pytest.mark.parametrize(
    "content",
    [b"{", b"", b"[]", b"null", b"\xff\xfe\x00", b'{"dataset": "digits"}', "top1", "best", "recipe", "versions"],
)
def test_a_damaged_result_is_named_and_left_out(outputs, content):
    path = outputs / "runs/plain1/result.json"
    if isinstance(content, str):
        content = json.dumps(json.loads(path.read_text()) | {content: "x"}).encode()
    path.write_bytes(content)
    with pytest.warns(UserWarning, match=r"left out: .*plain1.*damaged"):
        runs = results.gather(outputs / "runs")
    assert "plain1" not in [run.name for run in runs] and len(runs) == 7
    assert headline(results.tidy(runs))["cifar100", "wrn_16_2", "labels"]["top-1 (%)"].startswith("73.00 ±")


@pytest.mark.parametrize("top1", [math.nan, -1, 101, 7598])
def test_an_impossible_accuracy_is_damage(outputs, top1):
    path = outputs / "runs/plain1/result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"top1": top1}))
    with pytest.warns(UserWarning, match="plain1.*not between 0 and 100"):
        assert len(results.gather(outputs / "runs")) == 7


@pytest.mark.parametrize("content", [b"", b"epoch\n1\n", b"\xff\xfe", b"epoch,test_top1,seconds\n1,x,2\n", None])
def test_a_run_without_curves_keeps_its_row(outputs, content):
    path = outputs / "runs/plain1/metrics.csv"
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.warns(UserWarning, match=r"plain1"):
        curves = results.curves(tidy(outputs))
    assert "plain1" not in {Path(folder).name for folder in curves["folder"]}
    assert headline(tidy(outputs))["cifar100", "wrn_16_2", "labels"]["seeds"] == "3"


def test_an_unfinished_run_is_no_result(outputs):
    (outputs / "runs/begun").mkdir()
    (outputs / "runs/begun/config.json").write_text("{}")
    assert len(results.gather(outputs / "runs")) == 8


# ------------------------------------------------------------------------------------------------- tables as files


def test_network_table_says_what_each_run_was(outputs):
    table = results.network_table(results.gather(outputs / "runs")).set_index("top-1 (%)")
    assert table.loc[75.5, "trained with"] == "labels, kd, afd" and table.loc[76.0, "network"].iloc[0] == "wrn_16_2"
    with pytest.raises(InputError, match="no finished run"):
        results.network_table([])


def test_markdown_keeps_its_columns_whatever_the_cells_say(tmp_path):
    import pandas as pd

    table = pd.DataFrame({"a|b": ["x|y\nz"], "n": [1234], "f": [math.nan]})
    text = results.save_table(table, tmp_path / "deep/t.md").read_text()
    last = text.splitlines()[-1]
    assert last == r"| x\|y z | 1,234 |  |" and len(text.splitlines()) == 3


def test_show_keeps_the_page_and_shows_it_without_its_title(tmp_path):
    shown = tables.show("# Title\n\nbody\n", tmp_path / "tables/t.md")
    assert (tmp_path / "tables/t.md").read_text() == "# Title\n\nbody\n"
    assert shown.data.strip() == "body"


def test_the_notebook_takes_no_unknown_parameter(tmp_path):
    given = {"outputs": str(tmp_path), "In": ["", "# Parameters\noutput = 'x'\n"]}
    with pytest.raises(InputError, match="unknown parameter 'output'"):
        results.output_folder(given)
    assert results.output_folder({"outputs": str(tmp_path), "In": []}) == tmp_path
    with pytest.raises(InputError, match="no such folder"):
        results.output_folder({"outputs": str(tmp_path / "nowhere"), "In": []})


def test_results_need_no_torch():
    code = "import sys, kdnb.study, kdnb.tables, kdnb.charts; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_a_record_is_a_run_without_its_weights(outputs):
    run = results.gather(outputs / "runs")[0]
    (run.folder / "student.safetensors").write_bytes(b"weights")
    kept = results.record(run, outputs / "records")
    assert kept.result == run.result and kept.metrics.equals(run.metrics)
    assert not (kept.folder / "student.safetensors").exists()
    both = results.gather(outputs / "records", outputs / "runs")
    assert len(both) == len(results.gather(outputs / "runs"))
    assert run.folder in [found.folder for found in both]  # one's own run counts before what came with the project


def test_the_headline_says_what_is_short_and_quotes_beside(outputs):
    rows = tables.headline_table(tidy(outputs)).to_dict("records")
    teacher = next(r for r in rows if r["network"] == "wrn_40_2")
    assert teacher["top-1 (%)"] == "76.00" and teacher["published, full length (%)"] == "76.20"
    plain = [r for r in rows if r["network"] == "wrn_16_2" and r["trained with"] == "labels"]
    assert {r["top-1 (%)"]: r["not as in the recipe"] for r in plain} == {
        "73.00 ± 1.00": "",
        "30.00": "epochs 2 instead of 240",
    }
    assert "Last epoch, measured on: " in tables.headline_page(tidy(outputs))
