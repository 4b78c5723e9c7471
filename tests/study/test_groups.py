"""Runs that differ in their seed alone share a process, and each ends as it would alone."""

import json
import signal
import subprocess
import sys
import time

import pytest
from helpers import quiet, weights
from test_cluster import STAND_IN
from test_gpus import client
from test_study import ROOT, arguments, planned

from kdnb import Run, train
from kdnb.progress import bar
from kdnb.runs.config import make_config
from kdnb.runs.lock import locked
from kdnb.study import __main__ as study_command
from kdnb.study import plan, worker
from kdnb.study.cluster import Report
from kdnb.study.fingerprints import Study
from kdnb.study.plan import group_runs
from kdnb.study.worker import Outcome


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch):
    """Neither this process nor its children see one, over which runs would be spread."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(plan, "visible_gpus", list)


def test_runs_that_differ_in_their_seed_alone_are_grouped_teachers_first(tmp_path):
    runs = planned(tmp_path, "none", "kd", seed=[0, 1, 2, 3, 4], lr=[0.1, 0.2])
    groups = group_runs(runs, 4)
    assert sorted(map(len, groups)) == [1] + 4 * [2] + 4 * [3]
    for group in groups:
        assert len({(run.method, run.lr, run.teacher_run) for run in group}) == 1
    order = [run for group in groups for run in group]
    assert sorted(order, key=runs.index) == runs
    for place, run in enumerate(order):
        assert run.teacher_run is None or order.index(run.teacher_run) < place
    assert group_runs(runs, 1) == [(run,) for run in runs]


def test_a_dry_run_lists_one_command_for_a_group(tmp_path, capsys):
    train(*planned(tmp_path, "none", seed=[4]), quiet)
    argv = arguments(tmp_path, "--methods", "none", "--seeds", "0-4", "--per-gpu", "2")
    assert study_command.main([*argv, "--dry-run"]) == 0
    finished, *commands = capsys.readouterr().out.splitlines()
    assert finished.startswith("finished ")
    assert len(commands) == 2
    for command, seeds in zip(commands, ("0, 1", "2, 3"), strict=True):
        assert f" -p seed '[{seeds}]' " in command
        assert command.endswith(" --together 2")


def test_a_few_runs_are_spread_over_the_gpus_of_this_machine(tmp_path, capsys, monkeypatch):
    argv = arguments(tmp_path, "--methods", "none", "--seeds", "0-3", "--per-gpu", "4", "--dry-run")
    for gpus, commands in {1: 1, 2: 2, 8: 4}.items():
        monkeypatch.setattr(plan, "visible_gpus", lambda gpus=gpus: [*map(str, range(gpus))])
        assert study_command.main(argv) == 0
        assert capsys.readouterr().out.count("to run") == commands


def on_a_worker(function, *arguments):
    with client(workers=1) as alone:
        return alone.submit(function, *arguments, pure=False).result()


@pytest.fixture
def study(tmp_path):
    return Study.create(3, tmp_path / "runs", {})


@pytest.fixture
def commands(monkeypatch):
    """The words of the commands that would run; they fail."""
    words = []
    monkeypatch.setattr(worker, "execute", lambda command, *_: words.append(command) or "killed")
    return words


def test_a_group_leaves_out_what_is_finished_or_trained_by_another_process(
    tmp_path, study, commands
):
    runs = planned(tmp_path, "none", seed=[0, 1, 2, 3])
    train(runs[3], quiet)
    with locked(runs[2].folder):
        assert on_a_worker(worker.train_group, runs[1:], study) == ""  # one is left
        assert commands == []
        assert on_a_worker(worker.train_group, runs, study) == "killed"
    (command,) = commands
    assert command[0] == sys.executable
    assert command[command.index("seed") + 1] == "[0, 1]"
    assert command[-2:] == ["--together", "2"]


def test_a_group_and_its_runs_do_not_start_after_a_failed_teacher_or_a_stop(
    tmp_path, study, commands, monkeypatch
):
    runs = planned(tmp_path, "none", seed=[0, 1])
    failed = [Outcome("disk full")]
    assert on_a_worker(worker.train_group, runs, study, failed) == ""
    monkeypatch.setattr(worker, "is_stopped", lambda study: True)
    assert on_a_worker(worker.train_group, runs, study) == ""
    outcome = on_a_worker(worker.make_run, runs[0], study, [], "killed")
    assert outcome.error == "stopped before it began"
    assert commands == []


def test_a_group_that_cannot_start_leaves_its_runs_to_be_trained_alone(
    tmp_path, study, monkeypatch
):
    def fail(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(worker, "execute", fail)
    runs = planned(tmp_path, "none", seed=[0, 1])
    error = on_a_worker(worker.train_group, runs, study)
    assert error == "OSError: no space left on device"


def test_a_group_whose_worker_is_gone_is_lost_with_each_of_its_runs(capsys):
    message = {"waits_passively": False, "reason": ""}
    with bar(2, "study", "run") as progress:
        report = Report({"group": ["a", "b"], "c": ["c"]}, progress)
        for run in "abac":
            report.run_event((0, message | {"run": run}))
        report.worker_removed((0, {"processing-tasks": {"group": 1}, "worker": "tcp://x"}))
        report.run_event((0, message | {"run": "b", "reason": "killed by SIGKILL"}))
    assert capsys.readouterr().out.splitlines() == [
        "started   a",
        "started   b",
        "retried   a",
        "started   c",
        "lost      a: its worker tcp://x is gone",
        "lost      b: its worker tcp://x is gone",
        "retried   b: killed by SIGKILL",
    ]


@pytest.mark.slow
def test_a_group_ends_with_the_bits_of_runs_alone_whatever_becomes_of_one_of_them(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(plan, "papermill_command", lambda *_: [sys.executable, "-c", ""])
    first, second, failing = planned(tmp_path, "none", seed=[0, 1, 2], device="cpu")
    failing.folder.mkdir(parents=True)
    other = make_config(failing.with_changes(epochs=2))
    (failing.folder / "config.json").write_text(json.dumps(other))
    options = ["--methods", "none", "--seeds", "0-2", "--per-gpu", "3", "--jobs", "2"]
    argv = arguments(tmp_path, *options, device="cpu")
    assert study_command.main(argv) == 1
    out, err = capsys.readouterr()
    for run in (first, second):
        words = [line.split()[0] for line in out.splitlines() if f" {run.name}" in line]
        assert [word for word in words if word != "epoch"] == ["started", "finished"]
        alone = train(run.with_changes(outputs=str(tmp_path / "alone")), quiet)
        assert weights(run) == weights(alone)
        assert "finished before" in (run.folder / "notebook.ipynb").read_text()
    assert f"\nretried   {failing.name}: " in out
    assert f"failed: {failing.name}: InputError: {failing.folder} holds another run" in err
    assert err.count("failed: ") == 1


@pytest.mark.slow
def test_an_interrupted_group_stops_with_checkpoints_and_nothing_is_started(tmp_path):
    runs = planned(tmp_path, "none", seed=[0, 1], epochs=40)
    argv = arguments(tmp_path, "--methods", "none", "--seeds", "0,1", "--per-gpu", "2", epochs=40)
    process = subprocess.Popen(
        [sys.executable, STAND_IN, "study", *argv],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not all((run.folder / "metrics.csv").exists() for run in runs):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert process.returncode == 130, err
    assert all((run.folder / "checkpoint").is_file() for run in runs)
    assert not any(run.done for run in runs)
    assert "retried" not in out
    assert "run it again to go on from there" in (runs[0].folder / "group.log").read_text()
