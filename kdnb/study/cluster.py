"""A study on a Dask cluster: its tasks in their order, and a line for what happens to each run."""

import contextlib
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec

from tqdm import tqdm

from kdnb.errors import InputError
from kdnb.progress import bar
from kdnb.runs.run import Run
from kdnb.study.fingerprints import Study
from kdnb.study.worker import Outcome, make_run, train_group


@contextlib.contextmanager
def cluster(scheduler: str, jobs: int) -> Iterator:
    """A Dask client of a cluster; prints the address of its dashboard.

    Args:
        scheduler: the address of a running cluster; "" starts one in this process.
        jobs: number of runs side by side in a cluster of this process.

    Raises InputError if there is no such cluster.
    """
    from dask.distributed import Client

    for name in ("asyncio", "distributed.client"):  # they log errors when a cluster is stopped
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        if scheduler:
            client = Client(scheduler)
        else:
            client = Client(
                n_workers=jobs,
                processes=False,
                threads_per_worker=1,
                memory_limit=None,
                dashboard_address="127.0.0.1:0",
                silence_logs=50,
            )
    except (OSError, ValueError) as error:
        subject = f"--scheduler {scheduler}" if scheduler else "a cluster on this machine"
        raise InputError(f"{subject}: {error}") from None
    with client:
        link = client.dashboard_link
        if not scheduler:  # Dask names another host than the one that it listens on
            port = client.scheduler_info()["services"].get("dashboard")
            link = f"http://127.0.0.1:{port}/status"
            if not find_spec("bokeh"):
                link += " (its page needs bokeh: pip install bokeh)"
        print(f"dashboard {link}", flush=True)
        yield client


def run_all(client, groups: Sequence[Sequence[Run]], study: Study) -> dict[str, str]:
    """Train runs on a cluster, a teacher before its students; returns {name: error} of failed runs.

    groups: of one run, or of several that are trained together, teachers before their students.
    Raises InputError if a worker has other code or folders, ConnectionError if the scheduler is
    gone.
    """
    from dask.distributed import CancelledError, Event, as_completed, wait

    check_workers(client, study)
    tasks = {}  # {run: its Dask task}
    group_tasks = []
    names = {}  # {key of a task: the names of its runs}
    failed = {}
    with bar(sum(map(len, groups)), "study", "run") as progress:
        report = Report(names, progress)
        client.subscribe_topic(study.name, report.run_event)
        client.subscribe_topic("all", report.worker_removed)
        try:
            for group in groups:
                teachers = [tasks[run] for run in {group[0].teacher_run} & tasks.keys()]
                arguments = [study, teachers]
                if len(group) > 1:
                    key = f"group-{group[0].name}-{study.name}"
                    names[key] = [run.name for run in group]
                    trained = client.submit(train_group, group, *arguments, key=key)
                    group_tasks.append(trained)
                    arguments.append(trained)
                for run in group:
                    key = f"{run.name}-{study.name}"
                    names[key] = [run.name]
                    tasks[run] = client.submit(make_run, run, *arguments, key=key)
            completed = as_completed(tasks.values(), with_results=True, raise_errors=False)
            for task, result in completed:
                if task.cancelled():
                    raise ConnectionError("the scheduler is gone")
                if task.status == "finished":
                    outcome = result
                else:
                    error_type, error, *_ = result
                    outcome = Outcome(f"{error_type.__name__}: {error}")
                (name,) = names[task.key]
                if outcome.error:
                    failed[name] = outcome.error
                report.run_ended(name, outcome)
        except KeyboardInterrupt:
            Event(study.name).set()
            running = {key for keys in client.processing().values() for key in keys}
            # Not what is finished, either: Dask cancels what depends on a cancelled task.
            futures = [*group_tasks, *tasks.values()]
            waiting = [t for t in futures if t.key not in running and not t.done()]
            client.cancel(waiting)
            with contextlib.suppress(CancelledError):  # one that began just now
                wait([task for task in futures if task.key in running])
            raise
        finally:
            for topic in (study.name, "all"):
                client.unsubscribe_topic(topic)
    return failed


def check_workers(client, study: Study) -> None:
    """Wait for a worker. Raises InputError if one has other code or folders than the study."""
    from dask.distributed import wait

    # An adaptive cluster starts its first worker for a task.
    probe = client.submit(study.mismatch, key=f"{study.name}-mismatch")
    if not client.nthreads():
        print("waiting for the cluster's first worker", flush=True)
    wait(probe)
    if probe.status == "error":
        error = probe.exception()
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"the cluster cannot load kdnb, or look at its folders: {first_line}")
    for worker, mismatch in client.run(study.mismatch, on_error="return").items():
        if mismatch:
            raise InputError(f"worker {worker} cannot make these runs: {mismatch}")


class Report:
    """Prints a line for what happens to each run, above a bar of the finished ones.

    Args:
        names: {key of a Dask task: names of its runs}.
        progress: the bar.
    """

    def __init__(self, names: Mapping[str, Sequence[str]], progress: tqdm):
        self.names = names
        self.progress = progress
        self.states: dict[str, str] = {}  # {name of a run: the last word about it}
        self.says_passive = False  # whether the line on waiting threads has been printed

    def print(self, line: str) -> None:
        with self.progress.external_write_mode():
            print(line, flush=True)

    def set_state(self, word: str, name: str, details: str = "") -> None:
        self.states[name] = word
        self.print(f"{word:<9} {name}{details}")

    def run_event(self, event: tuple) -> None:
        """Handle a message of a task, which Dask sends as (time, message)."""
        _, message = event
        if "epoch" in message:
            accuracy = "" if math.isnan(message["top1"]) else f", test {message['top1']:.1f} %"
            place = f"{message['epoch']}/{message['epochs']}"
            self.print(f"{'epoch':<9} {message['run']}: {place}{accuracy}")
            return
        if message["waits_passively"] and not self.says_passive:
            self.says_passive = True
            self.print("runs side by side: threads wait without spinning")
        name = message["run"]
        if name not in self.states:
            self.set_state("started", name)
        else:
            self.set_state("retried", name, message["reason"] and f": {message['reason']}")

    def worker_removed(self, event: tuple) -> None:
        """Handle Dask's messages on workers; one that is removed names the tasks it was at."""
        _, message = event
        for key in message.get("processing-tasks", ()):
            for name in self.names.get(key, ()):
                if self.states.get(name) in ("started", "retried"):
                    self.set_state("lost", name, f": its worker {message['worker']} is gone")

    def run_ended(self, name: str, outcome: Outcome) -> None:
        if outcome.error:
            self.set_state("failed", name, f": {outcome.error}")
        else:
            details = f": {outcome.top1:.2f} %, {outcome.seconds:.0f} s"
            self.set_state("finished", name, details)
        self.progress.update()
