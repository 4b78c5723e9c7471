"""The full-length table's path, rehearsed small: data and runs carried as a few files, pieces made
without Jupyter."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import picture
from helpers import same

from kdnb import Run, train
from kdnb.__main__ import main
from kdnb.results.__main__ import main as results_main
from kdnb.runs.checkpoint import load_checkpoint

ROOT = Path(__file__).resolve().parent.parent
BARE = """import sys
from importlib.machinery import PathFinder

LACKING = "psutil tabulate seaborn dask distributed papermill nbformat nbclient ipykernel ipywidgets IPython jupyterlab"

class Bare(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name in LACKING.split() else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Bare
"""
SAME = {"device": "cpu", "precision": "float32", "compile": "off", "threads": 1}
PIECE = SAME | {"dataset": "folder", "image_size": 64, "batch_size": 4, "epochs": 1}
TEACHER = PIECE | {"student": "wrn_16_1", "method": "none"}
STUDENT = PIECE | {"student": "wrn_10_1", "train_limit": 24}


@pytest.fixture
def photos(tmp_path):
    for number in range(120):
        path = (
            tmp_path
            / f"photos/{'train' if number < 96 else 'test'}/{'ab'[number % 2]}/{number}.jpg"
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(90, 70, seed=number).save(path)
    return tmp_path / "photos"


def carry(folder, target, pieces):
    """As docs/full-length.md says, in files of few bytes."""
    for place in (target, pieces):
        place.mkdir()
    said = f"tar c -C {folder} --exclude checkpoint.previous . | split -b 60k - {pieces}/shard."
    subprocess.run(f"{said} && cat {pieces}/shard.* | tar x -C {target}", shell=True, check=True)
    assert len(list(pieces.iterdir())) > 1


def start(machine, *words):
    """A Python without what only notebooks, the grid and the tables need."""
    (machine / "site").mkdir(exist_ok=True)
    (machine / "site/sitecustomize.py").write_text(BARE)
    env = {"PYTHONPATH": f"{machine / 'site'}:{ROOT}", "KDNB_DATA": str(machine / "data")}
    env |= {"KDNB_CACHE": str(machine / "cache"), "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, *words], cwd=machine, env=os.environ | env, **pipes)


def argv(machine, *more, **parameters):
    told = parameters | {"outputs": str(machine / "outputs")}
    return [*(word for name, value in told.items() for word in ("-p", name, str(value))), *more]


def piece(machine, **parameters):
    return start(machine, "-m", "kdnb", *argv(machine, **parameters))


def ended(process):
    out, err = process.communicate()
    return process.returncode, out + err


def test_pieces_that_are_stopped_carried_and_gone_on_with_fill_the_tables(
    photos, tmp_path, cache_folder, capsys, monkeypatch
):
    one, other, home = (tmp_path / name for name in ("one", "other", "home"))
    for machine in (one, other):
        machine.mkdir()
    carry(photos, one / "data", tmp_path / "shards")
    assert "No module named 'psutil'" in ended(start(one, "-c", "import psutil"))[1]

    interrupted = piece(one, **TEACHER)
    while not (line := interrupted.stdout.readline()).endswith("1 epochs of 24 steps\n"):
        assert line, interrupted.stderr.read()
    interrupted.send_signal(signal.SIGINT)
    code, said = ended(interrupted)
    assert code == 130 and "stopped after step" in said, said
    (folder,) = (one / "outputs/runs").iterdir()
    assert load_checkpoint(folder)["step"] >= 1
    monkeypatch.setenv("KDNB_DATA", str(one / "data"))
    assert main(argv(one, **TEACHER)) == 0
    said = capsys.readouterr().out
    assert "going on after epoch 0, step" in said and "epoch 1/1" in said

    taught = STUDENT | {"method": "afd", "teacher": "wrn_16_1", "teacher_weights": str(folder)}
    assert main(argv(one, "--minutes", "0", **taught)) == 3
    assert (
        capsys.readouterr().err
        == "stopped after step 1 of epoch 1; run it again to go on from there\n"
    )
    carry(
        one / "outputs", other / "outputs", tmp_path / "back"
    )  # to a machine that was never there
    (one / "data").rename(other / "data")
    code, said = ended(piece(other, **taught | {"method": ["none", "afd"], "seed": [0, 1]}))
    assert (
        code == 0 and "going on after epoch 0, step 1" in said and said.count("epoch 1/1") == 4
    ), said

    assert results_main([str(one), str(other), "--outputs", str(home)]) == 0
    said = capsys.readouterr().out
    assert (
        said.count("new: folder-wrn_") == 5 and said.count("not finished: folder-wrn_10_1-afd") == 1
    )
    assert len(list(home.glob("records/*/result.json"))) == 5 and not list(
        home.rglob("*.safetensors")
    )
    page = (home / "tables/short-runs.md").read_text()
    assert (
        "wrn_16_1 (folder)" in page and page.count("| 2       |") == 2
    )  # two seeds of each method

    where = {"data_root": str(photos), "outputs": str(tmp_path / "undisturbed")}
    alone, student = Run(**TEACHER | where), Run(**taught | where)
    assert train(alone).weights.read_bytes() == (folder / "student.safetensors").read_bytes()
    assert same(train(student), Run.open(other / "outputs/runs" / student.name))


def test_a_run_that_cannot_be_made_does_not_stop_those_after_it(tmp_path, capsys):
    small = {
        "student": "wrn_10_1",
        "method": "none",
        "epochs": 1,
        "image_size": 8,
        "train_limit": [10, 50],
    }
    assert main(argv(tmp_path, **SAME, **small)) == 2  # of 10 images there is no batch of 25
    out, err = capsys.readouterr()
    assert "failed: digits-wrn_10_1-none-" in err and "epoch 1/1" in out
    assert len(list(tmp_path.glob("outputs/runs/*/result.json"))) == 1


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["-p", "epohcs", "3"], "unknown parameter 'epohcs': choose one of batch_size"),
        (["-p", "seed", "0-4"], "seed is '0-4': it must be a whole number"),
        (["-p", "method", "krd"], "unknown method 'krd'"),
        (["--minute", "3"], "unrecognized arguments: --minute 3"),
    ],
)
def test_what_cannot_be_is_said_and_ends_with_2(tmp_path, capsys, argv, sentence):
    with pytest.raises(SystemExit) as end:
        main(["-p", "outputs", str(tmp_path / "o"), *argv])
    assert (
        end.value.code == 2
        and sentence in capsys.readouterr().err
        and not (tmp_path / "o").exists()
    )


def test_a_background_job_hears_an_interrupt_also_between_two_runs():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a shell starts it
    try:
        with pytest.raises(SystemExit):
            main(["-p", "seed", "[]"])
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
