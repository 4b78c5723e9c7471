"""kdnb.study: the grid, its order, what is finished, failures and interrupts, with notebooks that train nothing.

The tiny notebooks write a result.json as a run would, so that papermill, its processes and the scanning are real.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from PIL import Image
from test_results import make

from kdnb import grid, study
from kdnb.experiment import Experiment

ROOT = Path(__file__).parents[1]
PARAMETERS = next(
    "".join(cell["source"])
    for cell in json.loads((ROOT / "notebooks/distill.ipynb").read_text())["cells"]
    if "parameters" in cell["metadata"].get("tags", [])
)
# What a notebook that trains would leave, from its parameters alone. Seed 7 fails, seed 8 waits to be interrupted.
TRAIN = """
    import json, os, time
    from dataclasses import asdict
    from pathlib import Path
    from kdnb.recipes import recipe
    if seed == 7:
        raise ValueError("seed 7 brings bad luck")
    if seed == 8:
        try:
            Path(outputs, "waiting").touch()
            time.sleep(60)
        except KeyboardInterrupt:
            Path(outputs, "checkpoint").touch()
            raise
    own = recipe(dataset, epochs=epochs, teacher=teacher, student=student)
    taught = KIND == "distill"
    entries = asdict(own) | {"teacher": own.teacher if taught else None}
    losses = {k: v for k, v in {"kd": alpha, "afd": beta}.items() if v} if taught else {}
    result = {"dataset": dataset, "model": own.student, "method": "+".join(losses) or "plain", "seed": seed,
        "train_limit": train_limit, "recipe": entries, "losses": losses, "precision": "float32", "compile": False,
        "device_type": "cpu", "top1": 50.0, "top5": 90.0, "best": {"epoch": 1, "top1": 51.0, "top5": 90.0},
        "epoch_seconds": 1.0, "total_seconds": 1.0, "parameters": 10, "teacher_parameters": None,
        "train_images": 4, "left_out": [], "device": "none", "versions": {"torch": "0"}, "commit": ""}
    if taught:
        name = f"{dataset}-{own.teacher}-plain-seed={teacher_seed}/student.safetensors"
        result |= {"temperature": temperature, "qk_dim": qk_dim, "teacher_weights": {"from": name, "sha256": "a"}}
    folder = Path(outputs, "runs", f"{dataset}-{own.student}-{result['method']}-{seed}")
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps(result))
"""


def notebook(path, parameters, source):
    def cell(text, *tags):
        source = textwrap.dedent(text).strip()
        return {"cell_type": "code", "metadata": {"tags": list(tags)}, "source": source, "outputs": []} | {
            "execution_count": None,
            "id": f"c{len(tags)}",
        }

    kernel = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    cells = [cell(parameters, "parameters"), cell(source)]
    path.write_text(json.dumps({"cells": cells, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}))


@pytest.fixture
def notebooks(tmp_path, monkeypatch):
    """Notebooks of the same names and parameters that train nothing; the study is pointed at them."""
    folder = tmp_path / "notebooks"
    folder.mkdir()
    notebook(folder / "train.ipynb", PARAMETERS, 'KIND = "train"' + textwrap.dedent(TRAIN))
    notebook(folder / "distill.ipynb", PARAMETERS, 'KIND = "distill"' + textwrap.dedent(TRAIN))
    notebook(folder / "results.ipynb", 'outputs: str = ""', "open(outputs + '/gathered', 'w').close()")
    monkeypatch.setattr(grid, "NOTEBOOKS", folder)
    return folder


def dry(capsys, *argv):
    """(exit status, {label: "finished" or "to run"}, the commands)"""
    status = study.main([*argv, "--dry-run"])
    lines = capsys.readouterr().out.splitlines()
    states = {line[10:].split(":")[0].split(",")[0]: line[:8].strip() for line in lines if line[:1] in "ft"}
    return status, states, [line.strip() for line in lines if line.startswith(" ")]


# ------------------------------------------------------------------------------------------------------- the grid


def test_teacher_first_then_every_seed_and_method(tmp_path, capsys):
    status, states, commands = dry(capsys, "--seeds", "0-1", "--outputs", str(tmp_path))
    runs = [f"cifar100-{method}-seed={seed}" for seed in (0, 1) for method in ("plain", "kd", "afd")]
    assert status == 0 and list(states) == ["cifar100-teacher-seed=0", *runs]
    assert set(states.values()) == {"to run"}
    kd = commands[list(states).index("cifar100-kd-seed=1")]
    assert "distill.ipynb" in kd and "-p seed 1" in kd and "-p beta 0.0" in kd and "-p baseline False" in kd
    plain = commands[list(states).index("cifar100-plain-seed=1")]
    assert "train.ipynb" in plain and "-p teacher wrn_16_2 -p student wrn_16_2" in plain
    assert list(tmp_path.iterdir()) == []  # a dry run writes nothing


def test_finished_runs_are_found_by_what_they_hold(tmp_path, capsys):
    make(tmp_path, "any name", 76.0, model="wrn_40_2")
    make(tmp_path, "b", 72.0, seed=1)
    make(tmp_path, "c", 75.0, "kd+afd", seed=0)
    make(tmp_path, "d", 74.0, "kd", seed=0, recipe={"lr": 0.1})
    make(tmp_path, "e", 20.0, recipe={"epochs": 2})
    make(tmp_path, "f", 70.0, "kd+afd", 1, teacher_weights={"from": "other/x.pt", "sha256": ""})
    (tmp_path / "runs/damaged").mkdir()
    (tmp_path / "runs/damaged/result.json").write_text("{")
    _, states, _ = dry(capsys, "--seeds", "0,1", "--outputs", str(tmp_path))
    finished = {label for label, state in states.items() if state == "finished"}
    assert finished == {"cifar100-teacher-seed=0", "cifar100-plain-seed=1", "cifar100-afd-seed=0"}


def test_parameters_passed_on_tell_runs_apart(tmp_path, capsys):
    make(tmp_path, "a", 60.0, recipe={"lr": 0.1}, train_limit=500)
    argv = ["--methods", "plain", "--outputs", str(tmp_path), "-p", "train_limit", "500"]
    _, states, _ = dry(capsys, *argv, "-p", "lr", "0.1")
    assert states == {"cifar100-plain-train_limit=500-lr=0.1-seed=0": "finished"}
    _, states, commands = dry(capsys, *argv)
    assert set(states.values()) == {"to run"} and "-p train_limit 500" in commands[0]
    _, states, _ = dry(capsys, *argv, "-p", "lr", "0.1", "-p", "precision", "float32")
    assert set(states.values()) == {"to run"}


def test_a_kept_teacher_is_not_trained_again(tmp_path, capsys):
    (tmp_path / "teachers").mkdir()
    (tmp_path / "teachers/wrn_40_2-cifar100.safetensors").touch()
    _, states, _ = dry(capsys, "--outputs", str(tmp_path))
    assert "cifar100-teacher-seed=0" not in states and "cifar100-afd-seed=0" in states
    _, states, _ = dry(capsys, "--outputs", str(tmp_path), "-p", "teacher_weights", "none")
    assert "cifar100-teacher-seed=0" in states


def test_kd_without_a_fitting_teacher_is_left_out_and_said(tmp_path, capsys):
    assert study.main(["--dataset", "stanford40", "--dry-run", "--outputs", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "stanford40: kd is left out" in out and "stanford40-afd" in out and "stanford40-kd" not in out


def test_relative_files_are_found_from_another_folder(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.pt").touch()
    _, _, commands = dry(capsys, "--methods", "afd", "--outputs", "o", "-p", "teacher_weights", "mine.pt")
    assert f"-p teacher_weights {tmp_path}/mine.pt" in commands[0] and f"-p outputs {tmp_path}/o" in commands[0]


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["--dataset", "cifar10"], "unknown dataset 'cifar10': choose one of cifar100, digits, folder, stanford40"),
        (["--methods", "crd"], "unknown method 'crd': choose one of afd, kd, plain, teacher"),
        (["--seeds", "4-0"], "--seeds 4-0"),
        (["--seeds", ""], "--seeds"),
        (["--seeds", "-1"], "--seeds -1: it must be like 0-4 or 0,1,2"),
        (["--epochs", "-1"], "--epochs is -1: it must be 0 or more"),
        (["--epochs", "x"], "--epochs: invalid int value: 'x'"),
        (["--jobs", "0"], "--jobs is 0: it must be 1 or more"),
        (["-p", "epoch", "3"], "unknown parameter 'epoch': choose one of alpha"),
        (["-p", "seed", "3"], "-p seed: the study sets it itself, by --seeds"),
        (["-p", "qk_dim", "1.5"], "-p qk_dim 1.5: it must be a whole number"),
        (["-p", "beta", "0"], "use --methods kd"),
        (["--dataset", "stanford40", "--methods", "kd"], "nothing is left to run"),
        (["--dataset", "digits", "-p", "image_size", "9"], "digits has images of 8 pixels"),
        (["--seed", "1"], "unrecognized arguments: --seed 1"),
    ],
)
def test_bad_arguments_are_one_sentence_and_status_2(tmp_path, capsys, argv, sentence):
    assert study.main([*argv, "--outputs", str(tmp_path / "o")]) == 2
    err = capsys.readouterr().err
    assert sentence in err and err.count("\n") == 1 and not (tmp_path / "o").exists()


def test_numbers():
    assert study.numbers("0-2,7, 1") == [0, 1, 2, 7]


# ------------------------------------------------------------------------------------------------- real processes


def test_a_failure_stops_no_other_run_and_a_second_start_skips_the_finished(notebooks, tmp_path, capsys, monkeypatch):
    pages, to_html = [], study.to_html
    monkeypatch.setattr(study, "to_html", lambda path, aside: pages.append(path) or "")  # each takes seconds
    argv = ["--dataset", "digits", "--methods", "afd", "--seeds", "7,0", "--outputs", str(tmp_path)]
    assert study.main([*argv, "--jobs", "2", "--html"]) == 1
    out, err = capsys.readouterr()
    assert "failed: digits-afd-seed=7: ValueError: seed 7 brings bad luck" in err
    runs = tmp_path / "runs"
    finished = ["digits-wrn_40_2-plain-0", "digits-wrn_16_2-kd+afd-0"]  # the teacher, and what needed it
    for name in finished:
        assert "injected-parameters" in (runs / name / "notebook.ipynb").read_text()
    assert (tmp_path / "gathered").is_file()
    kept = sorted(path.name for path in (runs / ".study").iterdir())
    assert kept == ["digits-afd-seed=7.ipynb", "digits-afd-seed=7.log"]
    assert out.index("finished  digits-teacher-seed=0") < out.index("started   digits-afd-seed=0")

    _, states, _ = dry(capsys, *argv)
    assert states == {
        "digits-teacher-seed=0": "finished",
        "digits-afd-seed=7": "to run",
        "digits-afd-seed=0": "finished",
    }
    tasks, _ = grid.plan(["digits"], ["afd"], [0], tmp_path, {})
    assert study.run_all(tasks, 1, tmp_path) == {} and capsys.readouterr().out == ""

    assert pages == [*(runs / name / "notebook.ipynb" for name in finished), tmp_path / "results.ipynb"]
    assert to_html(tmp_path / "results.ipynb", runs / ".study") == ""
    assert "<html" in (tmp_path / "results.html").read_text()


def test_what_needs_a_failed_teacher_is_not_started(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(study, "papermill", lambda *_: [sys.executable, "-c", "raise OSError('disk full')"])
    argv = ["--dataset", "digits", "--methods", "plain,afd", "--outputs", str(tmp_path), "-p", "teacher_seed", "7"]
    assert study.main(argv) == 1
    out, err = capsys.readouterr()
    assert "failed: digits-teacher-seed=7: OSError: disk full" in err
    assert "failed: digits-afd-teacher_seed=7-seed=0: not started: digits-teacher-seed=7 failed" in err
    assert "started   digits-plain-seed=0" in out  # it needs no teacher
    assert "failed: results.ipynb: OSError: disk full" in err


def test_an_interrupt_reaches_the_notebook_and_ends_with_130(notebooks, tmp_path):
    code = "import sys; from pathlib import Path; from kdnb import grid, study"
    code += f"; grid.NOTEBOOKS = Path({str(notebooks)!r})"
    argv = ["--dataset", "digits", "--methods", "plain", "--seeds", "8", "--outputs", str(tmp_path)]
    process = subprocess.Popen(
        [sys.executable, "-c", f"{code}; sys.exit(study.main({argv!r}))"], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    while not (tmp_path / "waiting").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.wait() == 130
    assert process.stderr.read() == "stopped; the same command goes on from here\n"
    assert (tmp_path / "checkpoint").exists()  # the kernel was interrupted, not killed
    log = (tmp_path / "runs/.study/digits-plain-seed=8.log").read_text()
    assert "KeyboardInterrupt" in log


def test_real_runs_of_a_folder_are_recognised_and_those_of_another_are_not(tmp_path):
    """What distill.ipynb makes of someone's own images, against what the grid looks for."""
    photos = photographs(tmp_path / "cats")
    own = {"teacher": "wrn_16_1", "student": "wrn_10_1", "image_size": 16, "batch_size": 4, "epochs": 1}
    own |= {"teacher_weights": "none"}
    outputs = tmp_path / "outputs"
    made = Experiment("folder", str(photos), **own, device="cpu", compile="off", outputs=str(outputs))
    made.plain_run()
    made.distilled_run()

    def still_to_do(data_root, **changes):
        extra = own | {"data_root": str(data_root)} | changes
        tasks, _ = grid.plan(["folder"], ["teacher", "plain", "afd"], [0], outputs, extra)
        return [task.method for task in tasks if grid.finished(outputs, task) is None]

    assert still_to_do(photos) == []
    assert still_to_do(photographs(tmp_path / "dogs")) == ["teacher", "plain", "afd"]
    official = grid.typed([["teacher", "wrn16x1"], ["student", "WRN-10-1"]], grid.notebook_parameters("distill.ipynb"))
    assert still_to_do(photos, **official) == []


def photographs(folder):
    for part in ("train", "test"):
        for c, name in enumerate(("one", "two")):
            (folder / part / name).mkdir(parents=True)
            for i in range(4):
                Image.new("RGB", (20, 20), (100 * c, 60 * i, 0)).save(folder / part / name / f"{i}.png")
    return folder
