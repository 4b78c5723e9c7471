import shutil
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest
from conftest import image_set, picture
from helpers import edit, quiet, save_teacher, tiny, tiny_run

from kdnb import DATASETS, InputError, Run, grid, load_data, load_images, paths, train
from kdnb.runs.grid import plan_study
from kdnb.training import setup as prepare

OFFICIAL = {"epochs": 240, "batch_size": 64, "lr": 0.05, "image_size": 32, "train_limit": -1}
OTHER_TEACHERS = (
    {"teacher_seed": 1},
    {"teacher_epochs": 2},
    {"image_size": 16},
    {"teacher_weights": "none"},
)
CELL = 'dataset: str = "digits"  # which\nepochs: int = 0\n'


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory):
    """A run, its teacher and its baseline, whose parameters are not the preset's."""
    run = tiny_run(
        tmp_path_factory.mktemp("outputs"),
        teacher="wrn_10_1",
        seed=1,
        epochs=1,
        method="ce + afd:9",
    )
    train(run.baseline, log=quiet)
    return train(run, log=quiet)


def teacher_file(folder, content, name="student.safetensors"):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)
    return str(folder / name)


@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        (
            {"dataset": "mnist"},
            "unknown dataset 'mnist': choose one of cifar100, digits, folder, imagenet, s",
        ),
        ({"student": "vgg12"}, "unknown model 'vgg12'"),
        ({"method": ""}, "unknown method ''"),
        ({"device": "tpu"}, "unknown device 'tpu'"),
        ({"precision": "int8"}, "unknown precision 'int8'"),
        ({"compile": "maybe"}, "unknown compile 'maybe'"),
        ({"epochs": -1}, "epochs is -1: it must be 0 or more"),
        ({"train_limit": -2}, "train_limit is -2: it must be -1 or more"),
        ({"epochs": "2.5"}, "epochs is '2.5': it must be a whole number"),
        ({"epochs": True}, "epochs is True: it must be a whole number"),
        ({"validation": 1.0}, "validation is 1.0: it must be a share below 1"),
        ({"lr": float("nan")}, "lr is nan: it must be a finite number"),
        ({"lr": 10**400}, "00: it must be a finite number"),
        ({"seed": 2**64}, "seed is 18446744073709551616: it must be a whole number (below 2^63)"),
        ({"device": "cpu:"}, "device 'cpu:' is not on this machine: choose auto, cpu"),
        ({"skip_damaged": 1}, "skip_damaged is 1: it must be True or False"),
        ({"dataset": 100}, "dataset is 100: it must be text"),
        ({"batch_size": 1}, "batch_size is 1"),
        (
            {"teacher_weights": "nowhere.pth"},
            "teacher_weights 'nowhere.pth': no such file; 'none' trains a teacher",
        ),
        (
            {"student_weights": "nowhere.pth"},
            "student_weights 'nowhere.pth': no such file; 'none' starts from random weights",
        ),
        (
            {"student_weights": "imagenet"},
            "no ImageNet weights for wrn_16_1: set student_weights to a file",
        ),
        (
            {"dataset": "cifar100", "image_size": 64},
            "image_size is 64: for these images it has to be 32",
        ),
        (
            {"dataset": "stanford40", "method": "kd"},
            "kd compares predictions, and this teacher knows other classes",
        ),
        (
            {"dataset": "stanford40", "teacher": "wrn_40_2"},
            "no ImageNet weights for wrn_40_2: set teacher_weights",
        ),
        (
            {"teacher": "wrn_16_1", "teacher_weights": "imagenet"},
            "no ImageNet weights for wrn_16_1",
        ),
        (
            {"dataset": "stanford40", "teacher_epochs": 30},
            "teacher_seed and teacher_epochs apply to a teacher that",
        ),
        ({"method": "none", "teacher": "wrn40"}, "unknown model 'wrn40'"),
        ({"student": "wrn_016_2"}, "unknown model 'wrn_016_2'"),
    ],
)
def test_impossible_parameters_get_a_sentence(parameters, sentence):
    with pytest.raises(InputError) as error:
        Run(**parameters)
    assert sentence in str(error.value)
    assert error.value._render_traceback_() == [f"InputError: {error.value}"]


def test_the_preset_stands_where_parameters_are_empty():
    run = Run(dataset="cifar100")
    assert run.identity.items() >= OFFICIAL.items()
    assert not run.overrides
    assert (run.student, run.teacher, run.method, run.label) == (
        "wrn_16_2",
        "wrn_40_2",
        "ce + kd:0.9 + afd:200",
        "afd",
    )
    own = Run(dataset="tiny")  # which weighs AFD otherwise
    assert own.method == "ce + kd:0.9 + afd:20"
    assert own.label == "afd"
    assert {"epochs", "method", "device"} <= set(run.summary().index)
    assert Run(lr=1).lr == 1.0
    assert type(Run(lr=1).lr) is float
    assert {type(default) for default in Run.parameters().values()} == {str, int, float, bool}
    assert Run().output_folder == Path(__file__).parents[2] / "outputs"
    assert str(Run(outputs="x").output_folder) == "x"


def test_the_summary_has_what_a_teacher_of_other_classes_can_teach(tmp_path):
    """Otherwise the notebooks show losses that are left out in training."""

    def method(dataset, path):
        run = Run(dataset=dataset, teacher="wrn_16_1", teacher_weights=path)
        return run.summary().loc["method", "value"]

    three, ten = (
        save_teacher(tmp_path / f"{n}.safetensors", [f"class {i}" for i in range(n)])
        for n in (3, 10)
    )
    nameless = save_teacher(tmp_path / "nameless.safetensors", None)
    assert "kd" not in method("digits", three) and "afd" in method("digits", three)
    for dataset, path in (("digits", ten), ("digits", nameless), ("tiny", three)):
        assert "kd" in method(dataset, path)  # they may be the same: known with the images
    with pytest.raises(InputError, match="kd compares predictions"):
        Run(method="ce + kd:3", teacher="wrn_16_1", teacher_weights=three)


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        (
            {"student": "wrn16x2", "teacher": "wrn40x2"},
            {"student": "wrn_16_2", "teacher": "wrn_40_2"},
            True,
        ),
        ({"method": "afd:20+kd:.9+ce"}, {"method": "afd"}, True),
        ({"teacher_weights": "none"}, {"teacher_weights": ""}, True),
        (
            {"teacher_weights": None},
            {"teacher_weights": "none"},
            True,
        ),  # as papermill hands it over
        ({"student_weights": None}, {}, True),
        (
            {"device": "cpu", "compile": "on", "threads": 2, "outputs": "x"},
            {"data_root": "y"},
            True,
        ),
        ({"method": "none", "teacher": "wrn_16_1", "teacher_seed": 3}, {"method": "none"}, True),
        ({"epochs": 3, "lr": 0.02, "student": "wrn_10_1"}, {}, True),  # the preset's
        ({"teacher_seed": 1}, {}, False),
        ({"lr": 0.01}, {}, False),
        ({"precision": "bfloat16"}, {}, False),
        ({"dataset": "stanford40", "teacher_weights": "none"}, {"dataset": "stanford40"}, False),
        ({"dataset": "stanford40", "teacher_weights": "imagenet"}, {"dataset": "stanford40"}, True),
    ],
)
def test_two_spellings_of_one_training_are_equal(tmp_path, one, other, equal):
    runs = [
        Run(**{"dataset": "tiny", "outputs": str(tmp_path), "precision": "float32"} | p)
        for p in (one, other)
    ]
    assert (
        (runs[0] == runs[1])
        == (hash(runs[0]) == hash(runs[1]))
        == (runs[0].name == runs[1].name)
        == equal
    )


def test_names_say_what_is_not_as_the_preset_has_it(tmp_path):
    run = Run(
        dataset="cifar100", epochs=5, lr=0.1, student="wrn_16_1", seed=3, outputs=str(tmp_path)
    )
    assert run.overrides == {"epochs": [5, 240], "lr": [0.1, 0.05]}
    start, digest = run.name.rsplit("-", 1)
    assert start == "cifar100-wrn_16_1-afd-from=wrn_40_2-epochs=5-lr=0.1-seed=3"
    assert int(digest, 16) < 16**6
    assert run.folder == tmp_path / "runs" / run.name
    assert not run.done
    assert run.baseline.name.startswith("cifar100-wrn_16_1-none-epochs=5-lr=0.1-seed=3-")
    long = [
        replace(run, method=f"ce + kd:{'2' * 90} + afd:{'3' * 90}", seed=seed) for seed in (0, 1)
    ]
    assert max(len(run.name) for run in long) < 240
    assert long[0].name != long[1].name
    assert not long[0].done


def test_a_validation_split_is_the_teachers_too(tmp_path):
    (tmp_path / "teachers").mkdir()
    (tmp_path / "teachers/wrn_16_1-tiny.safetensors").touch()  # has seen all training images
    run = Run(dataset="tiny", validation=0.25, outputs=str(tmp_path))
    assert run.teacher_run.validation == run.baseline.validation == 0.25
    assert run.overrides == {"validation": [0.25, 0.0]}
    assert "-validation=0.25-" in run.name
    train_images, test_images = prepare.load_images(run)
    # 5 of each of four classes, of 18, 18, 17 and 17.
    assert (len(train_images), len(test_images)) == (50, 20)


def test_a_field_that_is_added_later_orphans_no_run(finished, tmp_path):
    @dataclass(frozen=True)
    class Later(Run):
        dropout: float = 0.0

    assert Later(seed=2).name == Run(seed=2).name != Later(seed=2, dropout=0.5).name
    folder = shutil.copytree(finished.folder, tmp_path / "runs" / finished.name)
    old = {
        name: value
        for name, value in finished.config["run"].items()
        if name not in ("skip_damaged", "train_limit")
    }
    edit(folder / "config.json", run=old)  # as before these were fields
    opened = Later.open(folder)
    assert opened.identity == finished.identity | {"dropout": 0.0}
    assert train(opened, quiet).result["top1"] == finished.result["top1"]
    edit(folder / "config.json", run=old | {"colour": 1})
    with pytest.raises(InputError, match="comes from another version of kdnb: unknown are colour"):
        Run.open(folder)


def test_two_folders_of_one_name_are_two_data_sets(tmp_path, cache_folder):
    for place, width in (("a", 40), ("b", 60), ("c", 40)):
        for split in ("train", "valid"):
            for label in ("cat", "dog"):
                folder = tmp_path / place / "photos" / split / label
                folder.mkdir(parents=True)
                picture(width, 30, seed=len(label)).save(folder / "1.png")
    a, b, c = (Run(dataset="folder", data_root=str(tmp_path / place / "photos")) for place in "abc")
    assert len(a.data_hash) == 8
    assert a != b
    assert a.name != b.name
    assert a == c
    assert load_data("folder", a.data_root, 32)[0].classes == ("cat", "dog")


def test_a_teacher_counts_by_the_bytes_of_its_file(tmp_path, monkeypatch):
    one, two = (teacher_file(tmp_path / name, name.encode()) for name in ("one", "two"))
    copy = teacher_file(tmp_path / "copy", b"one", "renamed.safetensors")
    of = partial(Run, dataset="tiny", outputs=str(tmp_path))
    runs = [of(teacher_weights=path) for path in (one, two, copy, str(tmp_path / "one"))]
    assert runs[0] != runs[1]
    assert runs[0].folder != runs[1].folder
    assert runs[0] == runs[2] == runs[3]
    assert runs[3].teacher_weights == one
    assert runs[0].teacher_run is None
    assert of().teacher_weights_hash == "trained"
    short_teacher = teacher_file(tmp_path / "teachers", b"one", "wrn_16_1-tiny.safetensors")
    assert of() == runs[0]
    assert of().teacher_weights == short_teacher
    # There is no such teacher.
    assert {of(**fields).teacher_weights_hash for fields in OTHER_TEACHERS} == {"trained"}
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(paths, "project_root", lambda: tmp_path)
    assert of(teacher_weights="~/two/student.safetensors") == of(teacher_weights="two") == runs[1]
    teacher_file(tmp_path / "two", b"other")
    assert of(teacher_weights="two") != runs[1]


def test_a_sweep_keeps_one_teacher(tmp_path):
    of = {"dataset": "digits", "outputs": str(tmp_path)}
    sweep = grid(**of, lr=[0.1, 0.2], batch_size=[16, 32]) + grid(
        **of, epochs=[2, 3], train_limit=[100, -1], seed=4
    )
    assert len(sweep) == 8
    preset, (teacher,) = sweep[0].preset, {run.teacher_run for run in sweep}
    assert teacher == Run(**of, student=preset.teacher, method="none")
    assert teacher.teacher_run is None
    assert teacher.identity.items() >= preset.defaults(preset.teacher, teacher=True).items()
    assert teacher.train_limit == -1
    assert Run(**of, teacher_epochs=2).teacher_run.epochs == 2
    assert Run(**of, teacher_seed=5).teacher_run.seed == 5
    assert {run.baseline for run in grid(**of, method=["afd", "kd"], teacher_seed=[0, 1])} == {
        Run(**of, method="none")
    }


def test_a_grid_has_each_run_once():
    runs = grid(dataset="tiny", method=["none", "kd"], teacher_seed=(0, 1), seed=range(2))
    assert len(runs) == len(set(runs)) == 6
    assert runs[0] == Run(dataset="tiny", method="none")
    assert grid() == [Run()]
    with pytest.raises(InputError, match="seed is an empty list: it must have a value or more"):
        grid(seed=[])
    with pytest.raises(InputError, match="unknown parameter 'sead': choose one of augment, batch"):
        grid(sead=[1])


def test_none_beside_a_method_with_a_teacher_is_its_baseline():
    """Also where the student is the network that usually teaches, and is then trained by another
    recipe."""
    pair = {"student": "wrn_16_2", "teacher": "wrn_40_2"}
    for more in (pair, {"student": "wrn_16_2"}):
        runs = grid(method=["none", "kd"], seed=[0, 1], **more)
        assert [run.label for run in runs] == ["none", "none", "kd", "kd"]
        assert runs[:2] == [run.baseline for run in runs[2:]]
        assert runs[0].epochs == runs[2].epochs
        assert grid(method="none", **more)[0].epochs != runs[0].epochs
    planned = plan_study(["digits"], ["none", "kd"], (pair,), seed=[0])
    assert [run.baseline for run in planned if run.teacher] == planned[1:2]
    assert planned[0] == planned[2].teacher_run


def test_a_grid_looks_into_what_its_seeds_share_once(monkeypatch):
    made, init = [], Run.__post_init__
    monkeypatch.setattr(Run, "__post_init__", lambda run: made.append(run) or init(run))
    runs = grid(method=["none", "kd", "afd"], seed=range(100))
    assert len(runs) == 300
    assert len({run.name for run in runs}) == 300
    assert len({id(run.teacher_run) for run in runs}) == 3
    assert len(made) == 5
    monkeypatch.undo()
    assert runs[142] == Run(method="kd", seed=42)
    assert runs[142].name == Run(method="kd", seed=42).name
    with pytest.raises(InputError, match=r"seed is 1\.5: it must be a whole number"):
        grid(seed=[0, 1.5])


def test_a_run_is_opened_by_its_folder_or_name(finished, tmp_path, monkeypatch):
    for name in ("load_data", "create_model", "load_teacher"):
        monkeypatch.setattr(prepare, name, None)
    shutil.copytree(finished.output_folder / "runs", tmp_path / "runs")
    before = len(list(tmp_path.rglob("*")))
    by_path, by_name = (
        Run.open(tmp_path / "runs" / finished.name),
        Run.open(finished.name, outputs=str(tmp_path)),
    )
    assert by_path == by_name == finished
    assert by_path.result == train(by_path, quiet).result == finished.result
    assert by_path.folder == by_name.folder == tmp_path / "runs" / finished.name != finished.folder
    assert by_path.baseline.done
    assert by_path.baseline.folder.parent == tmp_path / "runs"
    assert by_path.teacher_run.done
    assert by_path.baseline == finished.baseline
    monkeypatch.chdir(tmp_path / "runs")
    assert Run.open(finished.name).history["afd.links"].shape == (1, 3, 3)
    (tmp_path / "runs").rename(tmp_path / "records")  # a record is found by its name, too
    assert Run.open(finished.name, outputs=str(tmp_path)).result == finished.result
    assert before == len(list(tmp_path.rglob("*")))  # nothing was written
    with pytest.raises(InputError, match=r"run 'nowhere': no folder with config.json, nor in"):
        Run.open("nowhere")


def test_a_run_is_found_before_its_record(finished, tmp_path):
    """By its name, where both folders are there: a record lacks weights."""
    for place in ("runs", "records"):
        shutil.copytree(finished.folder, tmp_path / place / finished.name)
    opened = Run.open(finished.name, outputs=str(tmp_path))
    assert opened.folder == tmp_path / "runs" / finished.name


def test_a_run_hands_skip_damaged_to_its_data_set(monkeypatch):
    """Each data set decides what is damaged; a run only asks for it."""
    asked = []

    def load(root, size, *, skip_damaged):
        asked.append(skip_damaged)
        return image_set(40, size), image_set(20, size)

    monkeypatch.setitem(DATASETS, "tiny", DATASETS["tiny"]._replace(load=load))
    for skip_damaged in (True, False):
        load_images(Run(dataset="tiny", skip_damaged=skip_damaged))
    assert asked == [True, False]


def test_a_run_of_another_machine_is_opened_and_equal(finished, tmp_path):
    folder = shutil.copytree(finished.folder, tmp_path / "runs" / "renamed")
    machine = finished.config["machines"][0] | {
        "device_type": "cuda",
        "compile": True,
        "threads": 64,
    }
    edit(
        folder / "config.json",
        machines=[machine],
        where={"teacher_weights": "none", "data_root": "/gone"},
    )
    opened = Run.open(folder)
    assert opened == finished
    assert opened.result["top1"] == finished.result["top1"]
    assert train(opened, quiet) == finished
    edit(folder / "config.json", run=finished.config["run"] | {"precision": "bfloat16"})
    assert Run.open(folder) != finished
    assert Run.open(folder).baseline != finished.baseline


@pytest.mark.parametrize(
    ("cells", "wrong"),
    [
        ([CELL + "epohcs: int = 5"], "epohcs"),
        ([CELL + "epohcs = 5"], "epohcs"),  # without its type
        ([CELL, "# Parameters\nepohcs = 5\nlr = 0.5\n"], "epohcs"),  # papermill's cell
        ([CELL, CELL + "epohcs = 5"], "epohcs"),
        ([CELL + "epohcs = 5", CELL + "epochs = 5"], None),  # corrected and run again
        (
            [CELL, "# Parameters\nepochs = 5\n", "x = 3\ny: int = 4", "%matplotlib inline"],
            None,
        ),  # a reader's own
    ],
)
def test_misspelt_parameters_are_named(cells, wrong):
    namespace = {"In": ["", *cells], "dataset": "digits", "epochs": 5, "epohcs": 5, "x": 3}
    refused = pytest.raises(
        InputError, match=f"unknown parameter '{wrong}': choose from dataset, student, student_w"
    )
    with refused if wrong else nullcontext():
        assert Run.from_notebook(namespace) == Run(epochs=5)
