"""kdnb.study.gpus: slots of GPUs, and the share of a machine that a run gets."""

import threading
from collections import Counter
from contextlib import ExitStack
from dataclasses import replace

import pytest
from dask.distributed import Client
from test_study import planned

from kdnb.study import gpus


@pytest.fixture
def no_slots():
    """No GPU has slots before or after the test."""
    gpus.gpu_slots.cache_clear()
    yield
    gpus.gpu_slots.cache_clear()


def client(workers):
    return Client(n_workers=workers, threads_per_worker=1, processes=False, dashboard_address=None)


@pytest.mark.parametrize(
    ("visible", "count", "per_gpu", "names"),
    [
        (None, 2, 1, ["0", "1"]),
        (None, 2, 2, ["0", "1", "0", "1"]),
        ("3,1", 2, 2, ["3", "1", "3", "1"]),  # as dask-cuda gives them: a worker's own first
        ("GPU-5f,GPU-77", 1, 1, ["GPU-5f"]),
    ],
)
def test_runs_are_spread_over_the_gpus_that_a_worker_sees(
    monkeypatch, no_slots, visible, count, per_gpu, names
):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(gpus.torch.cuda, "device_count", lambda: count)
    slots = gpus.gpu_slots(per_gpu)
    with ExitStack() as taken:
        assert [taken.enter_context(slots.take(1)) for _ in names] == names
        assert not any(slots.free.values())
    with slots.take(per_gpu) as first:
        assert first == names[0]


def test_a_group_gets_the_emptiest_gpu_and_one_that_only_reads_waits_for_none():
    slots = gpus.Slots(["0", "1"], 3)
    with slots.take(1) as single, slots.take(3) as group, slots.take(0) as reader:
        assert [single, group, reader] == ["0", "1", "0"]
        with slots.take(2) as rest, slots.take(0):
            assert rest == "0"


def test_the_slots_of_a_run_that_fails_are_free_again():
    slots = gpus.Slots(["0"], 2)
    with pytest.raises(OSError), slots.take(2):
        raise OSError
    assert slots.free == {"0": 2}


def test_threads_that_take_one_or_all_slots_never_wait_for_each_other():
    """No GPU is overfull, and no thread is left with a part of the slots that it needs."""
    slots = gpus.Slots(["0", "1"], 2)
    taken, most, lock = Counter(), Counter(), threading.Lock()

    def work(count):
        for _ in range(300):
            with slots.take(count) as name:
                with lock:
                    taken[name] += count
                    most[name] = max(most[name], taken[name])
                with lock:
                    taken[name] -= count

    threads = [threading.Thread(target=work, args=(n,), daemon=True) for n in (1, 2, 2) * 3]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert max(most.values()) == 2
    assert slots.free == {"0": 2, "1": 2}


def test_a_run_gets_its_share_of_the_cores_and_a_gpu_if_it_may_use_any(
    tmp_path, monkeypatch, no_slots
):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("dask.system.CPU_COUNT", 8)
    monkeypatch.setattr(gpus, "visible_gpus", lambda: ["0", "1"])

    def environment(run):
        with gpus.allocate(run, 1) as env:
            return env

    (run,) = planned(tmp_path, "teacher")
    on_cpu = replace(run, device="cpu")
    shared = {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "PASSIVE"}
    with client(workers=3) as three:
        assert three.submit(environment, on_cpu, pure=False).result() == shared
        with_gpu = three.submit(environment, run, pure=False).result()
        assert with_gpu == shared | {"CUDA_VISIBLE_DEVICES": "0"}
        # As in a container, whose workers share what it has.
        monkeypatch.setattr(gpus.os, "cpu_count", lambda: 64)
        assert three.submit(environment, on_cpu, pure=False).result() == shared
    with client(workers=1) as alone:
        assert alone.submit(environment, on_cpu, pure=False).result() == {"OMP_NUM_THREADS": "8"}
