"""kdnb.study: the grid, its order, what is finished, failures and interrupts; the notebooks are the
real ones."""

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kdnb.study import __main__ as study
from kdnb.study import worker as process

ROOT = Path(__file__).resolve().parents[2]
QUICK = {
    "student": "wrn_10_1",
    "teacher": "wrn_10_1",
    "epochs": 1,
    "teacher_epochs": 1,
    "image_size": 8,
}
QUICK |= {"precision": "float32", "threads": 1}


def arguments(outputs, *argv, **changes):
    pairs = [word for name, value in (QUICK | changes).items() for word in ("-p", name, str(value))]
    return ["--dataset", "digits", *argv, "--outputs", str(outputs), *pairs]


def planned(outputs, *methods, **changes):
    return study.plan(
        ["digits"], list(methods), outputs=str(outputs), **QUICK | {"seed": [0]} | changes
    )


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
    assert runs[0] == runs[-1].teacher_run and [run.seed for run in runs] == [0, 0, 1, 0, 1, 0, 1]
    assert planned(tmp_path, "teacher") == runs[:1]
    taught = planned(tmp_path, "afd", teacher_seed=[3, 4])
    assert [run.seed for run in taught] == [3, 4, 0, 0] and len(set(taught)) == 4


def test_a_dry_run_says_what_is_finished_and_every_command_and_writes_nothing(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.delenv("KDNB_DATA", raising=False)
    argv = arguments(tmp_path, "--methods", "none,ce + kd:2(T=3)", "--seeds", "5", "--dry-run")
    assert study.main(argv) == 0 and list(tmp_path.iterdir()) == []
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and all(
        line.startswith("to run    python -m kdnb -p student wrn_10_1 ") for line in lines
    )
    said = "-p method 'ce + kd:2(T=3.0)' -p teacher wrn_10_1 -p teacher_weights none -p teacher_epochs 1 -p seed 5"
    assert (
        said in lines[2]
        and f"-p outputs {tmp_path}" in lines[2]
        and f"-p data_root {ROOT}" in lines[2]
    )
    run = planned(tmp_path, "none", seed=[5])[0]
    run.folder.mkdir(parents=True)
    (run.folder / "result.json").touch()
    study.main(argv)
    assert f"finished  {run.folder}" in capsys.readouterr().out


@pytest.mark.parametrize(("names", "teachers"), [("wrn_16_2-wrn_10_1", 1), ("all", 2)])
def test_pairs_are_a_teacher_and_a_student_each(tmp_path, capsys, pairs, names, teachers):
    argv = [
        "--dataset",
        "digits",
        "--methods",
        "none,kd",
        "--pair",
        names,
        "--outputs",
        str(tmp_path),
        "--dry-run",
    ]
    assert study.main(argv) == 0
    lines = capsys.readouterr().out.splitlines()
    assert (
        sum("-p method ce -p epochs 6" in line for line in lines) == teachers
        and len(lines) == 2 * teachers + 1
    )
    taught = [line for line in lines if "-p teacher wrn" in line]
    assert (
        "-p student wrn_10_1" in taught[0]
        and "-p teacher wrn_16_2" in taught[0]
        and len(taught) == teachers
    )


def test_a_method_that_the_teacher_cannot_serve_is_left_out_and_said(tmp_path, capsys):
    argv = [
        "--dataset",
        "stanford40, digits",
        "--methods",
        "none,kd",
        "--dry-run",
        "--outputs",
        str(tmp_path),
    ]
    assert study.main(argv) == 0
    out = capsys.readouterr().out
    assert out.startswith("left out: stanford40, kd: kd compares predictions")
    assert len(re.findall("-p dataset stanford40", out)) == 1 and out.count("to run") == 4


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (
            ["--dataset", "cifar10"],
            "unknown dataset 'cifar10': choose one of cifar100, digits, folder, s",
        ),
        (["--methods", "none,krd"], "unknown method 'krd': choose one of none, afd"),
        (
            ["--seeds", "4-x"],
            "argument --seeds: '4-x': it must be numbers and ranges, such as 0-4 or 0,1,2",
        ),
        (["--seeds", "4-0"], "seed is an empty list: it must have a value or more"),
        (["--seeds=-1"], "argument --seeds: '-1': it must be numbers"),
        (["--jobs", "0"], "--jobs is 0: it must be 1 or more"),
        (["--per-gpu", "0"], "--per-gpu is 0: it must be 1 or more"),
        (
            ["--pair", "a-b"],
            "unknown pair 'a-b': choose one of all, wrn_10_1-wrn_10_1, wrn_16_2-wrn_10_1",
        ),
        (["--pair", "all", "-p", "student", "x"], "-p student: it has an option of its own"),
        (["--scheduler", "nowhere", "--dataset", "digits"], "--scheduler nowhere: "),
        (["--jobs", "two"], "argument --jobs: invalid int value: 'two'"),
        (["-p", "epoch", "3"], "unknown parameter 'epoch': choose one of batch_size, compile"),
        (["-p", "seed", "3"], "-p seed: it has an option of its own"),
        (["-p", "batch_size", "1.5"], "batch_size is 1.5: it must be a whole number"),
        (["-p", "lr", "-1"], "lr is -1.0: it must be 0 or more"),
        (["-p", "teacher", "wrn_41_2"], "depth must be 6n"),  # none needs no teacher, and would run
        (["--dataset", "stanford40", "--methods", "kd"], "nothing is left to run"),
        (["--seed", "1"], "unrecognized arguments: --seed 1"),
        (["-p", "data_root", "2024"], "data_root is 2024: it must be text"),
    ],
)
def test_bad_arguments_are_said_and_end_with_2(tmp_path, capsys, pairs, argv, sentence):
    with pytest.raises(SystemExit) as end:
        study.main(["--outputs", str(tmp_path / "o"), *argv])
    assert (
        end.value.code == 2
        and sentence in capsys.readouterr().err
        and not (tmp_path / "o").exists()
    )


def test_what_is_typed_is_what_papermill_makes_of_it():
    assert study.seeds("0-2,7, 1") == [0, 1, 2, 7, 1]
    texts = ["3", "0.5", "1e-3", "True", "None", "wrn_16_2", "ce + kd:0.9(T=2)", "a/b.pth", ""]
    assert [study.typed(text) for text in texts] == [3, 0.5, 0.001, True, None, *texts[5:]]


# Processes


def test_a_failure_stops_what_needs_it_and_nothing_else(tmp_path, capsys, monkeypatch):
    for module in (study, process):
        monkeypatch.setattr(
            module, "papermill", lambda *_: [sys.executable, "-c", "raise OSError('disk full')"]
        )
    assert study.main(arguments(tmp_path, "--methods", "none,kd", "--jobs", "2")) == 1
    teacher, alone, taught = (run.name for run in planned(tmp_path, "none", "kd"))
    out, err = capsys.readouterr()
    assert re.search(
        r"^dashboard http://127\.0\.0\.1:\d+/status", out, re.M
    )  # where it listens, and nowhere else
    for what, why in {
        teacher: "OSError",
        alone: "OSError",
        taught: "not started",
        "results.ipynb": "OSError",
    }.items():
        assert f"failed: {what}: {why}" in err
    assert "disk full (see" in err and (tmp_path / "runs" / teacher / "notebook.log").is_file()


def test_an_interrupted_grid_goes_on(tmp_path, capsys, monkeypatch):
    (run,) = planned(tmp_path, "none", epochs=40)
    argv = arguments(tmp_path, "--methods", "none", epochs=40)
    words = [sys.executable, "-m", "kdnb.study", *argv]
    started = subprocess.Popen(
        words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while not (run.folder / "metrics.csv").exists():
        assert started.poll() is None, started.stderr.read()
        time.sleep(0.05)
    started.send_signal(signal.SIGINT)
    _, err = started.communicate()
    assert started.returncode == 130 and "stopped; the same command goes on from here\n" in err
    assert (run.folder / "checkpoint").is_file() and not run.done
    assert "Interrupted: stopped after step" in (run.folder / "notebook.log").read_text()

    assert study.main(argv) == 0 and f"finished  {run.name}: " in capsys.readouterr().out
    assert run.done and not (run.folder / "notebook.log").exists()
    notebook = (run.folder / "notebook.ipynb").read_text()
    assert (
        '"papermill"' in notebook
        and "going on after epoch" in notebook
        and notebook.count('"image/png": "') == 1
    )
    assert (tmp_path / "results.ipynb").is_file() and not (tmp_path / "records").exists()
    assert "wrn_10_1" in (tmp_path / "runs/tables/headline.md").read_text()
    assert list(tmp_path.glob("runs/figures/learning-curves-digits*.png"))

    monkeypatch.setattr(
        study, "execute", lambda *_: ""
    )  # but for the tables there is nothing left to make
    assert study.main(argv) == 0 and capsys.readouterr().out.count("finished  ") == 1
