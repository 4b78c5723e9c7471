"""kdnb.training.setup: teachers, initial weights, and what is refused before anything trains."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import TINY, edit, quiet, save_teacher, tiny, tiny_run

from kdnb import InputError, Run, create_model, train
from kdnb.data import DATASETS
from kdnb.models import base, load_weights
from kdnb.training.setup import (
    build_setup,
    check_tensors_are_separate,
    evaluation_batch_size,
    holds_data,
    load_images,
)

CLASSES = [f"class {i}" for i in range(4)]


def test_a_student_starts_from_its_seed_whatever_teaches_it(tmp_path):
    run = tiny_run(tmp_path, teacher_weights=save_teacher(tmp_path / "t.safetensors", CLASSES))
    distilled, alone, other_seed = (
        build_setup(each).distiller.student.state_dict()
        for each in (run, run.baseline, replace(run, seed=4))
    )
    assert all(torch.equal(value, alone[name]) for name, value in distilled.items())
    assert not torch.equal(distilled["conv1.weight"], other_seed["conv1.weight"])


@pytest.mark.parametrize(
    ("data_on_device", "free", "is_held"),
    [("auto", 55_000, True), ("auto", 40_000, False), ("yes", 0, True), ("no", 10**9, False)],
)
def test_images_are_held_by_a_gpu_if_they_take_half_of_its_free_memory(
    tmp_path, monkeypatch, data_on_device, free, is_held
):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 10**9))
    run = tiny_run(tmp_path, data_on_device=data_on_device)
    images = load_images(run)  # 110 of 3 x 8 x 8 bytes
    assert holds_data(run, torch.device("cuda"), *images) == is_held
    assert holds_data(run, torch.device("cpu"), *images)
    with pytest.raises(InputError, match=r"data_on_device 'disk'.*auto, no, yes"):
        tiny_run(tmp_path, data_on_device="disk")


@pytest.mark.parametrize(
    ("free", "size", "images"),
    [(20e9, 32, 2048), (10e9, 32, 512), (1e9, 32, 512), (20e9, 224, 250), (10e9, 8, 8192)],
)
def test_a_gpu_tests_on_as_many_images_at_once_as_it_has_memory_for(
    tmp_path, monkeypatch, free, size, images
):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 10**11))
    run = tiny_run(tmp_path, image_size=size)
    assert evaluation_batch_size(run, torch.device("cuda")) == images
    assert evaluation_batch_size(run, torch.device("cpu")) == 250


# Teachers


def test_a_teacher_is_trained_first_and_once(tmp_path):
    lines = []
    first = train(tiny_run(tmp_path, method="kd", epochs=1), lines.append)
    teacher_run = first.teacher_run
    assert lines[0] == f"its teacher is trained first, for 3 epochs: {teacher_run.name}"
    assert any(line.startswith("teacher: epoch 3/3  ce ") for line in lines)
    assert teacher_run.done
    assert first.config["teacher"]["weights"] == teacher_run.name
    assert first.config["teacher"]["top1"] == teacher_run.result["top1"]
    lines.clear()
    train(tiny_run(tmp_path, method="kd", epochs=1, lr=0.01), lines.append)
    assert not any("is trained first" in line for line in lines)
    assert len(list((tmp_path / "runs").iterdir())) == 3
    save_teacher(teacher_run.weights, None)  # it is trained again elsewhere
    with pytest.raises(InputError, match=r"student\.safetensors is damaged \(its checksum"):
        build_setup(first)


@pytest.mark.parametrize(
    ("classes", "left_out", "is_assumed"),
    [
        (CLASSES, [], False),
        (["cat", "dog", "class 2", "class 3"], ["kd"], False),  # as many, with other names
        (["a", "b", "c"], ["kd"], False),
        (None, [], True),
    ],
)
def test_predictions_are_compared_where_the_classes_are_the_same(
    tmp_path, classes, left_out, is_assumed
):
    file = save_teacher(tmp_path / "t.safetensors", classes)
    lines = []
    run = train(tiny_run(tmp_path, teacher_weights=file, epochs=1), lines.append)
    about = "their training is not known" if is_assumed else "tiny, epochs 2 instead of 240"
    assert lines[0].startswith(f"its teacher: wrn_16_1, weights t.safetensors ({about}); it sees ")
    text = "\n".join(lines)
    assert ("left out: kd, which compares predictions" in text) == bool(left_out)
    assert ("do not name their classes" in text) == is_assumed
    assert run.config["left_out"] == left_out
    assert run.config["same_classes_assumed"] == is_assumed
    assert run.title.endswith("without kd") == bool(left_out)
    assert ("train_kd" in run.metrics) == (not left_out)
    assert "train_afd" in run.metrics


@pytest.mark.parametrize("method", ["kd", "ce + kd:0.5 + afd:20"])
@pytest.mark.parametrize(("classes", "is_refused"), [(CLASSES, False), (["a", "b"], True)])
def test_predictions_of_other_classes_are_refused_where_nothing_may_be_left_out(
    tmp_path, method, classes, is_refused
):
    """Nothing would be left of kd, and a mix is meant as it is written."""
    file = save_teacher(tmp_path / "t.safetensors", classes)
    run = tiny_run(tmp_path, teacher_weights=file, method=method, epochs=1)
    sentence = "kd compares predictions, and this teacher knows other classes"
    with pytest.raises(InputError, match=sentence) if is_refused else nullcontext():
        assert train(run, log=quiet).done


@pytest.fixture
def imagenet_resnet18(tmp_path, monkeypatch):
    """A file with random weights where torchvision keeps those of ImageNet."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    path = tmp_path / "checkpoints" / "resnet18-f37072fd.pth"
    path.parent.mkdir()
    torch.save(create_model("resnet18", 1000).state_dict(), path)
    return path


def test_a_teacher_of_imagenet_teaches_what_it_can(tmp_path, imagenet_resnet18):
    run = tiny_run(tmp_path, teacher="resnet18", teacher_weights="imagenet", epochs=1)
    config = train(run, quiet).config
    assert config["teacher"]["network"] == "resnet18"
    assert config["teacher"]["dataset"] == "imagenet"
    assert config["teacher"]["classes"] == 1000
    assert config["left_out"] == ["kd"]
    assert run.links_by_epoch[0].shape == (1, 8, 3)


# Initial weights of a student


def test_a_student_starts_from_weights_of_imagenet(tmp_path, imagenet_resnet18):
    fields = {"student": "resnet18", "student_weights": "imagenet", "method": "none"}
    student = build_setup(tiny_run(tmp_path, **fields)).distiller.student
    expected = load_weights("resnet18", imagenet_resnet18)
    assert torch.equal(student.conv1.weight, expected.conv1.weight)
    assert student.fc.out_features == 4


@pytest.mark.parametrize("classes", [None, CLASSES, ["cat", "dog", "c", "d"], ["a"]])
def test_a_student_starts_from_given_weights(tmp_path, classes):
    """A file without names, of as many classes, is taken for one of these classes, and says so."""
    file = save_teacher(tmp_path / "s.safetensors", classes)
    run = tiny_run(tmp_path, student="wrn_16_1", student_weights=file, method="none", seed=1)
    random = replace(run, student_weights_hash="", student_weights="")
    setup, other = build_setup(run), build_setup(random)
    initial, fresh = (each.distiller.student.state_dict() for each in (setup, other))
    assert ("are assumed to be the same" in setup.student_head) == (classes is None)
    assert ("random weights" in setup.student_head) == (classes not in (None, CLASSES))
    given = load_weights("wrn_16_1", file).state_dict()
    assert not torch.equal(fresh["conv1.weight"], given["conv1.weight"])
    for name, value in initial.items():
        # The classifier is of use only for the same classes.
        is_given = not name.startswith("fc.") or classes in (None, CLASSES)
        assert torch.equal(value, (given if is_given else fresh)[name])
    new = build_setup(replace(run, student_head="new")).distiller.student.state_dict()
    assert torch.equal(new["fc.weight"], fresh["fc.weight"])
    assert torch.equal(new["conv1.weight"], given["conv1.weight"])
    assert replace(random, student_head="new") == random


def test_given_weights_are_part_of_what_a_run_is(tmp_path):
    file = save_teacher(tmp_path / "s.safetensors", None)
    run = tiny_run(tmp_path, student="wrn_16_1", student_weights=file, epochs=1)
    digest = run.student_weights_hash
    assert run.overrides == {"epochs": [1, 3], "student_weights_hash": [digest, ""]}
    assert digest in run.name
    assert run.baseline.student_weights_hash == digest
    random = replace(run, student_weights_hash="", student_weights="")
    assert run.teacher_run == random.teacher_run
    trained = train(run.baseline, quiet)
    assert Run.open(trained.folder) == trained
    assert trained.config["where"]["student_weights"] == file
    Path(file).write_bytes(b"other")
    sentence = r"s\.safetensors' does not hold the initial weights of tiny-wrn_16_1-none-"
    with pytest.raises(InputError, match=sentence):
        build_setup(trained)


@pytest.fixture
def starts_from_imagenet(monkeypatch, imagenet_resnet18):
    preset = replace(TINY, student="resnet18", student_weights="imagenet")
    monkeypatch.setitem(DATASETS, "tiny", DATASETS["tiny"]._replace(preset=preset))


def test_a_preset_may_start_networks_from_imagenet(tmp_path, starts_from_imagenet):
    run = tiny_run(tmp_path, method="none")
    assert run.student_weights_hash == "imagenet" and not run.overrides
    random = tiny_run(tmp_path, method="none", student_weights="none")
    assert random.overrides == {"student_weights_hash": ["", "imagenet"]}
    assert replace(random, seed=0) == random != run
    assert not tiny_run(tmp_path, method="none", student="wrn_10_1").overrides  # there are none
    trained = train(replace(random, epochs=1), quiet)
    assert Run.open(trained.folder) == trained
    # A run of a time when the preset had no weights.
    edit(trained.folder / "config.json", where=trained.config["where"] | {"student_weights": ""})
    assert Run.open(trained.folder) == trained


def test_a_presets_batch_size_gives_way_to_few_images(tmp_path):
    lines = []
    run = train(tiny_run(tmp_path, method="none", train_limit=11, epochs=1), lines.append)
    assert lines[0] == "batch_size is 8: there are 11 training images"
    assert lines[1].endswith("1 epoch of 2 steps")
    assert run.config["batch_size"] == 8 and run.batch_size == 16


# What is refused


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"method": "none", "train_limit": 5000}, "train_limit is 5000: there are only 70"),
        ({"method": "none", "batch_size": 100}, "batch_size 100: there are only 70"),
        (
            {"method": "none", "student": "alexnet"},
            "images of 8 pixels do not pass through this network",
        ),
        (
            {"student": "resnet18", "method": "fitnet"},
            "fitnet has no convolution from maps of 1 x 1 to 4 x 4",
        ),
    ],
)
def test_what_cannot_be_trained_leaves_no_folder(tmp_path, fields, sentence):
    with pytest.raises(InputError, match=sentence):
        train(tiny_run(tmp_path, **fields), log=quiet)
    assert not list(tmp_path.iterdir())


def test_weights_of_another_network_are_refused(tmp_path):
    file = save_teacher(tmp_path / "t.safetensors", None)
    run = tiny_run(tmp_path, teacher="wrn_16_2", teacher_weights=file)
    with pytest.raises(InputError, match=r"t\.safetensors does not fit wrn_16_2"):
        train(run, log=quiet)
    assert not (tmp_path / "runs").exists()


def test_a_teacher_that_its_preset_cannot_train_can_be_trained_by_itself(tmp_path, monkeypatch):
    preset = replace(TINY, for_teacher={"train_limit": 5000})
    monkeypatch.setitem(DATASETS, "tiny", DATASETS["tiny"]._replace(preset=preset))
    sentence = r"cannot be trained by the preset \(train_limit is 5000: .*\): train it by itself"
    with pytest.raises(InputError, match=sentence):
        train(tiny_run(tmp_path, method="kd", epochs=1), quiet)
    fields = {"student": "wrn_16_1", "method": "none", "train_limit": -1, "epochs": 1}
    alone = train(tiny_run(tmp_path, **fields), quiet)
    run = tiny_run(tmp_path, method="kd", epochs=1, teacher_weights=str(alone.folder))
    assert train(run, quiet).done


@pytest.fixture
def tied_network(monkeypatch):
    """A registered network in which two convolutions share their weight; its name."""
    monkeypatch.setattr(base, "FAMILIES", base.FAMILIES.copy())

    @base.register(r"tied_(\d)", "tied_{}", "tied_N")
    def build(n, num_classes):
        model = create_model(f"wrn_16_{n}", num_classes)
        convolutions = [module for module in model.modules() if isinstance(module, torch.nn.Conv2d)]
        shape = convolutions[-1].weight.shape
        *_, first, second = (module for module in convolutions if module.weight.shape == shape)
        second.weight = first.weight
        return model

    return "tied_1"


def test_tied_parameters_are_refused_before_training(tied_network, tmp_path):
    names = {}
    for name, value in create_model(tied_network, 4).state_dict().items():
        names.setdefault(value.data_ptr(), []).append(f"student.{name}")
    ((first, second),) = (group for group in names.values() if len(group) > 1)
    with pytest.raises(InputError) as error:
        train(tiny_run(tmp_path, student=tied_network, method="none"), log=quiet)
    assert str(error.value).startswith(f"{first} and {second} share memory (tied parameters)")
    assert not list(tmp_path.iterdir())


def test_parameters_that_are_parts_of_one_storage_are_not_tied():
    """A weights file can hold them: they share no value."""
    module = torch.nn.Module()
    halves = torch.arange(6.0).chunk(2)
    module.first, module.second = (torch.nn.Parameter(half) for half in halves)
    check_tensors_are_separate(module)
    module.second = torch.nn.Parameter(module.first.data[1:])
    with pytest.raises(InputError, match="first and second share memory"):
        check_tensors_are_separate(module)
