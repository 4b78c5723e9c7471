"""A distilled student's folder is all that has to be known to open its experiment again."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from kdnb import attention
from kdnb.errors import InputError
from kdnb.experiment import Experiment
from kdnb.reopen import Reopened

QUICK = {"epochs": 1, "train_limit": 64, "device": "cpu", "precision": "float32", "compile": "off"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(outputs folder, distilled run) of a small experiment whose parameters are not the recipe's."""
    folder = tmp_path_factory.mktemp("outputs")
    made = Experiment(**QUICK, teacher="wrn_16_1", student="wrn_10_1", seed=1, qk_dim=16, beta=50, outputs=str(folder))
    made.plain_run()
    return folder, made.distilled_run()


def test_a_run_opens_its_experiment(finished):
    folder, run = finished
    again = Reopened(run=str(run.folder))
    assert (again.dataset, again.seed, again.qk_dim, again.beta) == ("digits", 1, 16, 50.0)
    assert (again.recipe.teacher, again.recipe.student, again.recipe.epochs) == ("wrn_16_1", "wrn_10_1", 1)
    assert again.distilled_run().result == run.result and again.output_folder == folder.resolve()
    before = sorted(folder.rglob("*"))
    networks = attention.load_networks(again)
    assert sorted(folder.rglob("*")) == before  # nothing was trained
    kept = load_file(run.weights)
    assert all(torch.equal(value.cpu(), kept[key]) for key, value in networks.distilled.state_dict().items())
    assert networks.history.shape == (1, 6, 3)


def test_a_run_is_known_by_its_name_too(finished):
    folder, run = finished
    assert Reopened(run=run.name, outputs=str(folder)).distilled_run().result == run.result


def test_a_run_of_another_device_is_only_read(finished, tmp_path):
    folder, run = finished
    copy = shutil.copytree(folder / "runs", tmp_path / "runs")
    for config in copy.glob("*/config.json"):
        config.write_text(json.dumps(json.loads(config.read_text()) | {"device_type": "cuda", "precision": "bfloat16"}))
    assert attention.load_networks(Reopened(run=str(copy / run.name), device="cpu")).plain is not None


def test_without_a_run_it_is_an_experiment(tmp_path):
    plain = Reopened(dataset="cifar100", outputs=str(tmp_path))
    assert plain.recipe == Experiment(dataset="cifar100").recipe and plain.output_folder == tmp_path


@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        ({"run": "/nowhere"}, "run: /nowhere is not the folder of a finished run"),
        ({"beta": 3.0}, "beta is 3.0, but was 50.0 in .*: leave it out"),
        ({"seed": 2}, "seed is 2, but was 1 in .*: leave it out"),
        ({"run": 5}, "run is 5: it must be text"),
        ({"teacher_weights": "none"}, "a finished run has its teacher: leave it out"),
    ],
)
def test_what_does_not_fit_gets_a_sentence(finished, parameters, sentence):
    with pytest.raises(InputError, match=sentence):
        Reopened(**({"run": str(finished[1].folder)} | parameters))


def test_a_plain_student_links_nothing(finished):
    folder = finished[0]
    with pytest.raises(InputError, match=r"was trained without AFD \(plain\)"):
        Reopened(run=str(next(folder.glob("runs/*wrn_10_1-plain*"))))


def test_the_teacher_has_to_be_there_and_the_same(finished, tmp_path):
    folder, run = finished
    alone = shutil.copytree(run.folder, tmp_path / "runs" / "alone")
    with pytest.raises(InputError, match="is not beside it: set teacher_weights to its file"):
        Reopened(run=str(alone)).teacher_source  # noqa: B018
    right = next(folder.glob("runs/*wrn_16_1-plain*")) / "student.safetensors"
    opened = Reopened(run=str(alone), teacher_weights=str(right))
    assert attention.rebuild(opened, opened.distilled_run()).teacher is not None
    wrong = {key: value + 1 for key, value in load_file(right).items()}
    save_file(wrong, tmp_path / "wrong.safetensors")
    opened = Reopened(run=str(alone), teacher_weights=str(tmp_path / "wrong.safetensors"))
    with pytest.raises(InputError, match="does not hold the weights that taught"):
        attention.rebuild(opened, opened.distilled_run())


def test_a_record_has_no_weights_to_look_at(finished, tmp_path):
    record = shutil.copytree(
        finished[1].folder, tmp_path / "runs" / "r", ignore=shutil.ignore_patterns("*.safetensors")
    )
    with pytest.raises(InputError, match="is a record without the network's weights"):
        Reopened(run=str(record))


def changed(path, **entries):
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def test_a_damaged_neighbour_is_passed_by(finished, tmp_path):
    folder, run = finished
    copy = shutil.copytree(folder / "runs", tmp_path / "runs")
    for name, text in {"a": "{", "b": "{}"}.items():
        (copy / name).mkdir()
        (copy / name / "result.json").write_text("{}")
        (copy / name / "config.json").write_text(text)
    plain = Reopened(run=str(copy / run.name)).plain_run()
    assert plain.config["method"] == "plain" and plain.config["model"] == "wrn_10_1"


def test_a_plain_student_of_another_precision_is_another(finished, tmp_path):
    folder, run = finished
    copy = shutil.copytree(folder / "runs", tmp_path / "runs")
    changed(copy / run.name / "config.json", precision="bfloat16")
    with pytest.raises(InputError, match=r"no plain student beside .* set precision to bfloat16"):
        Reopened(run=str(copy / run.name), precision="float32").plain_run()


def test_other_images_are_not_those_of_the_run(finished, tmp_path):
    copy = shutil.copytree(finished[0] / "runs", tmp_path / "runs") / finished[1].name
    changed(copy / "config.json", classes=12)
    with pytest.raises(InputError, match=r"was trained on 12 classes, .* has 10"):
        Reopened(run=str(copy)).data  # noqa: B018
