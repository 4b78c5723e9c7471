"""Replicates of a run are found by what is trained."""

import json
import warnings
from dataclasses import replace

import pytest
from helpers import edit, tiny, tiny_run

from kdnb.analysis.replicates import seed_replicates
from kdnb.runs.files import write_atomically
from kdnb.training.outputs import make_config

CUT = 220  # characters of a name's readable part


def store(run):
    """Write the files of a finished run that describe it, without training it."""
    config = {"format": 2, **make_config(run), "where": {}}
    write_atomically(run.folder / "config.json", json.dumps(config))
    result = {"top1": 50.0, "top5": 90.0, "best": {"epoch": 1, "top1": 50.0, "top5": 90.0}}
    write_atomically(run.folder / "result.json", json.dumps(result))
    return run


def test_replicates_differ_in_their_seed_alone(tmp_path):
    runs = [store(tiny_run(tmp_path, seed=seed)) for seed in (10, 0, 2)]
    store(tiny_run(tmp_path, lr=0.03))
    store(runs[0].baseline)
    unfinished = store(tiny_run(tmp_path, seed=5))
    (unfinished.folder / "result.json").unlink()
    assert seed_replicates(runs[0]) == sorted(runs, key=lambda run: run.seed)


def long_named_run(outputs, length, **fields):
    """A run whose readable name would have `length` characters before "-seed="."""
    longest = 10**20
    mix = f"ce + afd:{longest} + fitnet:{longest} + nst:{longest} + pkt:{longest} + rkd:{longest}"
    name = tiny_run(outputs, method=mix + " + sp:10", **fields).readable_name
    zeros = length - len(name.rpartition("-seed=")[0])
    return tiny_run(outputs, method=f"{mix} + sp:1{'0' * (zeros + 1)}", **fields)


@pytest.mark.parametrize("length", range(CUT - 10, CUT + 4))
def test_replicates_of_runs_with_long_names_are_found(tmp_path, length):
    """The readable part of a name is cut: after the seed, within it, or before it."""
    runs = [store(long_named_run(tmp_path, length, seed=seed)) for seed in (0, 3, 12)]
    other = long_named_run(tmp_path, length, seed=0)
    store(replace(other, validation=0.25))
    assert ("-seed=" in runs[0].readable_name) == (length + len("-seed=") <= CUT)
    assert (len(runs[2].readable_name) < CUT) == (length + len("-seed=12") < CUT)
    for run in runs:
        assert seed_replicates(run) == runs


def test_damaged_replicates_are_left_out_with_a_warning(tmp_path):
    runs = [store(tiny_run(tmp_path, seed=seed)) for seed in range(5)]
    (runs[1].folder / "config.json").write_text("{")
    (runs[2].folder / "result.json").write_text("{}")
    edit(runs[3].folder / "config.json", format=99)
    with pytest.warns(UserWarning, match="left out of the seeds") as caught:
        assert seed_replicates(runs[0]) == [runs[0], runs[4]]
    messages = sorted(str(warning.message) for warning in caught)
    assert len(messages) == 3
    assert "config.json is damaged" in messages[0] and "result.json is damaged" in messages[1]
    assert "has format 99" in messages[2]


def test_other_runs_are_not_opened(tmp_path):
    run = store(tiny_run(tmp_path))
    other = store(tiny_run(tmp_path, method="kd"))
    (other.folder / "config.json").write_text("{")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert seed_replicates(run) == [run]
