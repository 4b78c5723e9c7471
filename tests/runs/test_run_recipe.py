"""The fields of a run that say by which recipe it is trained."""

import pytest
from helpers import edit, quiet, teacher, tiny, tiny_run

from kdnb import InputError, Loss, Run, train
from kdnb.results.frame import load_frame
from kdnb.runs.config import check_config_matches, make_config

OFFICIAL = {"optimizer": "sgd", "momentum": 0.9, "weight_decay": 5e-4, "schedule": "steps"}
NOTHING = {"mix": "none", "views": 1, "clip": 0, "ema": 0.0, "label_smoothing": 0}


@pytest.mark.parametrize(
    ("given", "field"), [({name: value}, name) for name, value in (OFFICIAL | NOTHING).items()]
)
def test_a_value_that_is_the_presets_renames_no_run(given, field):
    plain = Run(dataset="cifar100", method="none")
    run = Run(dataset="cifar100", method="none", **given)
    assert run == plain and run.name == plain.name and not run.overrides
    assert getattr(run, field) == getattr(plain, field)


def test_what_differs_is_in_name_heading_and_baseline():
    fields = {"optimizer": "adamw", "weight_decay": 0, "schedule": "onecycle", "ema": 0.99}
    run = Run(dataset="cifar100", method="kd", **fields, augment="randaugment", views=2)
    parts = "optimizer=adamw-weight_decay=0-schedule=onecycle-ema=0.99-augment=randaugment-views=2"
    assert parts in run.name and parts in run.baseline.name
    assert run.overrides["schedule"] == ["one cycle", "steps"]
    assert run.overrides["views"] == [2, 0] and run.view_count == 2
    assert set(run.overrides) >= fields.keys()


def test_a_teacher_that_is_trained_first_has_the_presets_recipe():
    fields = {"optimizer": "adamw", "lr": 0.001, "ema": 0.9, "label_smoothing": 0.1, "clip": 1}
    run = Run(dataset="digits", method="kd", **fields, augment="randaugment", views=2)
    assert run.teacher_run == Run(dataset="digits", method="kd").teacher_run


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"optimizer": "adam"}, "unknown optimizer 'adam': choose one of adamw, nesterov, sgd"),
        ({"schedule": "steps"}, "the preset of digits has no milestones"),
        ({"augment": "auto"}, "unknown augment 'auto': choose one of none, randaugment"),
        ({"mix": "both"}, "unknown mix 'both': choose one of cutmix, mixup"),
        ({"views": 3}, "views is 3: it must be 2 or less"),
        ({"ema": 1}, "ema is 1.0: it must be a share below 1"),
        ({"weight_decay": -0.5}, "weight_decay is -0.5: it must be 0 or more, or -1"),
        ({"momentum": 0, "optimizer": "nesterov"}, "nesterov needs one above 0"),
        ({"warmup_epochs": 1}, "one cycle rises by itself"),
        ({"warmup_epochs": 40, "schedule": "cosine"}, "it must be less than epochs, 40"),
        ({"label_smoothing": 0.1, "method": "kd:1"}, "it applies to ce, which the method kd:1"),
        ({"mix": "mixup", "method": "ce + dkd + kd"}, "dkd needs one label per image"),
    ],
)
def test_an_impossible_recipe_is_refused_in_a_sentence(fields, sentence):
    with pytest.raises(InputError) as error:
        Run(**{"dataset": "digits", "method": "kd"} | fields)
    assert sentence in str(error.value) and "\n" not in str(error.value)


def test_a_loss_that_compares_two_views_gets_them(registries):
    class Two(Loss, name="two", method="ce + two"):
        views = 2

    run = Run(method="two")
    assert run.view_count == 2 and "views" not in run.name
    assert run.baseline.view_count == 1
    compared = Run(method="two", views=2)
    assert compared.overrides == Run(method="kd", views=2).overrides != run.overrides
    assert compared.baseline == Run(method="none", views=2)
    with pytest.raises(InputError, match="views is 1: two compares 2 views of each image"):
        Run(method="two", views=1)


def test_runs_of_before_match_those_that_say_their_recipe(teacher, tmp_path):
    """Their config.json has the preset's optimiser alone; a baseline is found all the same."""
    run = train(tiny_run(tmp_path, method="kd", teacher_weights=teacher, epochs=1), log=quiet)
    baseline = train(run.baseline, log=quiet)
    config = baseline.config
    new = {"optimizer", "momentum", "weight_decay", "schedule", "warmup_epochs", "label_smoothing"}
    new |= {"clip", "ema", "augment", "mix", "views"}
    stored = {name: value for name, value in config["run"].items() if name not in new}
    preset = {name: value for name, value in config["preset"].items() if name != "optimizer"}
    edit(baseline.folder / "config.json", run=stored, preset=preset)
    check_config_matches(baseline, make_config(baseline))
    assert load_frame(tmp_path / "runs")["recipe"].nunique() == 1
