"""`python -m kdnb.runs`: what is on disk is listed, and only what was named is deleted."""

import os
import shutil
from dataclasses import replace

import pytest
from conftest import left_in
from helpers import break_off, press_stop, quiet, tiny, tiny_run

from kdnb import InputError, train
from kdnb.runs import disk
from kdnb.runs.__main__ import main
from kdnb.runs.lock import locked


@pytest.fixture(scope="module")
def made(tiny, tmp_path_factory):
    """A finished run with a teacher, and one that was stopped in its second epoch."""
    outputs = tmp_path_factory.mktemp("made")
    finished = train(tiny_run(outputs, method="kd", teacher_epochs=1, epochs=1), log=quiet)
    break_off(replace(finished.baseline, epochs=3), 7, press_stop)
    return outputs


@pytest.fixture
def outputs(made, tmp_path, cache_folder):
    """A copy of these, with a record and a figure of each run."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    shutil.copytree(tmp_path / "runs", tmp_path / "records")
    (tmp_path / "runs/figures").mkdir()
    for run in disk.stored_runs(tmp_path):
        (tmp_path / f"runs/figures/maps-{run.name}.png").write_bytes(b"figure")
    return tmp_path


def names(outputs, state):
    return [run.name for run in disk.stored_runs(outputs) if run.state.startswith(state)]


def call(outputs, *arguments):
    return main([*arguments, "--outputs", str(outputs)])


def test_runs_are_listed_with_state_accuracy_seconds_and_size(outputs, capsys):
    (outputs / "runs/broken").mkdir()
    (outputs / "runs/broken/config.json").write_text("{")
    runs = {run.state: run for run in disk.stored_runs(outputs)}
    stopped, finished = runs["stopped, epoch 1 of 3"], runs["finished"]
    assert "-kd-" in finished.name and runs["damaged"].name == "broken"
    assert 0 < finished.top1 <= 100 and finished.seconds > 0
    assert stopped.nbytes == sum(p.stat().st_size for p in stopped.path.iterdir())
    assert call(outputs, "list", "tiny-*") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert lines[-1].split()[:4] == ["stopped,", "epoch", "1", "of"]


def test_a_run_is_shown_with_its_files(outputs, capsys):
    (name,) = names(outputs, "stopped")
    assert call(outputs, "show", str(outputs / "runs" / name)) == 0
    out = capsys.readouterr().out
    assert f"figures/maps-{name}.png" in out and "wrn_10_1" in out


def test_a_run_is_deleted_with_its_figures_and_nothing_else(outputs, capsys, monkeypatch):
    teacher = next(name for name in names(outputs, "finished") if "wrn_16_1-none" in name)
    before = left_in(outputs / "records")
    monkeypatch.setattr("builtins.input", lambda question: "n")
    assert call(outputs, "delete", teacher) == 1
    assert f"{teacher} is the teacher of tiny-wrn_10_1-kd" in capsys.readouterr().out
    assert teacher in names(outputs, "finished")
    others = {*names(outputs, "")} - {teacher}
    assert call(outputs, "delete", "--yes", teacher) == 0
    assert {*names(outputs, "")} == others
    figures = {path.name for path in (outputs / "runs/figures").iterdir()}
    assert figures == {f"maps-{name}.png" for name in others}
    assert {path.name for path in (outputs / "runs").iterdir()} == {"figures", *others}
    assert left_in(outputs / "records") == before


def test_a_run_that_is_being_trained_is_neither_deleted_nor_pruned(outputs, capsys):
    (name,) = names(outputs, "stopped")
    folder = outputs / "runs" / name
    files = left_in(folder)
    lease = folder / ".lease/elsewhere,7,42,0123abcd"  # another machine's
    lease.mkdir(parents=True)
    assert names(outputs, "training") == [name]
    for command in (["delete"], ["prune", "--days", "0"]):
        with pytest.raises(SystemExit):
            call(outputs, *command, name, "--yes")
        assert "is being trained by another process (42 on elsewhere)" in capsys.readouterr().err
    shutil.rmtree(lease.parent)
    assert left_in(folder) == files


def test_only_checkpoints_that_are_old_enough_are_pruned(outputs, capsys):
    (name,) = names(outputs, "stopped")
    folder = outputs / "runs" / name
    assert call(outputs, "prune", "--yes") == 0
    assert (folder / "checkpoint").is_file()
    week_ago = (folder / "checkpoint").stat().st_mtime - 8 * disk.DAY
    for path in folder.glob("checkpoint*"):
        os.utime(path, (week_ago, week_ago))
    assert call(outputs, "prune", "--yes") == 0
    assert left_in(folder) == ["config.json", "metrics.csv"]
    assert len(names(outputs, "finished")) == 2


def test_a_misspelt_run_and_a_missing_answer_are_refused(outputs, monkeypatch):
    with pytest.raises(InputError, match=r"run 'records/x': no such run"):
        disk.stored_runs(outputs, ["records/x"])
    record = next((outputs / "records").iterdir())
    with pytest.raises(InputError, match="no such run"):
        disk.stored_runs(outputs, [str(record)])

    def nobody(question):
        raise EOFError

    monkeypatch.setattr("builtins.input", nobody)
    before = left_in(outputs)
    with pytest.raises(SystemExit):
        call(outputs, "delete", "*")
    assert left_in(outputs) == before


def test_disk_use_counts_every_file_once(outputs, tmp_path):
    use = disk.disk_use(outputs, tmp_path / "none", tmp_path / "none/answers")
    runs = disk.stored_runs(outputs)
    figures = use["figures of runs"][0]
    assert figures == 3 * len(b"figure")
    assert use["runs"][0] == sum(run.nbytes for run in runs) + figures
    assert use["decoded photographs"][0] == use["answers of teachers"][0] == 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["list", "a\0b"], "is no path: it has a zero byte"),
        (["list", "~nobody-here/x"], "there is no home folder"),
        (["prune", "--days", "nan"], "'nan' is not a number of 0 or more"),
        (["prune", "--days", "-1"], "'-1' is not a number of 0 or more"),
        (["list", "--outputs", "a" * 300], "File name too long"),
    ],
)
def test_bad_arguments_are_a_sentence(capsys, arguments, sentence):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2 and sentence in capsys.readouterr().err


def test_answers_of_teachers_are_counted_and_pruned_when_no_run_used_them(
    outputs, cache_folder, capsys, monkeypatch
):
    folder = cache_folder / "answers"
    folder.mkdir(parents=True)
    (cache_folder / "photographs.images").write_bytes(b"123")
    for name, days in (("old", 8), ("new", 6)):
        path = folder / f"{name}.answers"
        path.write_bytes(b"a" * 5000)
        os.truncate(path, 10**8)  # sparse, as they are
        os.utime(path, (path.stat().st_mtime - days * disk.DAY,) * 2)
    use = disk.disk_use(outputs, cache_folder, folder)
    assert use["decoded photographs"][0] == 3
    assert 10_000 <= use["answers of teachers"][0] < 10**6
    monkeypatch.setattr("builtins.input", lambda question: "n")
    assert call(outputs, "prune") == 1 and len(left_in(folder)) == 2
    name = names(outputs, "finished")[0]
    assert call(outputs, "prune", "--yes", name) == 0 and len(left_in(folder)) == 2
    assert call(outputs, "prune", "--yes") == 0
    assert left_in(folder) == ["new.answers"]


def test_a_damaged_run_does_not_end_the_list_of_the_others(outputs, capsys):
    (config,) = (run.path / "config.json" for run in disk.stored_runs(outputs, ["*-kd-*"]))
    config.write_text('{"run": 5}')
    assert call(outputs, "show", "*") == 2
    out, err = capsys.readouterr()
    assert f"{config} is damaged (" in err and out.count("state ") == 2
