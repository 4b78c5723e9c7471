"""Several runs that are trained in lockstep, in one process."""

import gc
import itertools
import json
import sys
import time
import weakref
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import STEPS, press_stop, quiet, teacher, tiny, tiny_run, weights
from test_cuda_graph import capture_on_tape

from kdnb import LOSSES, InputError, Loss, train, train_together
from kdnb.__main__ import groups, main
from kdnb.runs.checkpoint import load_checkpoint
from kdnb.runs.config import make_config
from kdnb.runs.lock import busy_message
from kdnb.training import cuda_graph, joint_step
from kdnb.training import step as training_step
from kdnb.training.distiller import Distiller
from kdnb.training.loop import Interrupted, Training
from kdnb.training.setup import build_setup
from kdnb.training.step import Engine
from kdnb.training.teacher import load_teacher
from kdnb.training.tracking import TRACKERS, Tracker
from kdnb.training.train import short_names


def equal(run, other) -> bool:
    """Whether two runs have written the same, but for the time they took."""
    rows, other_rows = (each.metrics.drop(columns="seconds") for each in (run, other))
    return weights(run) == weights(other) and rows.equals(other_rows)


def make_runs(outputs, teacher, *changes, **common):
    return [tiny_run(outputs, teacher_weights=teacher, **common | each) for each in changes]


SEEDS = [{"seed": seed} for seed in range(3)]
GROUPS = {
    "seeds": (SEEDS, {"method": "afd"}),
    "methods of one seed": ([{"method": m} for m in ("none", "kd", "afd", "crd")], {}),
    "random losses and two views": (SEEDS[:2], {"method": "ce + crd:0.8(K=16)", "views": 2}),
    "lengths, optimisers and batches": (
        [{"epochs": 2}, {"epochs": 1, "optimizer": "adamw", "lr": 1e-3}, {"batch_size": 32}],
        {"method": "kd", "ema": 0.9},
    ),
    "stored answers": ([{"method": "kd"}, {"method": "kd", "seed": 1}], {"teacher_cache": "on"}),
}


@pytest.mark.parametrize("group", GROUPS)
def test_on_a_cpu_each_run_has_the_bits_that_it_has_alone(group, teacher, tmp_path, monkeypatch):
    monkeypatch.setenv("KDNB_CACHE", str(tmp_path / "cache"))
    changes, common = GROUPS[group]
    common = {"epochs": 2} | common
    together = train_together(make_runs(tmp_path / "together", teacher, *changes, **common), quiet)
    for run, alone in zip(
        together, make_runs(tmp_path / "alone", teacher, *changes, **common), strict=True
    ):
        assert equal(run, train(alone, quiet))
        machines = [each.config["machines"][0].get("together") for each in (run, alone)]
        assert machines == [len(changes), None]


def test_methods_of_one_seed_share_batch_and_teacher(teacher, tmp_path, monkeypatch):
    """Those of other seeds share the teacher, and on a CPU each gets its answer by itself."""
    made, answered = [], []
    original = Distiller.run_teacher

    def counted(self, images):
        answered.append(len(images))
        return original(self, images)

    monkeypatch.setattr(Distiller, "run_teacher", counted)
    finish = sys.modules["kdnb.data.loader"].Loader.finish
    monkeypatch.setattr(
        "kdnb.data.loader.Loader.finish",
        lambda self, part: (self.train and made.append(self)) or finish(self, part),
    )
    methods = ("none", "kd", "afd")
    changes = [{"method": method, "seed": seed} for seed in (0, 1) for method in methods]
    train_together(make_runs(tmp_path, teacher, *changes, epochs=1), quiet)
    assert len(answered) == 2 * STEPS  # not 4 x
    assert len(made) == 2 * STEPS  # not 6 x


def test_teachers_with_equal_weights_stay_apart_in_the_records(teacher, tmp_path):
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(Path(teacher).read_bytes())
    runs = [
        tiny_run(tmp_path / name, method="kd", epochs=1, teacher_weights=file)
        for name, file in {"a": teacher, "b": str(copy)}.items()
    ]
    names = [run.config["teacher"]["weights"] for run in train_together(runs, quiet)]
    assert names == [Path(teacher).name, "copy.safetensors"]


def test_only_batches_of_one_size_and_precision_go_through_a_teacher_together(teacher, tmp_path):
    """On a GPU; it halves an answer to two batches."""
    changes = [{"batch_size": size} for size in (16, 32, 16)] + [{"precision": "bfloat16"}]
    runs = make_runs(tmp_path, teacher, *changes, method="kd")
    model = load_teacher(runs[0])
    setups = [build_setup(run, teacher=model) for run in runs]
    engines = [
        Engine(setup.distiller, run, torch.device("cpu"), False, setup.train)
        for run, setup in zip(runs, setups, strict=True)
    ]
    joint = joint_step.JointStep(engines, [0, 1, 2, 3])
    joint.is_cuda = True
    batches = {i: next(setup.train.epoch()) for i, setup in enumerate(setups)}
    assert joint.groups(batches) == [[0, 2], [1], [3]]
    # Nor is an answer shared that is stored, or whose gradients a loss takes.
    batches[2] = batches[2]._replace(teacher_logits=torch.zeros(16, 4))
    engines[3].distiller.teacher_grad = True
    assert joint.groups(batches) == [[0], [1]]
    joint.is_cuda, engines[0].compiled = False, True  # then its step has the teacher in it
    assert joint.groups(batches) == [[1]]


def test_only_runs_with_as_many_threads_share_an_answer(teacher, tmp_path, monkeypatch):
    """It may depend on the number of threads, in its last bits."""
    original, seen = Distiller.run_teacher, []

    def run_teacher(self, images):
        seen.append(torch.get_num_threads())
        return original(self, images)

    monkeypatch.setattr(Distiller, "run_teacher", run_teacher)
    methods = [("kd", 2), ("afd", 2), ("ce + kd:0.5", 1)]
    changes = [{"method": method, "threads": threads} for method, threads in methods]
    train_together(make_runs(tmp_path, teacher, *changes, epochs=1), quiet)
    assert seen == [2, 1] * STEPS


def test_steps_of_several_runs_are_captured_as_one(teacher, tmp_path, monkeypatch):
    """On a CPU, with a stand-in for the graph."""
    captures = []
    monkeypatch.setattr(
        cuda_graph, "capture", lambda step, pool: captures.append(1) or capture_on_tape(step)
    )
    monkeypatch.setattr(training_step, "GRAPH_DEVICES", ("cpu",))
    changes = [{"method": "afd", "seed": 0}, {"method": "afd", "seed": 1}, {"method": "kd"}]
    common = {"compile": "auto", "epochs": 2}
    together = train_together(make_runs(tmp_path / "a", teacher, *changes, **common), quiet)
    assert captures == [1]  # the last, smaller batch comes only twice
    for run, alone in zip(
        together, make_runs(tmp_path / "b", teacher, *changes, epochs=2), strict=True
    ):
        rows, expected = (
            each.metrics.drop(columns="seconds").to_numpy() for each in (run, train(alone, quiet))
        )
        assert rows == pytest.approx(expected, rel=1e-5)


def test_a_run_that_cannot_be_captured_leaves_the_graphs_to_the_others(tmp_path, monkeypatch):
    captures = []

    def refuse_the_joint_one(step, pool):
        captures.append(1)
        if len(captures) == 1:
            raise RuntimeError("operation not permitted when stream is capturing")
        return step

    monkeypatch.setattr(cuda_graph, "capture", refuse_the_joint_one)
    monkeypatch.setattr(training_step, "GRAPH_DEVICES", ("cpu",))
    runs = make_runs(tmp_path, "", *SEEDS[:2], compile="auto", method="none")
    with pytest.warns(UserWarning, match="not replayed"):
        train_together(runs, quiet)
    assert len(captures) == 3


def test_a_shared_answer_is_split_as_it_was_joined(teacher, tmp_path):
    run = tiny_run(tmp_path, teacher_weights=teacher)
    setup = build_setup(run)
    images = torch.randn(6, 3, 8, 8)
    whole = setup.distiller.run_teacher(images)
    for part, chunk in zip(joint_step.split(whole, 2), images.chunk(2), strict=True):
        expected = setup.distiller.run_teacher(chunk)
        torch.testing.assert_close(tuple(part), tuple(expected))
    assert joint_step.split((whole, whole), 2)[1][0].logits.shape == (3, 4)


@pytest.fixture
def changing():
    """A loss that changes the teacher's answer in place, and one that changes the batch."""

    class ChangesAnswer(Loss, name="changes_answer"):
        def forward(self, student, teacher, batch):
            return (student.logits - teacher.logits.mul_(0.5)).square().mean()

    class ChangesBatch(Loss, name="changes_batch"):
        def forward(self, student, teacher, batch):
            batch.index.zero_()
            batch.labels.zero_()
            return student.logits.square().mean()

    yield
    del LOSSES["changes_answer"], LOSSES["changes_batch"]


# RandAugment: then the inputs of a step are the batch itself.
@pytest.mark.parametrize("augment", ["", "randaugment"])
def test_what_a_loss_changes_in_place_is_not_shared(
    changing, augment, teacher, tmp_path, monkeypatch
):
    methods = ["ce + changes_answer", "changes_batch", "kd", "ce + crd:0.8(K=16)"]
    changes = [{"method": method} for method in methods]
    common = {"epochs": 1, "augment": augment}
    answered = []
    with monkeypatch.context() as patch:
        original = Distiller.run_teacher
        patch.setattr(Distiller, "run_teacher", lambda *each: answered.append(1) or original(*each))
        together = train_together(make_runs(tmp_path / "a", teacher, *changes, **common), quiet)
    # After the two steps in which this was noticed, the last two runs share an answer again.
    assert len(answered) == 2 * 4 + (STEPS - 2) * 3
    alone = make_runs(tmp_path / "b", teacher, *changes, **common)
    assert all(equal(run, train(other, quiet)) for run, other in zip(together, alone, strict=True))


@pytest.fixture
def drawn():
    """What a loss draws from torch's global generator, in the order of the steps."""
    numbers = []

    class Draws(Loss, name="draws"):
        needs_teacher = False

        def forward(self, student, teacher, batch):
            numbers.append(torch.rand(()).item())
            return student.logits.square().mean()

    yield numbers
    del LOSSES["draws"]


def test_each_run_draws_the_random_numbers_that_it_draws_alone(drawn, tmp_path):
    changes = [{"method": "draws", "seed": seed, "epochs": 1} for seed in (0, 1)]
    runs = make_runs(tmp_path / "a", "", *changes)
    train_together(runs, quiet, time.monotonic())  # a step, and a checkpoint
    train_together(runs, quiet)
    together = drawn.copy()
    drawn.clear()
    for run in make_runs(tmp_path / "b", "", *changes):
        train(run, quiet)
    assert drawn == together[::2] + together[1::2]
    assert len({*drawn}) == 2 * STEPS


@pytest.fixture
def failing():
    """A loss that fails in the third step of a run; how, its option says."""

    class Failing(Loss, name="failing"):
        needs_teacher = False

        def __init__(self, *examples, T: float = 1.0):
            super().__init__()
            self.T = T
            self.count = 0

        def forward(self, student, teacher, batch):
            self.count += 1
            if self.count == 8:
                if self.T == 2:
                    raise ValueError("a bug")
                if self.T == 3:
                    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")
                return student.logits.sum() * float("nan")
            return student.logits.sum() * 0

    yield
    del LOSSES["failing"]


def test_a_run_that_fails_leaves_the_others_going(failing, teacher, tmp_path):
    methods = ["ce + failing(T=2)", "none", "ce + failing(T=3)", "ce + failing"]
    runs = make_runs(tmp_path / "a", teacher, *({"method": method} for method in methods))
    lines = []
    bug, done, memory, nonfinite = train_together(runs, lines.append)
    assert [line.partition(": ")[::2] for line in lines if "failed" in line] == [
        (runs[0].label, "failed: ValueError: a bug"),
        (runs[2].label, f"failed: {memory}"),
        (runs[3].label, f"failed: {nonfinite}"),
    ]
    assert isinstance(bug, ValueError)
    assert isinstance(memory, InputError) and "out of memory" in str(memory)
    assert "no longer finite in epoch 2, step 3" in str(nonfinite)
    assert equal(done, train(tiny_run(tmp_path / "b", method="none"), quiet))
    assert not any(busy_message(run.folder) for run in runs)
    assert load_checkpoint(runs[0].folder)["epoch"] == 1


def test_a_teacher_that_fails_is_an_error_of_the_runs_that_have_it(teacher, tmp_path, monkeypatch):
    original, count = Distiller.run_teacher, itertools.count()

    def run_teacher(self, images):
        if next(count) >= 3:
            raise ValueError
        return original(self, images)

    monkeypatch.setattr(Distiller, "run_teacher", run_teacher)
    runs = make_runs(tmp_path, teacher, *({"method": m} for m in ("kd", "afd", "none")), epochs=1)
    with pytest.warns(UserWarning, match="share nothing any more: ValueError"):
        kd, afd, none = train_together(runs, quiet)
    assert isinstance(kd, ValueError) and isinstance(afd, ValueError) and none.done


def test_what_fails_only_together_is_tried_once(tmp_path, monkeypatch):
    calls = []

    def run_teachers(*_):
        calls.append(1)
        raise ValueError

    monkeypatch.setattr(joint_step.JointStep, "run_teachers", run_teachers)
    runs = make_runs(tmp_path, "", *SEEDS[:2], method="none", epochs=1)
    with pytest.warns(UserWarning, match="share nothing any more: ValueError"):
        assert train_together(runs, quiet) == runs
    assert calls == [1] and all(run.done for run in runs)


class FailingTracker(Tracker):
    """The tracker of seed 1 cannot be closed, that of seed 2 cannot write its second epoch."""

    def epoch(self, row):
        if self.run.seed == 2 and row["epoch"] == 2:
            raise OSError("no space left on device")

    def close(self):
        if self.run.seed == 1:
            raise OSError("no space left on device")


@pytest.fixture
def references(monkeypatch):
    """Weak references to engines by seed. Seed 1 fails in the first step of its second epoch.

    A training refers to its engine: it is gone if that is.
    """
    references, trainings = {}, {}
    original_init, original_step = Training.__init__, Engine.step

    def init(self, run, *others):
        original_init(self, run, *others)
        references[run.seed] = weakref.ref(self.engine)
        trainings[run.seed] = weakref.ref(self)

    def step(self, *arguments):
        failing = trainings[1]() if 1 in trainings else None
        if failing and failing.engine is self and failing.epoch:
            raise ValueError("a bug")
        original_step(self, *arguments)

    monkeypatch.setattr(Training, "__init__", init)
    monkeypatch.setattr(Engine, "step", step)
    gc.disable()
    yield references
    gc.enable()


def test_runs_that_have_ended_leave_memory_while_others_go_on(references, tmp_path, monkeypatch):
    monkeypatch.setitem(TRACKERS, "", FailingTracker)
    changes = [*SEEDS, {"seed": 3, "epochs": 1}]
    alive = []

    def look(line):
        if "epoch 3/3" in line:
            alive.extend(seed for seed, reference in references.items() if reference())

    done, bug, full, short = train_together(make_runs(tmp_path, "", *changes, method="none"), look)
    assert done.done and short.done and isinstance(bug, ValueError)
    assert "no space left" in str(full)
    assert alive == [0]


def test_a_run_that_failed_leaves_memory_with_its_error(references, tmp_path):
    with suppress(ValueError):
        train(tiny_run(tmp_path, method="none", seed=1), quiet)
    assert references[1]() is None


def test_a_plugin_may_be_edited_while_several_runs_train(registries, tmp_path):
    plugin = tmp_path / "mine.py"
    plugin.write_text(
        "from kdnb import Loss\n\nclass Mine(Loss, name='mine'):\n    needs_teacher = False\n"
        "    def forward(self, student, teacher, batch): return student.logits.square().mean()\n"
    )
    common = {"method": "ce + mine:0.1", "plugins": str(plugin), "epochs": 2}
    runs = make_runs(tmp_path, "", *SEEDS[:2], **common)
    outcomes = train_together(runs, lambda line: plugin.write_text("class Mine("))
    assert not any(isinstance(each, Exception) for each in outcomes)


def test_settings_of_torch_are_as_before(tmp_path, monkeypatch):
    def settings():
        rng = torch.get_rng_state().tolist()
        return torch.get_num_threads(), torch.backends.cudnn.benchmark, rng

    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    before = settings()
    threads = before[0] % 2 + 1
    train_together(make_runs(tmp_path, "", *SEEDS[:2], threads=threads, method="none"), quiet)
    assert settings() == before


def test_a_run_that_comes_twice_is_trained_once(tmp_path):
    run = tiny_run(tmp_path, method="none", epochs=1)
    done, refused = train_together([run, run], quiet)
    assert done.done and "is being trained by this process already" in str(refused)


def test_what_cannot_begin_leaves_the_others_going(teacher, tmp_path):
    small = {"train_limit": 71}
    runs = make_runs(tmp_path, teacher, small, {"method": "none", "epochs": 1})
    refused, done = train_together(runs, quiet)
    assert "train_limit is 71" in str(refused)
    assert "together" not in done.config["machines"][0]  # it was alone
    assert done.done and train_together(runs[1:], quiet) == [done]


def test_the_folder_of_a_run_that_has_ended_is_free_while_others_go_on(tmp_path):
    changes = [*SEEDS[:2], {"seed": 2, "epochs": 2}]
    runs = make_runs(tmp_path, "", *changes, **{"method": "none", "epochs": 1})
    runs[0].folder.mkdir(parents=True)
    other = make_config(runs[0].with_changes(lr=1.0))
    (runs[0].folder / "config.json").write_text(json.dumps(other))
    busy = []

    def look(line):
        if "epoch 2/2" in line:
            busy.extend(bool(busy_message(run.folder)) for run in runs)

    assert "holds another run" in str(train_together(runs, look)[0])
    assert busy == [False, False, True]


def test_a_stop_while_a_teacher_is_trained_leaves_what_is_finished(tmp_path):
    finished = train(tiny_run(tmp_path, method="none", epochs=1), quiet)
    outcomes = train_together([finished, tiny_run(tmp_path, method="kd")], quiet, time.monotonic())
    assert outcomes[0] == finished and isinstance(outcomes[1], Interrupted)


def test_one_stop_is_for_all_and_each_goes_on_alone(teacher, tmp_path):
    runs = make_runs(tmp_path / "a", teacher, *SEEDS[:2])
    lines = []

    def stop_in_the_second_epoch(line):
        lines.append(line)
        if "epoch 1/3" in line and "seed 1" in line:
            press_stop()

    outcomes = train_together(runs, stop_in_the_second_epoch)
    for run, stopped in zip(runs, outcomes, strict=True):
        assert isinstance(stopped, Interrupted) and "epoch 2" in str(stopped)
        assert load_checkpoint(run.folder)["epoch"] == 1
    assert lines[-1].startswith("seed 1: epoch 1/3")
    for run, alone in zip(runs, make_runs(tmp_path / "b", teacher, *SEEDS[:2]), strict=True):
        assert equal(train(run, quiet), train(alone, quiet))


def test_a_second_interrupt_stops_at_once_and_closes_all(tmp_path, monkeypatch):
    closed = []

    class ClosedTracker(Tracker):
        def close(self):
            closed.append((self.run.seed, bool(busy_message(self.run.folder))))

    def stop_twice(line):
        if "seed 1: epoch 1" in line:
            press_stop()
            press_stop()

    monkeypatch.setitem(TRACKERS, "", ClosedTracker)
    runs = make_runs(tmp_path, "", *SEEDS[:2], method="none")
    with pytest.raises(KeyboardInterrupt):
        train_together(runs, stop_twice)
    assert sorted(closed) == [(0, True), (1, True)]  # while their folders are locked
    assert not any(busy_message(run.folder) for run in runs)


def test_runs_at_different_places_go_on_together(teacher, tmp_path):
    runs = make_runs(tmp_path / "a", teacher, {"method": "kd"}, {"method": "afd"})
    with pytest.raises(Interrupted):
        train(runs[1], quiet, deadline=0)  # after one step
    together = train_together(runs, quiet)
    alone = make_runs(tmp_path / "b", teacher, {"method": "kd"}, {"method": "afd"})
    assert all(equal(run, train(other, quiet)) for run, other in zip(together, alone, strict=True))


def test_the_command_trains_groups_and_tells_which_run_failed(tmp_path, capsys, teacher):
    arguments = ["-p", "dataset", "tiny", "-p", "outputs", str(tmp_path), "-p", "method", "none"]
    arguments += ["-p", "device", "cpu", "-p", "compile", "off", "-p", "epochs", "1"]
    two = ["-p", "seed", "[0, 1]", "--together", "2"]
    assert main([*arguments, *two, "-p", "train_limit", "[0, 71]"]) == 2
    errors = capsys.readouterr()[1]
    assert errors.count("failed: ") == 2 and "train_limit is 71" in errors
    assert main([*arguments, *two]) == 0
    assert capsys.readouterr()[0].count("finished before") == 2
    more = ["-p", "seed", "[0, 1, 2, 3]", "--together", "3", "--minutes", "0"]
    assert main([*arguments, *more]) == 3
    finished = [*tmp_path.glob("runs/*/result.json")]
    begun = [*tmp_path.glob("runs/*/checkpoint")]
    assert len(finished) == 2 and len(begun) == 2
    with pytest.raises(SystemExit):
        main([*arguments, "--together", "0"])
    assert "0 is not between 1 and 10,000" in capsys.readouterr()[1]


def test_finished_runs_do_not_take_a_place_in_a_group(teacher, tmp_path):
    runs = make_runs(tmp_path, teacher, *SEEDS, method="none", epochs=1)
    train(runs[1], quiet)
    assert groups(runs, 2) == [[runs[1]], [runs[0], runs[2]]]
    assert groups([replace(run, rerun=True) for run in runs], 3) == [runs]


def test_lines_begin_with_what_tells_the_runs_apart(teacher, tmp_path):
    changes = [{"method": method, "seed": seed} for method in ("none", "kd") for seed in (0, 1)]
    runs = make_runs(tmp_path, teacher, *changes)
    assert short_names(runs) == ["none, seed 0", "none, seed 1", "kd, seed 0", "kd, seed 1"]
    assert short_names(runs[:2]) == ["seed 0", "seed 1"]
    assert short_names(runs[::2]) == ["none", "kd"]
    others = make_runs(tmp_path, teacher, {"epochs": 1}, {"epochs": 2})
    assert short_names(others) == [run.name for run in others]


def test_a_deadline_lets_each_run_take_a_step(teacher, tmp_path):
    runs = make_runs(tmp_path, teacher, *SEEDS[:2], method="none")
    for step in (1, 2):
        outcomes = train_together(runs, quiet, time.monotonic())
        assert [f"after step {step} of epoch 1" in str(each) for each in outcomes] == [True, True]
