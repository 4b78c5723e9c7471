"""The parts of a training step are timed, and they add up to a page and a picture."""

import pytest
import torch
from helpers import save_teacher, tiny, tiny_run

from kdnb import LOSSES, Loss, Run
from kdnb.analysis import step_time
from kdnb.analysis.measure import time_alternately
from kdnb.analysis.step_time import StepTimer, method_costs
from kdnb.plots import step_times
from kdnb.training import cuda_graph, step, teacher

NETWORKS = {"student": "wrn_10_1", "teacher": "wrn_16_1"}
SMALL = NETWORKS | {"image_size": 8, "device": "cpu", "precision": "float32"}


@pytest.fixture
def no_download(monkeypatch):
    def fail(network):
        raise AssertionError(f"the ImageNet weights of {network} are loaded")

    monkeypatch.setattr(teacher, "imagenet_model", fail)


@pytest.mark.parametrize("method", ["afd", "none"])
def test_a_step_is_taken_apart(method):
    run = Run(method=method, **SMALL)
    timer = StepTimer(run, repeats=1)
    whole = timer.whole_steps(compiled=False)
    parts = timer.parts()
    floor = timer.floor()
    rates = timer.loader_rates()
    tables = [whole, parts, floor, rates]
    trainings = ["afd", "labels only"] if method == "afd" else ["labels only"]
    assert whole["step"].tolist() == ["reference, float32", "engine, float32"] * len(trainings)
    assert whole["training"].unique().tolist() == floor["training"].tolist() == trainings
    assert whole["speed-up"][::2].tolist() == [1] * len(trainings)
    assert floor["ms"].is_monotonic_decreasing
    teacher_parts = ["teacher", "kd", "afd"] if method == "afd" else []
    assert parts["part"].tolist() == ["batch", "student", *teacher_parts]
    assert parts["share (%)"].sum() == pytest.approx(100)
    assert rates["what"].tolist() == ["training batches", "evaluation"]
    assert all((table.select_dtypes("number") > 0).all(axis=None) for table in tables)
    assert len(step_times(whole, parts, floor, title=timer.name).axes) == 1
    page = timer.page(*tables)
    networks = {"afd": "afd, wrn_16_1 → wrn_10_1", "none": "wrn_10_1"}[method]
    assert page.startswith(f"# A training step: digits, {networks}, 8 px, batch 25, float32, ")
    assert timer.machine in page
    assert page.count("|:--") == 5
    assert timer.name.startswith("speed-digits-") and timer.name.endswith(f"{method}-cpu")


def test_a_loss_that_needs_no_teacher_is_timed_without_one():
    try:

        class Smooth(Loss, name="smooth"):
            needs_teacher = False

            def forward(self, student, teacher, batch):
                return student.logits.float().square().mean()

        timer = StepTimer(Run(method="ce + smooth:0.1", **SMALL), repeats=1)
        assert timer.parts()["part"].tolist() == ["batch", "student", "smooth"]
    finally:
        del LOSSES["smooth"]


def test_candidates_take_turns_and_warm_ups_are_not_counted(monkeypatch):
    calls = []
    ticks = iter(range(1000))
    # Every call takes longer than the one before.
    monkeypatch.setattr("time.perf_counter", lambda: next(ticks) ** 2)
    functions = {name: lambda name=name: calls.append(name) for name in "abc"}
    seconds = time_alternately(functions, torch.device("cpu"), repeats=2)
    assert "".join(calls) == "cbaabccbaabc"
    assert seconds["a"] == ((17**2 - 16**2) + (19**2 - 18**2)) / 2 and len(seconds) == 3


def test_what_a_method_saves_is_counted_also_where_its_steps_are_replayed(monkeypatch):
    runs = {method: Run(method=method, **SMALL) for method in ("none", "kd")}
    eager = method_costs(runs)
    monkeypatch.setattr(cuda_graph, "capture", lambda *_: lambda: None)
    monkeypatch.setattr(step, "GRAPH_DEVICES", ("cpu",))
    replayed = method_costs(runs)
    assert eager["MB saved"].equals(replayed["MB saved"]) and (eager["MB saved"] > 0.1).all()
    assert eager["method"].tolist() == ["none", "kd"] and eager["times"][0] == 1


def test_a_timer_computes_with_the_threads_of_its_run():
    torch.set_num_threads(1)
    timer = StepTimer(Run(method="none", threads=2, **SMALL))
    assert torch.get_num_threads() == 2 and timer.machine.startswith("2 threads, ")


def test_losses_that_a_run_leaves_out_are_not_timed(tmp_path, no_download, monkeypatch):
    """A teacher with ImageNet's classes cannot serve kd in training; no weights are loaded."""
    imagenet = {"teacher": "resnet18", "teacher_weights": "imagenet"}
    run = tiny_run(tmp_path, method="afd", **imagenet)
    timer = StepTimer(run, repeats=1)
    assert timer.left_out == ("kd",)
    assert timer.title.startswith("tiny, afd without kd, resnet18 → wrn_10_1, 8 px")
    assert timer.parts()["part"].tolist() == ["batch", "student", "teacher", "afd"]
    timed = []

    def note(distiller, *arguments):
        timed.append(list(distiller.losses))
        return step.Engine(distiller, *arguments)

    monkeypatch.setattr(step_time, "Engine", note)
    runs = {method: tiny_run(tmp_path, method=method, **imagenet) for method in ("none", "afd")}
    assert method_costs(runs)["method"].tolist() == ["none", "afd"]
    assert timed == [["ce"], ["ce", "afd"]]


@pytest.mark.parametrize(
    ("classes", "left_out"),
    [([f"class {i}" for i in range(4)], ()), (None, ()), (["a", "b", "c"], ("kd",))],
)
def test_a_teacher_from_a_file_serves_the_losses_that_it_serves_in_training(
    tmp_path, classes, left_out
):
    weights = save_teacher(tmp_path / "t.safetensors", classes)
    run = tiny_run(tmp_path, method="afd", teacher_weights=weights)
    assert StepTimer(run, repeats=1).left_out == left_out


def test_losses_of_a_teacher_of_the_same_classes_are_all_timed(tmp_path):
    timer = StepTimer(tiny_run(tmp_path, method="afd"), repeats=1)
    assert timer.left_out == () and "without" not in timer.title
    assert timer.parts()["part"].tolist() == ["batch", "student", "teacher", "kd", "afd"]
