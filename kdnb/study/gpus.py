"""What a run gets of its worker's machine: a share of the cores, and slots of a GPU."""

import contextlib
import os
import threading
from collections.abc import Iterator, Sequence
from functools import cache

import torch

from kdnb.runs.run import Run

ONE_BY_ONE = threading.Lock()  # or two threads that begin at once would each create the slots


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    count = torch.cuda.device_count()
    names = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(count)))
    return names.split(",")[:count]


class Slots:
    """The free slots of GPUs, which several threads take and put back.

    Args:
        names: of the GPUs.
        per_gpu: number of slots of each.
    """

    def __init__(self, names: Sequence[str], per_gpu: int):
        self.free = dict.fromkeys(names, per_gpu)
        self.changed = threading.Condition()

    @contextlib.contextmanager
    def take(self, count: int) -> Iterator[str]:
        """The name of a GPU that has `count` slots free; they are taken within the context.

        It is the GPU with most free slots. The context waits until one has enough: all slots are
        taken at once, because two threads with half of theirs would wait for each other.
        """
        with self.changed:
            self.changed.wait_for(lambda: max(self.free.values()) >= count)
            name = max(self.free, key=self.free.get)
            self.free[name] -= count
        try:
            yield name
        finally:
            with self.changed:
                self.free[name] += count
                self.changed.notify_all()


@cache
def gpu_slots(per_gpu: int) -> Slots:
    """The slots of this worker's GPUs, `per_gpu` on each."""
    return Slots(visible_gpus(), per_gpu)


@contextlib.contextmanager
def allocate(run: Run, per_gpu: int, slots: int = 1) -> Iterator[dict[str, str]]:
    """Environment variables that give a run its share of the cores and free slots of a GPU.

    A run whose device is not "auto" or "cuda" gets no slot. The context waits for free ones.
    """
    from dask.distributed import get_client, get_worker
    from dask.system import CPU_COUNT

    workers = get_client().scheduler_info(n_workers=-1)["workers"]
    address = get_worker().address
    host = workers[address]["host"]
    # The worker of a batch job may have cores of its own, which no other worker of its host uses.
    has_own_cores = (os.cpu_count() or 1) > CPU_COUNT and not address.startswith("inproc:")
    if has_own_cores:
        runs = workers[address]["nthreads"]
    else:
        runs = sum(worker["nthreads"] for worker in workers.values() if worker["host"] == host)
    env = {"OMP_NUM_THREADS": str(max(1, CPU_COUNT // runs))}
    if runs > 1:
        env["OMP_WAIT_POLICY"] = "PASSIVE"  # threads that spin slow down other runs
    if not visible_gpus() or run.device not in ("auto", "cuda"):
        yield env
        return
    with ONE_BY_ONE:
        of_all = gpu_slots(per_gpu)
    with of_all.take(slots) as gpu:
        yield env | {"CUDA_VISIBLE_DEVICES": gpu}
