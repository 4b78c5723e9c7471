"""kdnb.process: notebooks' processes, places on GPUs, and what a worker has to have in common with
the study."""

import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from dask.distributed import Client, LocalCluster
from helpers import quiet
from test_cluster import until
from test_study import planned

from kdnb import InputError, Run, train
from kdnb.data import DATASETS
from kdnb.study import worker as process
from kdnb.study.cluster import cluster, make_all
from kdnb.study.worker import Study, execute

# What a worker, papermill and its kernel are to each other: each starts the next, the last in a
# session of its own.
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


def test_a_kernel_is_interrupted_and_says_so(tmp_path):
    words = [sys.executable, "-c", PAPERMILL, KERNEL, str(tmp_path)]
    assert (
        execute(words, tmp_path / "log", {}, (tmp_path / "running").exists)
        == f"it was stopped (see {tmp_path}/log)"
    )
    assert (tmp_path / "stopped").exists()


def test_a_notebook_ends_with_its_worker_also_if_that_is_killed(tmp_path):
    worker = "import sys; from pathlib import Path; from kdnb.study.worker import execute; "
    worker += "execute(sys.argv[2:], Path(sys.argv[1]), {})"
    words = [
        sys.executable,
        "-c",
        worker,
        str(tmp_path / "log"),
        sys.executable,
        "-c",
        PAPERMILL,
        KERNEL,
        str(tmp_path),
    ]
    killed = psutil.Popen(words, cwd=Path(__file__).parents[2])
    until((tmp_path / "running").exists, "the kernel runs")
    started = killed.children(recursive=True)
    killed.kill()
    assert len(started) == 3 and psutil.wait_procs(started, timeout=60)[1] == [] and killed.wait()
    assert not (tmp_path / "stopped").exists()


@pytest.mark.parametrize(
    ("visible", "count", "per_gpu", "places"),
    [
        (None, 0, 1, []),
        (None, 2, 1, ["0", "1"]),
        (None, 2, 2, ["0", "1", "0", "1"]),
        ("3,1", 2, 2, ["3", "1", "3", "1"]),  # as dask-cuda gives them: a worker's own first
        ("GPU-5f,GPU-77", 1, 1, ["GPU-5f"]),
    ],
)
def test_runs_are_spread_over_the_gpus_that_a_worker_sees(
    monkeypatch, visible, count, per_gpu, places
):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(process.torch.cuda, "device_count", lambda: count)
    process.places.cache_clear()
    queue = process.places(per_gpu)
    taken = [queue.get() for _ in range(queue.qsize())]
    assert [name for *_, name in taken] == places
    for place in reversed(taken):
        queue.put(place)
    assert not taken or queue.get() == taken[0]
    process.places.cache_clear()


def test_a_run_gets_its_part_of_the_cores_and_a_gpu_if_it_may_choose(tmp_path, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("dask.system.CPU_COUNT", 8)
    monkeypatch.setattr(process, "gpus", lambda: ["0", "1"])
    process.places.cache_clear()

    def told(run):
        with process.share(run, 1) as env:
            return env

    run = planned(tmp_path, "teacher")[0]
    with Client(
        n_workers=3, threads_per_worker=1, processes=False, dashboard_address=None
    ) as client:
        one, other = (
            client.submit(told, run, pure=False).result()
            for run in (run, replace(run, device="cpu"))
        )
        monkeypatch.setattr(
            process.os, "cpu_count", lambda: 64
        )  # as in a container; the workers share what it has
        assert client.submit(told, run, pure=False).result()["OMP_NUM_THREADS"] == "2"
    assert one == other | {"CUDA_VISIBLE_DEVICES": "0"} and other["OMP_NUM_THREADS"] == "2"
    process.places.cache_clear()


def test_a_worker_that_sees_other_folders_or_has_other_code_is_told(tmp_path):
    (tmp_path / "data").mkdir()
    study = Study.begin(1, tmp_path / "runs", {"digits": str(tmp_path / "data")})
    assert study.differs() == "" and study.alike == Study.begin(1, study.runs, study.data).alike
    (tmp_path / "data").rmdir()
    assert f"the folder {tmp_path}/data is not there on" in study.differs()
    (study.runs / process.MARK).write_text("another")
    assert f"the folder {study.runs} is another on" in study.differs()
    study.alike["kdnb's code"] = "0123"
    assert "kdnb's code is " in study.differs() and study.differs().endswith(", and 0123 here")
    (run,) = planned(tmp_path, "teacher")
    made = process.make(run, study)
    assert made.why.startswith("not started: kdnb's code is ") and not made.top1
    with (
        cluster("", 1) as client,
        pytest.raises(InputError, match="cannot make these runs: kdnb's code is"),
    ):
        make_all(client, [run], study)
    assert not run.folder.exists()


def test_the_notebook_of_a_run_is_told_every_parameter(tmp_path, monkeypatch):
    run, told = planned(tmp_path, "teacher")[0], []
    monkeypatch.setattr(process, "execute", lambda words, *_: told.extend(words) or "disk full")
    assert process.notebook(run, {}, lambda: False) == "disk full"
    said = dict(zip(told[told.index("-p") + 1 :: 3], told[told.index("-p") + 2 :: 3], strict=False))
    assert {name: str(getattr(run, name)) for name in Run.parameters()}.items() <= said.items()


def test_a_notebook_that_made_another_run_is_not_started_again(tmp_path, monkeypatch):
    run, told = planned(tmp_path, "teacher")[0], []
    monkeypatch.setattr(process, "notebook", lambda *_: told.append("") or "")
    study = Study.begin(1, tmp_path / "runs", {})
    with Client(
        n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None
    ) as client:
        made = client.submit(process.make, run, study, pure=False).result()
    assert made.why == f"its notebook made another run, not {run.name}" and told == [""]


def test_a_run_is_looked_for_under_the_data_that_are_there_by_now(tmp_path, monkeypatch):
    run, told = planned(tmp_path, "teacher")[0], []
    assert run.data_hash == ""
    monkeypatch.setitem(
        DATASETS, run.dataset, DATASETS[run.dataset]._replace(digest=lambda root: "downloaded")
    )
    monkeypatch.setattr(
        process, "notebook", lambda run, *_: told.append(run.data_hash) or "disk full"
    )
    study = Study.begin(1, tmp_path / "runs", {})
    with Client(
        n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None
    ) as client:
        assert client.submit(process.make, run, study, pure=False).result().why == "disk full"
    assert told == ["downloaded"]


def test_a_cluster_that_starts_workers_for_tasks_alone_is_asked_for_one(tmp_path):
    """dask-jobqueue's `adapt` starts no job before there is a task."""
    run = train(
        Run(student="wrn_10_1", method="none", epochs=1, image_size=8, outputs=str(tmp_path)), quiet
    )
    study = Study.begin(1, tmp_path / "runs", {})
    with LocalCluster(
        n_workers=0, processes=False, threads_per_worker=1, dashboard_address=None
    ) as cluster:
        cluster.adapt(minimum=0, maximum=1, interval="100ms")
        with Client(cluster) as client:
            assert make_all(client, [run], study) == {}
