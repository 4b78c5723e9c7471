"""Every notebook is committed clean and runs headless; papermill's parameters reach it, misspelt ones stop it."""

import ast
import json
import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from kdnb.experiment import Experiment

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[a-z]*.ipynb"))
QUICK = ["-p", "epochs", "1", "-p", "train_limit", "128", "-p", "teacher", "wrn_16_1", "-p", "student", "wrn_10_1"]


def cells(path, kind="code"):
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == kind]


def parameters(path):
    tagged = [cell for cell in cells(path) if "parameters" in cell["metadata"].get("tags", [])]
    assert len(tagged) == 1 and tagged[0] is cells_first(path, tagged[0])
    return "".join(tagged[0]["source"])


def cells_first(path, cell):
    return cell if cells(path)[0] == cell else None


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
class TestEvery:
    def test_no_outputs(self, path):
        assert all(not cell["outputs"] and cell["execution_count"] is None for cell in cells(path))

    def test_one_parameters_cell_comes_first_and_explains_itself(self, path):
        lines = [line for line in parameters(path).splitlines() if line.strip()]
        assert all(
            "#" in line and ":" in line.split("=")[0] for line in lines
        )  # typed, with a comment for --help-notebook

    def test_prose_before_code_and_no_definitions(self, path):
        notebook = json.loads(path.read_text())["cells"]
        assert notebook[0]["cell_type"] == "markdown"
        assert len(cells(path, "markdown")) >= len(cells(path)) - 1
        for cell in cells(path):
            tree = ast.parse("".join(cell["source"]))
            assert not any(isinstance(node, ast.FunctionDef | ast.ClassDef) for node in ast.walk(tree))


def test_distill_has_the_parameters_of_an_experiment():
    assigned = {
        node.target.id: (node.annotation.id, ast.literal_eval(node.value))
        for node in ast.parse(parameters(ROOT / "notebooks" / "distill.ipynb")).body
    }
    expected = {field.name: (type(field.default).__name__, field.default) for field in fields(Experiment)}
    assert assigned == expected


def papermill(notebook, output, *arguments, cwd=ROOT):
    command = [sys.executable, "-m", "papermill", str(notebook), str(output), *map(str, arguments), "--no-progress-bar"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


def pictures(path):
    return [o for cell in cells(path) for o in cell["outputs"] if "image/png" in o.get("data", {})]


def test_distill_runs_headless_from_its_own_folder(tmp_path):
    done = papermill("distill.ipynb", tmp_path / "out.ipynb", *QUICK, "-p", "outputs", tmp_path, cwd=ROOT / "notebooks")
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "runs").glob("*/result.json"))) == 3
    assert len(pictures(tmp_path / "out.ipynb")) == 3  # images, learning curves, links
    text = (tmp_path / "out.ipynb").read_text()
    assert "epoch 1/1" in text and "it/s" not in text  # lines, no bars


def test_a_misspelt_parameter_stops_before_anything_trains(tmp_path):
    done = papermill("notebooks/distill.ipynb", tmp_path / "out.ipynb", "-p", "epohcs", "1", "-p", "outputs", tmp_path)
    assert done.returncode != 0
    assert "InputError: unknown parameter 'epohcs': choose from dataset" in done.stderr
    assert not (tmp_path / "runs").exists()
