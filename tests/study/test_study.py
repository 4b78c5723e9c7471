"""kdnb.study: the grid, its order, what is finished, failures and interrupts."""

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kdnb.runs.grid import plan_study
from kdnb.runs.parameters import parse_value
from kdnb.study import __main__ as study
from kdnb.study import plan, worker

ROOT = Path(__file__).resolve().parents[2]
QUICK = {
    "student": "wrn_10_1",
    "teacher": "wrn_10_1",
    "epochs": 1,
    "teacher_epochs": 1,
    "image_size": 8,
    "precision": "float32",
    "threads": 1,
}


def arguments(outputs, *argv, **changes):
    pairs = [word for name, value in (QUICK | changes).items() for word in ("-p", name, str(value))]
    return ["--dataset", "digits", *argv, "--outputs", str(outputs), *pairs]


def planned(outputs, *methods, **changes):
    parameters = QUICK | {"seed": [0]} | changes
    return plan_study(["digits"], list(methods), outputs=str(outputs), **parameters)


@pytest.fixture
def pairs(monkeypatch):
    known = {
        "wrn_16_2-wrn_10_1": ("wrn_16_2", "wrn_10_1"),
        "wrn_10_1-wrn_10_1": ("wrn_10_1", "wrn_10_1"),
    }
    monkeypatch.setattr("kdnb.runs.grid.PAIRS", known)


# What would run


def test_teachers_come_first_and_each_run_once(tmp_path):
    runs = planned(tmp_path, "none", "kd", "kd", "afd", "ce + kd:0.9 + afd:50", seed=[0, 1])
    assert [run.label for run in runs] == ["none", "none", "none", "kd", "kd", "afd", "afd"]
    assert [run.seed for run in runs] == [0, 0, 1, 0, 1, 0, 1]
    assert runs[0] == runs[-1].teacher_run
    assert planned(tmp_path, "teacher") == runs[:1]
    distilled = planned(tmp_path, "afd", teacher_seed=[3, 4])
    assert [run.seed for run in distilled] == [3, 4, 0, 0]
    assert len(set(distilled)) == 4


def test_a_dry_run_lists_finished_runs_and_commands_and_writes_nothing(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.delenv("KDNB_DATA", raising=False)
    argv = arguments(tmp_path, "--methods", "none,ce + kd:2(T=3)", "--seeds", "5", "--dry-run")
    assert study.main(argv) == 0
    assert list(tmp_path.iterdir()) == []
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert all(line.startswith("to run    python -m kdnb -p student wrn_10_1 ") for line in lines)
    for words in (
        "-p method 'ce + kd:2(T=3.0)' -p teacher wrn_10_1 -p teacher_weights none",
        "-p teacher_epochs 1 -p seed 5",
        f"-p outputs {tmp_path}",
        f"-p data_root {ROOT}",
    ):
        assert words in lines[2]
    (run,) = planned(tmp_path, "none", seed=[5])
    run.folder.mkdir(parents=True)
    (run.folder / "result.json").touch()
    study.main(argv)
    assert f"finished  {run.folder}" in capsys.readouterr().out


@pytest.mark.parametrize(("names", "teachers"), [("wrn_16_2-wrn_10_1", 1), ("all", 2)])
def test_each_pair_is_a_teacher_and_a_student(tmp_path, capsys, pairs, names, teachers):
    argv = ["--dataset", "digits", "--methods", "none,kd", "--pair", names, "--dry-run"]
    assert study.main([*argv, "--outputs", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 * teachers + 1
    # The preset's own teacher has its 6 epochs by default.
    trained = ("-p student wrn_16_2 -p method ce", "-p student wrn_10_1 -p method ce -p epochs 6")
    assert sum(any(words in line for words in trained) for line in lines) == teachers
    distilled = [line for line in lines if "-p teacher wrn" in line]
    assert len(distilled) == teachers
    assert "-p student wrn_10_1" in distilled[0]
    assert "-p teacher wrn_16_2" in distilled[0]


def test_a_method_that_the_teacher_cannot_serve_is_left_out_with_a_line(tmp_path, capsys):
    argv = ["--dataset", "stanford40, digits", "--methods", "none,kd", "--dry-run"]
    assert study.main([*argv, "--outputs", str(tmp_path)]) == 0
    lines = capsys.readouterr().out
    assert lines.startswith("left out: stanford40, kd: kd compares predictions")
    assert len(re.findall("-p dataset stanford40", lines)) == 1
    assert lines.count("to run") == 4


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["--dataset", "cifar10"], "unknown dataset 'cifar10'"),
        (["--methods", "none,krd"], "unknown method 'krd'"),
        (["--seeds", "4-x"], "--seeds: '4-x': it must be numbers and ranges"),
        (["--seeds=-1"], "--seeds: '-1': it must be numbers and ranges"),
        (["--seeds", "4-0"], "seed is an empty list"),
        (["--jobs", "0"], "--jobs: 0 is not between 1 and 10,000"),
        (["--per-gpu", "0"], "--per-gpu: 0 is not between 1 and 10,000"),
        (["--pair", "a-b"], "unknown pair 'a-b': choose one of all, wrn_10_1-wrn_10_1"),
        (["--pair", "all", "-p", "student", "x"], "-p student: it has an option of its own"),
        (["-p", "seed", "3"], "-p seed: it has an option of its own"),
        (["--scheduler", "nowhere", "--dataset", "digits"], "--scheduler nowhere: "),
        (["-p", "epoch", "3"], "unknown parameter 'epoch'"),
        (["-p", "teacher", "wrn_41_2"], "depth must be 6n"),  # none needs no teacher, and would run
        (["-p", "data_root", "2024"], "data_root is 2024: it must be text"),
        (["--dataset", "stanford40", "--methods", "kd"], "nothing is left to run"),
        (["--seed", "1"], "unrecognized arguments: --seed 1"),
    ],
)
def test_bad_arguments_end_with_2_and_a_sentence(tmp_path, capsys, pairs, argv, sentence):
    with pytest.raises(SystemExit) as end:
        study.main(["--outputs", str(tmp_path / "o"), *argv])
    assert end.value.code == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_seeds_are_numbers_and_ranges():
    assert study.parse_seeds("0-2,7, 1") == [0, 1, 2, 7, 1]


def test_values_are_typed_as_papermill_types_them():
    texts = ["3", "0.5", "1e-3", "True", "None", "wrn_16_2", "ce + kd:0.9(T=2)", "a/b.pth", ""]
    assert [parse_value(text) for text in texts] == [3, 0.5, 0.001, True, None, *texts[5:]]


# Processes


def test_a_failure_stops_what_needs_it_and_nothing_else(tmp_path, capsys, monkeypatch):
    failing = [sys.executable, "-c", "raise OSError('disk full')"]
    for module in (plan, worker):
        monkeypatch.setattr(module, "papermill_command", lambda *_: failing)
    assert study.main(arguments(tmp_path, "--methods", "none,kd", "--jobs", "2")) == 1
    teacher, alone, distilled = (run.name for run in planned(tmp_path, "none", "kd"))
    out, err = capsys.readouterr()
    # Where it listens, and nowhere else.
    assert re.search(r"^dashboard http://127\.0\.0\.1:\d+/status", out, re.M)
    assert out.count("runs side by side: threads wait without spinning") == 1
    for name in (teacher, alone, "results.ipynb"):
        assert f"failed: {name}: OSError: disk full (see" in err
    assert f"failed: {distilled}: not started" in err
    assert (tmp_path / "runs" / teacher / "notebook.log").is_file()


@pytest.mark.slow
def test_an_interrupted_grid_resumes(tmp_path, capsys, monkeypatch):
    (run,) = planned(tmp_path, "none", epochs=40)
    argv = arguments(tmp_path, "--methods", "none", epochs=40)
    process = subprocess.Popen(
        [sys.executable, "-m", "kdnb.study", *argv],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (run.folder / "metrics.csv").exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert process.returncode == 130
    assert "stopped; the same command goes on from here\n" in err
    assert "side by side" not in out
    assert (run.folder / "checkpoint").is_file()
    assert not run.done
    assert "Interrupted: stopped " in (run.folder / "notebook.log").read_text()

    assert study.main(argv) == 0
    assert f"finished  {run.name}: " in capsys.readouterr().out
    assert run.done
    assert not (run.folder / "notebook.log").exists()
    notebook = (run.folder / "notebook.ipynb").read_text()
    assert '"papermill"' in notebook
    assert "resuming after epoch" in notebook
    assert notebook.count('"image/png": "') == 1
    assert (tmp_path / "results.ipynb").is_file()
    assert not (tmp_path / "records").exists()
    assert "wrn_10_1" in (tmp_path / "runs/tables/headline.md").read_text()
    assert list(tmp_path.glob("runs/figures/learning-curves-digits*.png"))

    # Nothing is left to train; only the tables are made again.
    monkeypatch.setattr(plan, "execute", lambda *_: "")
    assert study.main(argv) == 0
    assert capsys.readouterr().out.count("finished  ") == 1
