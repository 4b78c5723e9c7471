"""Files of a run that are cut, that have a flipped bit, or that are another run's.

Either the results are the same, or a sentence or warning names the file.
"""

import json
import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers import break_off, press_stop, quiet, teacher, tiny, tiny_run, weights

from kdnb import InputError, Run, load, train
from kdnb.results.curves import epoch_rows
from kdnb.results.frame import load_frame
from kdnb.runs.checkpoint import CHECKPOINT, PREVIOUS
from kdnb.runs.digests import SMALL, WEIGHTS
from kdnb.runs.folder import RunFolder

FINISHED = [*SMALL, "result.json", *WEIGHTS]
UNFINISHED = [*SMALL, CHECKPOINT, PREVIOUS]


def damages(path, other, flips):
    """Contents that a file might have: cut, with a flipped bit, and that of another run."""
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    yield b""
    yield whole[: len(whole) // 2]
    yield whole[:-1]
    for place in rng.integers(len(whole), size=flips):
        yield whole[:place] + bytes([whole[place] ^ 1 << rng.integers(8)]) + whole[place + 1 :]
    yield other.read_bytes()


def outcome(read, name):
    """What is read; "named" if an error or a warning names the file."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            value = read()
        except InputError as error:
            assert name in str(error), error
            return "named"
    return "named" if any(name in str(warning.message) for warning in caught) else value


def frame_rows(folder):
    """The run's row of the tables, and its curve."""
    frame = load_frame(folder.parent)
    return frame.to_csv() + epoch_rows(frame).to_csv()


def results(folder):
    """All that is read of a finished run."""
    run = Run.open(folder, device="cpu", compile="off")
    links = RunFolder(folder).links_by_epoch
    paths = run.weights, run.loss_weights, run.last_weights
    files = [path.read_bytes() for path in paths]
    return train(run, quiet).result["top1"], links[0].tobytes(), files, load(folder).classes


@pytest.fixture(scope="module")
def runs(teacher, tmp_path_factory):
    """Two finished runs of other seeds, and two that were broken off in their last epoch."""
    outputs = tmp_path_factory.mktemp("runs")
    fields = {"teacher_weights": teacher, "epochs": 2, "ema": 0.9}
    finished = [tiny_run(outputs, **fields, seed=seed) for seed in (0, 1)]
    begun = [replace(run, outputs=str(outputs / "begun")) for run in finished]
    for run in finished:
        train(run, quiet)
    for run in begun:
        break_off(run, 9, press_stop)
    return finished, begun


@pytest.mark.parametrize("name", FINISHED)
def test_a_damaged_file_of_a_finished_run_changes_no_result(runs, tmp_path, name):
    (run, other), _ = runs
    folder = shutil.copytree(run.folder, tmp_path / "runs" / run.name)
    expected = results(folder), frame_rows(folder)
    for content in damages(folder / name, other.folder / name, flips=12):
        (folder / name).write_bytes(content)
        assert outcome(lambda: results(folder), name) in ("named", expected[0])
        assert outcome(lambda: frame_rows(folder), name) in ("named", expected[1])
        shutil.copy(run.folder / name, folder / name)


@pytest.mark.slow
@pytest.mark.parametrize("name", UNFINISHED)
def test_a_damaged_file_of_an_unfinished_run_changes_no_bit(runs, tmp_path, name):
    (whole, _), (run, other) = runs
    expected = weights(whole)
    for content in damages(run.folder / name, other.folder / name, flips=4):
        again = replace(run, outputs=str(tmp_path))
        shutil.copytree(run.folder, again.folder)
        (again.folder / name).write_bytes(content)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                assert weights(train(again, quiet)) == expected
            except InputError as error:
                assert name in str(error)
        shutil.rmtree(again.folder)


@pytest.mark.parametrize(
    "change",
    [
        {"run": "x"},
        {"label": 5},
        {"label": None},
        {"machines": [{"started": 4}]},
        {"machines": {}},
        {"code": 5},
        {"options": 5},
        {"teacher": "x"},
        {"where": 5},
    ],
)
def test_a_config_of_other_types_is_named(runs, tmp_path, change):
    """As files of other versions may be, which have no digests."""
    (run, _), _ = runs
    folder = shutil.copytree(run.folder, tmp_path / "runs" / run.name)
    for name, content in (("config.json", change), ("result.json", {})):
        stored = json.loads((folder / name).read_text()) | content
        unsealed = {key: value for key, value in stored.items() if key not in ("sha256", "files")}
        (folder / name).write_text(json.dumps(unsealed))
    for read in (lambda: results(folder), lambda: frame_rows(folder)):
        assert outcome(read, "config.json is damaged (") == "named"


@pytest.mark.parametrize("change", [lambda links: links.astype(str), lambda links: links * np.nan])
def test_links_that_are_no_numbers_are_named(runs, tmp_path, change):
    (run, _), _ = runs
    folder = RunFolder(shutil.copytree(run.folder, tmp_path / "runs" / run.name))
    arrays = {k: change(v) if k.endswith("links") else v for k, v in folder.history.items()}
    (folder.folder / "result.json").unlink()
    np.savez(folder.folder / "history.npz", **arrays)
    with pytest.raises(InputError, match=r"history\.npz is damaged \(its links are not finite"):
        _ = folder.links_by_epoch


def test_another_runs_checkpoint_is_refused(runs, tmp_path):
    _, (run, other) = runs
    again = replace(run, outputs=str(tmp_path))
    shutil.copytree(run.folder, again.folder)
    shutil.copy(other.folder / CHECKPOINT, again.folder)
    with pytest.raises(
        InputError, match=r"checkpoint is the checkpoint of another run \(seed is 1 .* and 0 here"
    ):
        train(again, quiet)


def test_another_runs_result_costs_no_bit(runs, tmp_path):
    (whole, other), (run, _) = runs
    again = replace(run, outputs=str(tmp_path))
    shutil.copytree(run.folder, again.folder)
    result = shutil.copy(other.folder / "result.json", again.folder)
    with pytest.raises(InputError, match=r"move result\.json away, and the run goes on"):
        train(again, quiet)
    Path(result).unlink()
    assert weights(train(again, quiet)) == weights(whole)


def test_the_advice_on_a_damaged_config_costs_no_bit(runs, tmp_path):
    (whole, _), (run, _) = runs
    again = replace(run, outputs=str(tmp_path))
    shutil.copytree(run.folder, again.folder)
    config = again.folder / "config.json"
    config.write_bytes(config.read_bytes()[:-1])
    with pytest.raises(InputError, match="move this file away, and the run goes on"):
        train(again, quiet)
    config.rename(tmp_path / "away")
    assert weights(train(again, quiet)) == weights(whole)
