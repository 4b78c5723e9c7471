import json
from dataclasses import fields
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from safetensors.torch import save_file

from kdnb import experiment as module
from kdnb.errors import InputError
from kdnb.experiment import Experiment
from kdnb.models import create_model
from kdnb.parameters import injected

QUICK = {"epochs": 1, "train_limit": 128, "device": "cpu", "precision": "float32"}


@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        ({"dataset": "mnist"}, "unknown dataset 'mnist': choose one of cifar100, digits, folder, stanford40"),
        ({"student": "vgg11"}, "unknown model 'vgg11'"),
        ({"teacher": "wrn_41_2"}, "depth must be 6n"),
        ({"device": "tpu"}, "unknown device 'tpu'"),
        ({"precision": "int8"}, "unknown precision 'int8'"),
        ({"compile": "maybe"}, "unknown compile 'maybe'"),
        ({"epochs": -1}, "epochs is -1: it must be 0 or more"),
        ({"epochs": 2.5}, "epochs is 2.5: it must be a whole number"),
        ({"epochs": "ten"}, "epochs is 'ten': it must be a whole number"),
        ({"lr": float("nan")}, "lr is nan: it must be a finite number"),
        ({"baseline": 1}, "baseline is 1: it must be True or False"),
        ({"dataset": 100}, "dataset is 100: it must be text"),
        ({"temperature": 0}, "temperature is 0.0: it must be more than 0"),
        ({"alpha": 0, "beta": 0}, "alpha and beta are both 0"),
        ({"batch_size": 1}, "batch_size is 1"),
        ({"teacher_weights": "nowhere.pth"}, "teacher_weights 'nowhere.pth': no such file"),
        ({"image_size": 64}, "image_size 64: digits has images of 8 pixels"),
    ],
)
def test_impossible_parameters_get_a_sentence(parameters, sentence):
    with pytest.raises(InputError) as error:
        Experiment(**parameters)
    assert sentence in str(error.value)
    assert error.value._render_traceback_() == [f"InputError: {error.value}"]


def test_whole_numbers_are_numbers():
    assert Experiment(alpha=1).alpha == 1.0 and isinstance(Experiment(alpha=1).alpha, float)


def test_misspelt_parameters_are_named():
    cells = ["", "dataset: str = 'digits'", "# Parameters\nepohcs = 5\nalpha = 0.5\n"]
    assert injected(cells) == {"epohcs", "alpha"}
    with pytest.raises(InputError, match="unknown parameter 'epohcs': choose from dataset, data_root"):
        Experiment.from_notebook({"In": cells, "epohcs": 5, "alpha": 0.5})
    made = Experiment.from_notebook({"In": ["# Parameters\nalpha = 0.5\n"], "alpha": 0.5, "x": 3})
    assert made.alpha == 0.5  # and a reader's own variables are nobody's business


def test_the_recipe_stands_where_parameters_are_empty():
    made = Experiment(dataset="cifar100", epochs=3, student="wrn16x2")
    assert (made.recipe.epochs, made.recipe.batch_size, made.recipe.teacher) == (3, 64, "wrn_40_2")
    assert {"epochs", "alpha", "device"} <= set(made.summary().index)


def test_run_names_say_what_is_not_as_the_recipe_has_it():
    assert Experiment().run_name("wrn_16_2", 0, True) == "digits-wrn_16_2-afd-seed=0"
    named = Experiment(dataset="cifar100", epochs=5, beta=0, alpha=0.5, student="wrn_16_2")
    assert named.run_name("wrn_16_2", 3, True) == "cifar100-wrn_16_2-kd-alpha=0.5-beta=0-epochs=5-seed=3"
    assert named.run_name("wrn_16_2", 3, False) == "cifar100-wrn_16_2-plain-epochs=5-seed=3"


def test_three_trainings_of_one_experiment(tmp_path):
    made = Experiment(**QUICK, outputs=str(tmp_path), teacher="wrn_16_1", student="wrn_10_1")
    plain, distilled = made.plain_run(), made.distilled_run()
    names = list(made.named_runs(plain, distilled))
    assert names == ["teacher", "plain student", "distilled student"]
    assert plain.result["method"] == "plain" and distilled.result["method"] == "kd+afd"
    assert plain.result["train_images"] == 128 and plain.result["test_images"] == 360
    assert plain.result["teacher_parameters"] is None and distilled.result["teacher_parameters"] > 0
    config = json.loads((distilled.folder / "config.json").read_text())
    assert config["teacher_weights"]["from"].endswith("student.safetensors") and config["losses"] == {
        "kd": 0.9,
        "afd": 200.0,
    }
    assert len(made.teacher_summary()) == 5
    again = Experiment(**QUICK, outputs=str(tmp_path), teacher="wrn_16_1", student="wrn_10_1")
    assert again.distilled_run().result == distilled.result


def test_both_students_start_from_the_same_weights(tmp_path):
    made = Experiment(**QUICK, outputs=str(tmp_path), teacher="wrn_16_1", student="wrn_10_1")
    test = made.batches()[1]
    states = [made.distiller("wrn_10_1", 3, distilled, test).student.state_dict() for distilled in (False, True)]
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
    other = made.distiller("wrn_10_1", 4, False, test).student.state_dict()
    assert not torch.equal(other["conv1.weight"], states[0]["conv1.weight"])


def teacher_file(folder, classes):
    torch.manual_seed(0)
    save_file(create_model("wrn_16_1", classes).state_dict(), folder / "teacher.safetensors")
    return str(folder / "teacher.safetensors")


def test_a_teacher_of_other_classes_distils_without_kd_and_says_so(tmp_path, capsys):
    file = teacher_file(tmp_path, 100)
    made = Experiment(**QUICK, outputs=str(tmp_path), teacher="wrn_16_1", student="wrn_10_1", teacher_weights=file)
    run = made.distilled_run()
    sentence = "kd is left out: the teacher knows 100 classes, the data set has 10"
    assert sentence in capsys.readouterr().out
    assert run.result["left_out"] == [sentence] and run.result["method"] == "afd"
    assert made.teacher_accuracy() is None
    alone = Experiment(
        **QUICK, beta=0, outputs=str(tmp_path), teacher="wrn_16_1", student="wrn_10_1", teacher_weights=file
    )
    with pytest.raises(InputError, match="nothing is left to distil by"):
        alone.distilled_run()


def test_a_teacher_file_of_other_shapes_is_named(tmp_path):
    made = Experiment(outputs=str(tmp_path), teacher="wrn_40_2", teacher_weights=teacher_file(tmp_path, 10))
    with pytest.raises(InputError, match=r"teacher\.safetensors does not fit wrn_40_2"):
        made.distilled_run()
    assert not (tmp_path / "runs").exists()


def test_the_teacher_that_comes_with_the_study_is_found(tmp_path):
    (tmp_path / "teachers").mkdir()
    save_file(create_model("wrn_16_1", 10).state_dict(), tmp_path / "teachers" / "wrn_16_1-digits.safetensors")
    made = Experiment(outputs=str(tmp_path), teacher="wrn_16_1")
    assert made.teacher_source == tmp_path / "teachers" / "wrn_16_1-digits.safetensors"


def test_imagenet_weights_are_loaded_from_where_torchvision_keeps_them(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    model = create_model("resnet18", 1000)
    torch.save(model.state_dict(), tmp_path / "checkpoints" / "resnet18-f37072fd.pth")
    made = Experiment(dataset="stanford40", teacher="resnet18", data_root=str(tmp_path), device="cpu")
    assert made.teacher_source == "imagenet"
    assert torch.equal(made.teacher_model.fc.weight, model.fc.weight)


def test_without_a_network_the_error_says_which_file_to_put_where(tmp_path, monkeypatch):
    def offline(*_, **__):
        raise URLError("no network")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    made = Experiment(dataset="stanford40", device="cpu")
    with pytest.raises(InputError, match=r"put https://\S+resnet34-b627a593.pth into .*checkpoints.*'none'"):
        _ = made.teacher_model
    wide = Experiment(dataset="stanford40", teacher="wrn_40_2", student="wrn_16_2")
    with pytest.raises(InputError, match="no ImageNet weights for wrn_40_2: set teacher_weights"):
        _ = wide.teacher_source


def test_too_large_a_limit_and_too_small_a_set(tmp_path):
    with pytest.raises(InputError, match="train_limit is 5000: digits has 1437 training images"):
        _ = Experiment(train_limit=5000).data
    with pytest.raises(InputError, match="batch_size 64: there are only 20 training images"):
        Experiment(train_limit=20, outputs=str(tmp_path)).plain_run()


def test_folders_do_not_depend_on_where_one_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Experiment().output_folder == Path(module.__file__).resolve().parent.parent / "outputs"
    assert Experiment(outputs="here").output_folder == Path("here")


def test_every_parameter_has_a_plain_type():
    assert {type(field.default) for field in fields(Experiment)} == {str, int, float, bool}
