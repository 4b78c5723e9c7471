"""The tasks of a study on Dask: a cluster on this machine or a running one, what becomes of each run, in lines."""

import contextlib
import logging
from collections.abc import Iterator
from importlib.util import find_spec

from kdnb.errors import InputError
from kdnb.progress import bar
from kdnb.runs.run import Run
from kdnb.study.worker import Outcome, Study, make


@contextlib.contextmanager
def cluster(scheduler: str, jobs: int) -> Iterator:
    """A client of the running cluster at an address; "": of one in this process, which makes `jobs` runs at a time."""
    from dask.distributed import Client

    for noisy in ("asyncio", "distributed.client"):  # what Dask leaves behind when it is stopped
        logging.getLogger(noisy).setLevel(logging.CRITICAL)
    own = {
        "processes": False,
        "threads_per_worker": 1,
        "memory_limit": None,
        "dashboard_address": "127.0.0.1:0",
    }
    try:
        client = Client(scheduler) if scheduler else Client(n_workers=jobs, silence_logs=50, **own)
    except (OSError, ValueError) as error:
        asked = f"--scheduler {scheduler}" if scheduler else "a cluster on this machine"
        raise InputError(f"{asked}: {error}") from None
    with client:
        link = client.dashboard_link
        if not scheduler:  # Dask names another host than the one it listens on
            missing = "" if find_spec("bokeh") else " (its page needs bokeh: pip install bokeh)"
            link = f"http://127.0.0.1:{client.scheduler_info()['services'].get('dashboard')}/status{missing}"
        print(f"dashboard {link}", flush=True)
        yield client


def make_all(client, runs: list[Run], study: Study) -> dict[str, str]:
    """Make each run on a cluster, a teacher before its students; {run: why} of what failed.

    Raises InputError for workers that differ, ConnectionError if the scheduler is gone.
    """
    from dask.distributed import Event, as_completed, wait

    probe = client.submit(
        study.differs, key=f"{study.name}-differs"
    )  # an adaptive cluster starts workers for tasks
    if not client.nthreads():
        print("waiting for the cluster's first worker", flush=True)
    wait(probe)
    if probe.status == "error":
        why = (str(probe.exception()).splitlines() or [type(probe.exception()).__name__])[0]
        raise InputError(f"the cluster cannot load kdnb, or look at its folders: {why}")
    for worker, why in client.run(study.differs, on_error="return").items():
        if why:
            raise InputError(f"worker {worker} cannot make these runs: {why}")
    names, tasks, failed, state = {f"{run.name}-{study.name}": run.name for run in runs}, {}, {}, {}

    def say(word: str, name: str, more: str = "") -> None:
        state[name] = word
        with shown.external_write_mode():
            print(f"{word:<9} {name}{more}", flush=True)

    def started(event) -> None:
        say("retried" if event[1] in state else "started", event[1])

    def removed(event) -> None:
        """Dask tells of a worker that is gone."""
        for name in (names.get(key) for key in event[1].get("processing-tasks", ())):
            if state.get(name) in ("started", "retried"):
                say("lost", name, f": its worker {event[1]['worker']} is gone")

    with bar(len(runs), "study", "run") as shown:
        client.subscribe_topic(study.name, started)
        client.subscribe_topic("all", removed)
        try:
            for key, run in zip(names, runs, strict=True):
                needs = [tasks[run.teacher_run]] if run.teacher_run in tasks else []
                tasks[run] = client.submit(make, run, study, *needs, key=key)
            for task, told in as_completed(tasks.values(), with_results=True, raise_errors=False):
                if task.cancelled():
                    raise ConnectionError("the scheduler is gone")
                name = names[task.key]
                why, top1, seconds = (
                    told if task.status == "finished" else Outcome(f"{told[0].__name__}: {told[1]}")
                )
                say(
                    *("failed", name, f": {why}")
                    if why
                    else ("finished", name, f": {top1:.2f} %, {seconds:.0f} s")
                )
                failed |= {name: why} if why else {}
                shown.update()
        except KeyboardInterrupt:
            Event(study.name).set()
            running = {key for keys in client.processing().values() for key in keys}
            client.cancel([task for task in tasks.values() if task.key not in running])
            wait([task for task in tasks.values() if task.key in running])
            raise
        finally:
            for topic in (study.name, "all"):
                client.unsubscribe_topic(topic)
    return failed
