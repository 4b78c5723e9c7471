"""`-p log`: the rows of metrics.csv, the links and the fields of a run, next to its files."""

import importlib.util

import numpy as np
import pytest
from helpers import break_off, quiet, teacher, tiny, tiny_run
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from kdnb import InputError, train
from kdnb.runs.resolve import LOGS
from kdnb.training.tracking import TRACKERS


def read_events(run):
    events = EventAccumulator(str(run.folder / "tensorboard"), {"images": 0, "scalars": 0})
    events.Reload()
    return events


def test_tensorboard_has_every_epoch_once_also_after_an_interruption(tmp_path, teacher):
    run = tiny_run(tmp_path, teacher_weights=teacher, log="tensorboard")
    break_off(run, step=12)  # in the third epoch
    train(run, quiet)
    events = read_events(run)
    metrics = run.metrics
    assert set(events.Tags()["scalars"]) == set(metrics) - {"epoch"}
    for name in events.Tags()["scalars"]:
        logged = events.Scalars(name)
        assert [event.step for event in logged] == [1, 2, 3]
        np.testing.assert_allclose([event.value for event in logged], metrics[name], rtol=1e-6)
    assert [image.step for image in events.Images("links")] == [1, 2, 3]
    hparams = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    assert b"ce + kd:0.9 + afd:20" in hparams  # the config, as hyper-parameters


def test_a_log_changes_no_name_and_a_missing_package_stops_before_training(tmp_path, monkeypatch):
    run = tiny_run(tmp_path, method="none", log="wandb")
    assert run.name == tiny_run(tmp_path, method="none").name
    found = importlib.util.find_spec
    monkeypatch.setattr(
        "kdnb.training.tracking.find_spec", lambda name: None if name == "wandb" else found(name)
    )
    with pytest.raises(InputError, match=r"wandb is not installed; pip install \"kdnb\[wandb\]\""):
        train(run, quiet)
    assert not (run.folder / "config.json").exists()
    assert tuple(TRACKERS) == LOGS
    with pytest.raises(InputError, match="unknown log 'tensorbord'"):
        tiny_run(tmp_path, log="tensorbord")
