"""Every notebook is committed clean and runs headless; papermill's parameters reach it, misspelt ones stop it."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from base64 import b64decode
from concurrent.futures import ThreadPoolExecutor
from html import unescape
from io import BytesIO
from pathlib import Path

import nbformat
import pytest
from conftest import picture
from nbconvert import HTMLExporter
from nbformat.v4 import new_code_cell, new_notebook
from PIL import Image

from kdnb import Run, analysis

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[a-z]*.ipynb"))
TINY = {"student": "wrn_10_1", "teacher": "wrn_10_1", "batch_size": 25, "image_size": 8}
QUICK = TINY | {"epochs": 1, "teacher_epochs": 1}
LINE = re.compile(r"(\w+): (\w+) = (?:field\(default=)?(.+?)(?:, compare=False\))?  # (.+)")  # name, type, default, why


def cells(path, kind="code"):
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == kind]


def said(lines):
    """{name: (type, default, comment)} of a parameters cell, or of a dataclass."""
    return {found[1]: found.groups()[1:] for line in lines if (found := LINE.fullmatch(line.strip()))}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
class TestEvery:
    def test_it_is_clean_and_prose_comes_first(self, path):
        assert all(not cell["outputs"] and cell["execution_count"] is None for cell in cells(path))
        kinds = [cell["cell_type"] for cell in json.loads(path.read_text())["cells"]]
        assert kinds[:2] == ["markdown", "markdown"] or kinds[:2] == ["markdown", "code"]
        assert kinds.count("markdown") >= kinds.count("code") - 1
        for cell in cells(path):
            tree = ast.parse("".join(cell["source"]))
            assert not any(isinstance(node, ast.FunctionDef | ast.Lambda | ast.ClassDef) for node in ast.walk(tree))

    def test_its_parameters_are_those_of_run_to_the_letter(self, path):
        tagged = [i for i, cell in enumerate(cells(path)) if "parameters" in cell["metadata"].get("tags", [])]
        lines = "".join(cells(path)[0]["source"]).splitlines()
        told, fields = said(lines), said((ROOT / "kdnb/run.py").read_text().splitlines())
        fields = {name: fields[name] for name in Run.parameters()}
        assert tagged == [0] and len(told) == len(lines)
        own = {"results": {"outputs", "source"}, "methods": {"methods", "seeds"}}
        own["attention"] = {"run", "photograph", "teacher_weights"}
        extra = own.get(path.stem, set())
        assert {name: told[name] for name in told if name not in extra} == {
            name: fields[name] for name in fields if name in told and name not in extra
        }
        assert path.stem not in ("distill", "train") or list(told) == list(fields)


# Headless


def papermill(notebook, output, cwd=ROOT / "notebooks", **parameters):
    """The process, when it has ended; numbers and True reach the notebook as such."""
    words = [word for name, value in parameters.items() for word in ("-p", name, str(value))]
    command = [sys.executable, "-m", "papermill", str(notebook), str(output), *words, "--no-progress-bar"]
    return subprocess.run(command, cwd=cwd, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)


def pictures(path):
    kinds = [set(output.get("data", {})) for cell in cells(path) for output in cell["outputs"]]
    return sum(bool(kind & {"image/png", "image/jpeg"}) for kind in kinds)


@pytest.fixture(scope="session")
def outputs(tmp_path_factory):
    """An outputs folder in which distill.ipynb has run, from its own folder, with tiny networks."""
    folder = tmp_path_factory.mktemp("outputs")
    done = papermill("distill.ipynb", folder / "distill.ipynb", outputs=folder, **QUICK)
    assert done.returncode == 0, done.stderr
    return folder


def test_distill_makes_three_networks_and_three_pictures(outputs):
    assert len(list((outputs / "runs").glob("*/result.json"))) == 3
    assert pictures(outputs / "distill.ipynb") == 3  # images, learning curves, links
    text = (outputs / "distill.ipynb").read_text()
    assert "epoch 1/1" in text and "it/s" not in text  # lines, no bars


def test_the_others_run_on_what_it_left(outputs, tmp_path):
    shutil.copytree(outputs / "runs", tmp_path / "runs")
    others = shutil.ignore_patterns("cifar100-*", "stanford40-*", "*epochs=20*")  # whose pictures take time
    shutil.copytree(ROOT / "outputs/records", tmp_path / "records", ignore=others)
    folder = next(path.parent for path in tmp_path.glob("runs/*/history.npz"))
    for named in ("", folder.name, str(folder)):
        found = analysis.run_from_notebook({"run": named, "outputs": str(tmp_path), "In": []})
        assert found.folder == folder and found.label == "afd"
    picture(40, 30, seed=0).save(tmp_path / "own.png")
    own = {"outputs": tmp_path, "threads": 1, "photograph": tmp_path / "own.png"}
    jobs = {
        "attention": ("attention.ipynb", own),  # the newest run
        "train": ("train.ipynb", QUICK | {"method": "none", "outputs": tmp_path}),  # finished before
        "data": ("data.ipynb", {"image_size": 8}),
        "results": ("results.ipynb", {"outputs": tmp_path, "source": "records"}),
        "methods": ("methods.ipynb", QUICK | {"methods": "kd,at", "seeds": 1, "outputs": tmp_path}),
        "speed": ("speed.ipynb", TINY | {"outputs": tmp_path}),
    }

    def execute(job):
        notebook, parameters = jobs[job]
        return papermill(notebook, tmp_path / f"{job}.ipynb", **parameters)

    with ThreadPoolExecutor(2) as pool:
        failed = {job: done.stderr for job, done in zip(jobs, pool.map(execute, jobs), strict=True) if done.returncode}
    assert failed == {}
    drawn = {job: pictures(tmp_path / f"{job}.ipynb") for job in jobs}
    assert drawn["attention"] >= 19 and drawn["train"] == 1 and drawn["data"] >= 4 and drawn["speed"] == 1
    assert drawn["methods"] == 4
    assert "finished before" in (tmp_path / "train.ipynb").read_text()
    names = {"first.md", "headline.md", "results.md", "short-runs.md"}
    made = {path.name for path in (tmp_path / "tables").iterdir()}
    assert names == made and "wrn_10_1" not in (tmp_path / "tables/headline.md").read_text()
    assert list(tmp_path.glob("runs/figures/speed-digits*.png")) and list(
        tmp_path.glob("figures/learning-curves-digits*.png")
    )


def test_an_exported_page_has_sharp_figures_with_alternative_text(tmp_path):
    code = "from kdnb import plots\nplots.link_matrix(plots.links.np.eye(1), *[[('1.1', (8, 4, 4))]] * 2, 'my run');"
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    notebook = new_notebook(cells=[new_code_cell(code)], metadata=kernel)
    nbformat.write(notebook, tmp_path / "in.ipynb")
    assert papermill(tmp_path / "in.ipynb", tmp_path / "out.ipynb").returncode == 0
    (output,) = nbformat.read(tmp_path / "out.ipynb", 4).cells[0].outputs
    page = HTMLExporter().from_filename(tmp_path / "out.ipynb")[0]
    (image,) = re.findall(r"<img[^>]*>", page)
    told = "Mean attention of each teacher block on the student's blocks – my run; teacher block; student block"
    assert told in unescape(image) and "No description" not in page
    width = Image.open(BytesIO(b64decode(output.data["image/png"]))).width
    assert f'width="{width // 2}"' in image and output.metadata["image/png"]["alt"].startswith(told)


def test_a_misspelt_parameter_stops_before_anything_trains(tmp_path):
    source = (ROOT / "notebooks/distill.ipynb").read_text()
    (tmp_path / "typed.ipynb").write_text(source.replace('"epochs: int = 0', '"epohcs: int = 1'))  # by hand
    jobs = ("distill.ipynb", {"epohcs": 1}), (tmp_path / "typed.ipynb", {})
    with ThreadPoolExecutor(2) as pool:
        ended = pool.map(
            lambda job: papermill(job[0], tmp_path / f"{len(job[1])}.ipynb", outputs=tmp_path, **job[1]), jobs
        )
    for done in ended:
        assert done.returncode != 0 and "InputError: unknown parameter 'epohcs': choose from dataset" in done.stderr
    assert not (tmp_path / "runs").exists()
