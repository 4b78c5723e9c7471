"""kdnb.study.worker: processes of notebooks, and what workers share with the study."""

import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from dask.distributed import Client, LocalCluster
from helpers import quiet
from test_cluster import wait_for
from test_gpus import client
from test_study import planned

from kdnb import InputError, Run, train
from kdnb.data import DATASETS
from kdnb.progress import bar
from kdnb.study import worker
from kdnb.study.cluster import Report, cluster, run_all
from kdnb.study.commands import execute
from kdnb.study.fingerprints import MARKER, Study

# A kernel and a papermill, as a worker starts them: each starts the next, the last in a session of
# its own.
KERNEL = """
import signal, sys, time
from pathlib import Path
def stop(*_):
    Path(sys.argv[1], "stopped").touch()
    sys.exit(3)
signal.signal(signal.SIGINT, stop)
Path(sys.argv[1], "running").touch()
time.sleep(60)
"""
PAPERMILL = """
import signal, subprocess, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
code = subprocess.Popen([sys.executable, "-c", *sys.argv[1:]], start_new_session=True).wait()
print("it was", "stopped" if code == 3 else code)
sys.exit(code)
"""
# A training with a child, as the compiler starts them.
PARENT = """
import atexit, subprocess
atexit.register(subprocess.Popen(["sleep", "60"]).kill)
"""
WORKER = """
import sys
from pathlib import Path
from kdnb.study.commands import execute
execute(sys.argv[2:], Path(sys.argv[1]), {})
"""


def test_a_kernel_is_interrupted_and_its_last_line_is_the_error(tmp_path):
    command = [sys.executable, "-c", PAPERMILL, KERNEL, str(tmp_path)]
    error = execute(command, tmp_path / "log", {}, (tmp_path / "running").exists)
    assert error == f"it was stopped (see {tmp_path}/log)"
    assert (tmp_path / "stopped").exists()


def test_a_command_is_interrupted_itself_and_not_its_children(tmp_path):
    command = [sys.executable, "-c", PARENT + KERNEL, str(tmp_path)]
    execute(command, tmp_path / "log", {}, (tmp_path / "running").exists, "command")
    assert (tmp_path / "stopped").exists()


@pytest.mark.slow
def test_a_notebook_ends_with_its_worker_even_if_that_is_killed(tmp_path):
    notebook = [sys.executable, "-c", PAPERMILL, KERNEL, str(tmp_path)]
    command = [sys.executable, "-c", WORKER, str(tmp_path / "log"), *notebook]
    killed = psutil.Popen(command, cwd=Path(__file__).parents[2])
    wait_for((tmp_path / "running").exists, "the kernel runs")
    children = killed.children(recursive=True)
    killed.kill()
    assert len(children) == 3
    _, alive = psutil.wait_procs(children, timeout=60)
    assert alive == []
    assert killed.wait()
    assert not (tmp_path / "stopped").exists()


def test_a_worker_with_other_folders_or_code_is_refused(tmp_path):
    (tmp_path / "data").mkdir()
    study = Study.create(1, tmp_path / "runs", {"digits": str(tmp_path / "data")})
    assert study.mismatch() == ""
    assert study.expected == Study.create(1, study.runs, study.data).expected
    (tmp_path / "data").rmdir()
    assert f"the folder {tmp_path}/data is not there on" in study.mismatch()
    (study.runs / MARKER).write_text("another")
    assert f"the folder {study.runs} is another on" in study.mismatch()
    study.expected["kdnb's code"] = "0123"
    assert "kdnb's code is " in study.mismatch()
    assert study.mismatch().endswith(", and 0123 here")
    (run,) = planned(tmp_path, "teacher")
    outcome = worker.make_run(run, study)
    assert outcome.error.startswith("not started: kdnb's code is ")
    assert not outcome.top1
    refused = pytest.raises(InputError, match="cannot make these runs: kdnb's code is")
    with cluster("", 1) as own, refused:
        run_all(own, [[run]], study)
    assert not run.folder.exists()


def test_the_notebook_of_a_run_gets_every_parameter(tmp_path, monkeypatch):
    (run,) = planned(tmp_path, "teacher")
    words = []
    monkeypatch.setattr(worker, "execute", lambda command, *_: words.extend(command) or "full")
    assert worker.execute_notebook(run, {}, lambda: False) == "full"
    first = words.index("-p")
    given = dict(zip(words[first + 1 :: 3], words[first + 2 :: 3], strict=False))
    parameters = {name: str(getattr(run, name)) for name in Run.parameters()}
    assert parameters.items() <= given.items()


def test_a_notebook_that_made_another_run_is_not_started_again(tmp_path, monkeypatch):
    (run,) = planned(tmp_path, "teacher")
    calls = []
    monkeypatch.setattr(worker, "execute_notebook", lambda *_: calls.append(1) or "")
    study = Study.create(1, tmp_path / "runs", {})
    with client(workers=1) as alone:
        outcome = alone.submit(worker.make_run, run, study, pure=False).result()
    assert outcome.error == f"its notebook made another run, not {run.name}"
    assert calls == [1]


def test_a_run_is_looked_for_under_the_data_that_are_there_by_now(tmp_path, monkeypatch):
    (run,) = planned(tmp_path, "teacher")
    hashes = []
    assert run.data_hash == ""
    downloaded = DATASETS[run.dataset]._replace(digest=lambda root: "downloaded")
    monkeypatch.setitem(DATASETS, run.dataset, downloaded)
    monkeypatch.setattr(
        worker, "execute_notebook", lambda run, *_: hashes.append(run.data_hash) or "disk full"
    )
    study = Study.create(1, tmp_path / "runs", {})
    with client(workers=1) as alone:
        outcome = alone.submit(worker.make_run, run, study, pure=False).result()
    assert outcome.error == "disk full"
    assert hashes == ["downloaded"]


def test_a_cluster_that_starts_workers_only_for_tasks_gets_one(tmp_path):
    """dask-jobqueue's `adapt` starts no job before there is a task."""
    fields = {"student": "wrn_10_1", "method": "none", "epochs": 1, "image_size": 8}
    run = train(Run(**fields, outputs=str(tmp_path)), quiet)
    study = Study.create(1, tmp_path / "runs", {})
    with LocalCluster(
        n_workers=0, processes=False, threads_per_worker=1, dashboard_address=None
    ) as adaptive:
        adaptive.adapt(minimum=0, maximum=1, interval="100ms")
        with Client(adaptive) as own:
            assert run_all(own, [[run]], study) == {}


def test_a_command_that_is_killed_says_so(tmp_path):
    code = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    error = execute([sys.executable, "-c", code], tmp_path / "log", {})
    assert error == f"killed by SIGKILL (see {tmp_path / 'log'})"


def test_epochs_of_a_run_are_reported(tmp_path, monkeypatch, capsys):
    """Only new ones, and those that are not tested without an accuracy."""
    monkeypatch.setattr(worker, "REPORT_SECONDS", 0)
    run = Run(dataset="digits", method="none", outputs=str(tmp_path))
    messages = []
    report = worker.EpochReport(run, messages.append)
    report()
    assert messages == []
    run.folder.mkdir(parents=True)
    rows = ["epoch,train_top1,test_top1,seconds", "1,50.0,nan,2.0", "2,60.0,54.16,2.0"]
    for lines in (2, 2, 3):
        (run.folder / "metrics.csv").write_text("\n".join(rows[:lines]) + "\n")
        report()
    assert [message["epoch"] for message in messages] == [1, 2]
    with bar(1, "study", "run") as progress:
        printer = Report({}, progress)
        for message in messages:
            printer.run_event((0, message))
    assert capsys.readouterr().out.splitlines() == [
        f"epoch     {run.name}: 1/40",
        f"epoch     {run.name}: 2/40, test 54.2 %",
    ]
