"""A small rehearsal of docs/full-length.md: data and runs are carried as a few files, and pieces
run without Jupyter."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import picture

from kdnb.__main__ import main
from kdnb.results.__main__ import main as results_main
from kdnb.runs.checkpoint import load_checkpoint

ROOT = Path(__file__).resolve().parent.parent
# A Python without the packages that only notebooks, the grid and the tables need.
BARE = """import sys
from importlib.machinery import PathFinder

LACKING = "psutil tabulate seaborn dask distributed papermill nbformat nbclient ipykernel"
LACKING += " ipywidgets IPython jupyterlab"

class Bare(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name in LACKING.split() else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Bare
"""
ON_CPU = {"device": "cpu", "precision": "float32", "compile": "off", "threads": 1}
PIECE = ON_CPU | {"dataset": "folder", "image_size": 64, "batch_size": 4, "epochs": 1}
TEACHER = PIECE | {"student": "wrn_16_1", "method": "none"}
STUDENT = PIECE | {"student": "wrn_10_1", "train_limit": 24}


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    for number in range(120):
        split = "train" if number < 96 else "test"
        path = folder / split / "ab"[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(90, 70, seed=number).save(path)
    return folder


def carry(folder, target, shards):
    """Carry a folder as docs/full-length.md says, in files of few bytes."""
    for place in (target, shards):
        place.mkdir()
    pack = f"tar c -C {folder} --exclude checkpoint.previous . | split -b 60k - {shards}/shard."
    unpack = f"cat {shards}/shard.* | tar x -C {target}"
    subprocess.run(f"{pack} && {unpack}", shell=True, check=True)
    assert len(list(shards.iterdir())) > 1


def start(machine, *words):
    """Start a bare Python in the folder of a machine."""
    (machine / "site").mkdir(exist_ok=True)
    (machine / "site/sitecustomize.py").write_text(BARE)
    env = {
        "PYTHONPATH": f"{machine / 'site'}:{ROOT}",
        "KDNB_DATA": str(machine / "data"),
        "KDNB_CACHE": str(machine / "cache"),
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.Popen(
        [sys.executable, *words],
        cwd=machine,
        env=os.environ | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def argv(machine, *more, **parameters):
    parameters["outputs"] = machine / "outputs"
    words = [word for name, value in parameters.items() for word in ("-p", name, str(value))]
    return [*words, *more]


def start_piece(machine, **parameters):
    return start(machine, "-m", "kdnb", *argv(machine, **parameters))


def wait(process):
    out, err = process.communicate()
    return process.returncode, out + err


@pytest.mark.slow
def test_interrupted_and_carried_pieces_resume_and_fill_the_tables(
    photos, tmp_path, cache_folder, capsys, monkeypatch
):
    one, other, home = (tmp_path / name for name in ("one", "other", "home"))
    for machine in (one, other):
        machine.mkdir()
    carry(photos, one / "data", tmp_path / "shards")
    _, error = wait(start(one, "-c", "import psutil"))
    assert "No module named 'psutil'" in error

    interrupted = start_piece(one, **TEACHER)
    while not (line := interrupted.stdout.readline()).endswith("1 epoch of 24 steps\n"):
        assert line, interrupted.stderr.read()
    interrupted.send_signal(signal.SIGINT)
    code, output = wait(interrupted)
    assert code == 130, output
    assert "stopped after step" in output
    (folder,) = (one / "outputs/runs").iterdir()
    assert load_checkpoint(folder)["step"] >= 1
    monkeypatch.setenv("KDNB_DATA", str(one / "data"))
    assert main(argv(one, **TEACHER)) == 0
    output = capsys.readouterr().out
    assert "resuming after epoch 0, step" in output
    assert "epoch 1/1" in output

    distilled = STUDENT | {"method": "afd", "teacher": "wrn_16_1", "teacher_weights": str(folder)}
    assert main(argv(one, "--minutes", "0", **distilled)) == 3
    assert "stopped after step 1 of epoch 1; run it again" in capsys.readouterr().err
    carry(one / "outputs", other / "outputs", tmp_path / "back")  # to a machine that is new to it
    (one / "data").rename(other / "data")
    grid = distilled | {"method": ["none", "afd"], "seed": [0, 1]}
    code, output = wait(start_piece(other, **grid))
    assert code == 0, output
    assert "resuming after epoch 0, step 1" in output
    assert output.count("epoch 1/1") == 4

    assert results_main([str(one), str(other), "--outputs", str(home)]) == 0
    output = capsys.readouterr().out
    assert output.count("new: folder-wrn_") == 5
    assert output.count("not finished: folder-wrn_10_1-afd") == 1
    assert len(list(home.glob("records/*/result.json"))) == 5
    assert not list(home.rglob("*.safetensors"))
    page = (home / "tables/short-runs.md").read_text()
    assert "wrn_16_1 (folder)" in page
    assert page.count("| 2       |") == 2  # two seeds of each method


def test_a_run_that_cannot_be_trained_does_not_stop_those_after_it(tmp_path, capsys):
    parameters = ON_CPU | {
        "student": "wrn_10_1",
        "method": "none",
        "epochs": 1,
        "image_size": 8,
        "lr": [1e9, 0.05],  # the first diverges
        "train_limit": 50,
    }
    assert main(argv(tmp_path, **parameters)) == 2
    out, err = capsys.readouterr()
    assert "failed: digits-wrn_10_1-none-" in err
    assert "epoch 1/1" in out
    assert len(list(tmp_path.glob("outputs/runs/*/result.json"))) == 1


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["-p", "epohcs", "3"], "unknown parameter 'epohcs'"),
        (["-p", "seed", "0-4"], "seed is '0-4': it must be a whole number"),
        (["--minute", "3"], "unrecognized arguments: --minute 3"),
    ],
)
def test_bad_arguments_end_with_2_and_a_sentence(tmp_path, capsys, words, sentence):
    with pytest.raises(SystemExit) as end:
        main(["-p", "outputs", str(tmp_path / "o"), *words])
    assert end.value.code == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_a_background_job_can_be_interrupted_between_two_runs():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a shell starts it
    try:
        with pytest.raises(SystemExit):
            main(["-p", "seed", "[]"])
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
