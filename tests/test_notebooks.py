"""Every notebook is committed clean and runs headless; papermill's parameters reach it, misspelt
ones stop it."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from base64 import b64decode
from html import unescape
from io import BytesIO
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
from conftest import picture
from nbconvert import HTMLExporter
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook
from PIL import Image

from kdnb import InputError, Run, analysis

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[a-z]*.ipynb"))
TINY = {"student": "wrn_10_1", "teacher": "wrn_10_1", "batch_size": 25, "image_size": 8}
QUICK = TINY | {"epochs": 1, "teacher_epochs": 1}
LINE = re.compile(
    r"(\w+): (\w+) = (?:where\(default=)?(.+?)\)?  # (.+)"
)  # name, type, default, why


def cells(path, kind="code"):
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == kind]


def said(lines):
    """{name: (type, default, comment)} of a parameters cell, or of a dataclass."""
    return {
        found[1]: found.groups()[1:] for line in lines if (found := LINE.fullmatch(line.strip()))
    }


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
class TestEvery:
    def test_it_is_clean_and_prose_comes_first(self, path):
        assert all(not cell["outputs"] and cell["execution_count"] is None for cell in cells(path))
        kinds = [cell["cell_type"] for cell in json.loads(path.read_text())["cells"]]
        assert kinds[:2] == ["markdown", "markdown"] or kinds[:2] == ["markdown", "code"]
        assert kinds.count("markdown") >= kinds.count("code") - 1
        for cell in cells(path):
            tree = ast.parse("".join(cell["source"]))
            assert not any(
                isinstance(node, ast.FunctionDef | ast.Lambda | ast.ClassDef)
                for node in ast.walk(tree)
            )

    def test_its_parameters_are_those_of_run_to_the_letter(self, path):
        tagged = [
            i
            for i, cell in enumerate(cells(path))
            if "parameters" in cell["metadata"].get("tags", [])
        ]
        lines = "".join(cells(path)[0]["source"]).splitlines()
        told, fields = said(lines), said((ROOT / "kdnb/runs/run.py").read_text().splitlines())
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


def papermill(notebook, output, **parameters):
    """The process, when it has ended; numbers and True reach the notebook as such."""
    words = [word for name, value in parameters.items() for word in ("-p", name, str(value))]
    command = [
        sys.executable,
        "-m",
        "papermill",
        notebook,
        str(output),
        *words,
        "--no-progress-bar",
    ]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT / "notebooks", env=env, capture_output=True, text=True)


def run_cells(notebook, **parameters):
    """What the cells of a notebook do with papermill's parameters, here, without the seconds that a
    kernel takes."""
    namespace = {"In": [""]}
    for cell in parameterize_notebook(notebook, parameters).cells:
        if cell.cell_type == "code":
            namespace["In"].append(cell.source)
            exec(cell.source, namespace)


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


def test_attention_draws_the_newest_run(outputs, tmp_path):
    folder = next(path.parent for path in outputs.glob("runs/*/history.npz"))
    for named in ("", folder.name, str(folder)):
        found = analysis.run_from_notebook({"run": named, "outputs": str(outputs), "In": []})
        assert found.folder == folder and found.label == "afd"
    picture(40, 30, seed=0).save(tmp_path / "own.png")
    own = {"outputs": outputs, "threads": 1, "photograph": tmp_path / "own.png"}
    done = papermill("attention.ipynb", tmp_path / "out.ipynb", **own)
    assert done.returncode == 0 and pictures(tmp_path / "out.ipynb") >= 19, done.stderr
    kept = {
        path.name.removesuffix(f"-{folder.name}.png") for path in outputs.glob("runs/figures/*.png")
    }
    assert kept == {"links-and-likeness", "maps", "map-distances"}  # boxes are Stanford40's alone


@pytest.mark.parametrize(
    ("name", "parameters", "figures"),
    [
        ("data", {"image_size": 8}, 4),
        ("methods", QUICK | {"methods": "kd,at", "seeds": 1}, 4),
        ("speed", TINY, 1),
        ("results", {"source": "records"}, 3),
    ],
)
def test_the_others_draw_their_pictures(tmp_path, name, parameters, figures):
    others = shutil.ignore_patterns(
        "cifar100-*", "stanford40-*", "*epochs=20*"
    )  # whose pictures take time
    shutil.copytree(ROOT / "outputs/records", tmp_path / "records", ignore=others)
    where = {} if name == "data" else {"outputs": str(tmp_path)}
    plt.close("all")
    run_cells(load_notebook_node(str(ROOT / f"notebooks/{name}.ipynb")), **parameters, **where)
    assert len(plt.get_fignums()) == figures
    plt.close("all")
    if name == "speed":
        assert [path.suffix for path in sorted(tmp_path.glob("runs/*/speed-digits*"))] == [
            ".png",
            ".md",
        ]
    if name == "results":
        assert {path.stem for path in (tmp_path / "tables").iterdir()} == {
            "first",
            "headline",
            "results",
            "short-runs",
        }
        assert (
            list(tmp_path.glob("figures/learning-curves-digits*.png"))
            and (tmp_path / "figures/README.md").is_file()
        )


def test_an_exported_page_has_sharp_figures_with_alternative_text(outputs):
    page = HTMLExporter().from_filename(outputs / "distill.ipynb")[0]
    told = "Mean attention of each teacher block on the student's blocks – digits, wrn_10_1, afd"
    (image,) = (image for image in re.findall(r"<img[^>]*>", page) if told in unescape(image))
    assert "teacher block; student block" in unescape(image) and "No description" not in page
    made = [
        output
        for cell in cells(outputs / "distill.ipynb")
        for output in cell["outputs"]
        if "data" in output
    ]
    (output,) = (output for output in made if told in "".join(output["data"].get("text/plain", "")))
    (kind,) = {"image/png", "image/jpeg"} & output["data"].keys()
    width = Image.open(BytesIO(b64decode(output["data"][kind]))).width
    assert f'width="{width // 2}"' in image and output["metadata"][kind]["alt"].startswith(told)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
@pytest.mark.parametrize("by_hand", [False, True])
def test_a_misspelt_parameter_stops_before_anything_trains(path, by_hand, tmp_path):
    notebook, wrong = load_notebook_node(str(path)), {"otuputs": str(tmp_path)}
    if by_hand:
        first = next(cell for cell in notebook.cells if cell.cell_type == "code")
        first.source, wrong = first.source + "\notuputs: str = ''", {}
    with pytest.raises(InputError, match=r"unknown parameter 'otuputs': choose from \w+"):
        run_cells(notebook, **wrong)
