"""Every notebook is committed clean and runs headless; papermill's parameters reach it, misspelt
ones stop it."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tokenize
from base64 import b64decode
from html import unescape
from io import BytesIO, StringIO
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
NOTEBOOKS = sorted(
    path for path in (ROOT / "notebooks").glob("[a-z]*.ipynb") if not path.name.startswith("out")
)
TINY = {"student": "wrn_10_1", "teacher": "wrn_10_1", "batch_size": 25, "image_size": 8}
QUICK = TINY | {"epochs": 1, "teacher_epochs": 1}
# Parameters that are no fields of Run.
OWN_PARAMETERS = {
    "results": {"outputs", "source"},
    "methods": {"methods", "seeds"},
    "attention": {"run", "photograph", "teacher_weights"},
    "deploy": {"run", "photographs", "teacher_weights"},
    "probe": {"run", "target", "probe_images", "teacher_weights"},
}


def cells(path, kind="code"):
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == kind]


def declarations(source, statements):
    """{name: (type, default, comment)} of a parameters cell, or of the fields of a dataclass."""
    tokens = tokenize.generate_tokens(StringIO(source).readline)
    comments = {token.start[0]: token.string for token in tokens if token.type == tokenize.COMMENT}
    declared = {}
    for node in statements:
        if not isinstance(node, ast.AnnAssign):
            continue
        default = node.value
        if isinstance(default, ast.Call):  # where(default="")
            default = next((word.value for word in default.keywords if word.arg == "default"), None)
        lines = range(node.lineno, node.end_lineno + 1)
        comment = " ".join(comments[line] for line in lines if line in comments)
        value = ast.unparse(default) if default else ""
        declared[node.target.id] = (node.annotation.id, value, comment)
    return declared


def declared_fields():
    """The declarations of the fields of Run."""
    source = (ROOT / "kdnb/runs/run.py").read_text()
    (run,) = (node for node in ast.parse(source).body if isinstance(node, ast.ClassDef))
    return declarations(source, run.body)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
class TestEvery:
    def test_it_is_clean_and_prose_comes_first(self, path):
        assert all(not cell["outputs"] and cell["execution_count"] is None for cell in cells(path))
        kinds = [cell["cell_type"] for cell in json.loads(path.read_text())["cells"]]
        assert kinds[0] == "markdown"
        assert kinds[1] in ("markdown", "code")
        assert kinds.count("markdown") >= kinds.count("code") - 1
        for cell in cells(path):
            tree = ast.parse("".join(cell["source"]))
            definitions = ast.FunctionDef | ast.Lambda | ast.ClassDef
            assert not [node for node in ast.walk(tree) if isinstance(node, definitions)]

    def test_its_parameters_are_those_of_run_to_the_letter(self, path):
        tags = [cell["metadata"].get("tags", []) for cell in cells(path)]
        assert [i for i, names in enumerate(tags) if "parameters" in names] == [0]
        source = "".join(cells(path)[0]["source"])
        statements = ast.parse(source).body
        parameters = declarations(source, statements)
        assert len(parameters) == len(statements)
        assert all(comment for _, _, comment in parameters.values())
        fields = declared_fields()
        own = OWN_PARAMETERS.get(path.stem, set())
        for name in parameters.keys() - own:
            assert parameters[name] == fields[name]
        if path.stem in ("distill", "train"):
            assert list(parameters) == list(Run.parameters())


# Headless


def papermill(notebook, output, **parameters):
    """The finished process; numbers and True reach the notebook as such."""
    words = [word for name, value in parameters.items() for word in ("-p", name, str(value))]
    command = [sys.executable, "-m", "papermill", notebook, str(output), *words]
    return subprocess.run(
        [*command, "--no-progress-bar"],
        cwd=ROOT / "notebooks",
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )


def run_cells(notebook, **parameters):
    """Run the cells of a notebook with papermill's parameters in this process: a kernel would take
    seconds to start."""
    namespace = {"In": [""]}
    for cell in parameterize_notebook(notebook, parameters).cells:
        if cell.cell_type == "code":
            namespace["In"].append(cell.source)
            exec(cell.source, namespace)


def count_pictures(path):
    outputs = [output for cell in cells(path) for output in cell["outputs"]]
    return sum(
        bool({"image/png", "image/jpeg"} & set(output.get("data", {}))) for output in outputs
    )


@pytest.fixture(scope="session")
def outputs(tmp_path_factory):
    """An outputs folder in which distill.ipynb has run, from its own folder, with tiny networks."""
    folder = tmp_path_factory.mktemp("outputs")
    done = papermill("distill.ipynb", folder / "distill.ipynb", outputs=folder, **QUICK)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
def test_distill_makes_three_networks_and_three_pictures(outputs):
    assert len(list((outputs / "runs").glob("*/result.json"))) == 3
    assert count_pictures(outputs / "distill.ipynb") == 3  # images, learning curves, links
    text = (outputs / "distill.ipynb").read_text()
    assert "epoch 1/1" in text
    assert "it/s" not in text  # lines, no bars


@pytest.mark.slow
def test_attention_draws_the_newest_run(outputs, tmp_path):
    folder = next(path.parent for path in outputs.glob("runs/*/history.npz"))
    for name in ("", folder.name, str(folder)):
        run = analysis.run_from_notebook({"run": name, "outputs": str(outputs), "In": []})
        assert run.folder == folder
        assert run.label == "afd"
    picture(40, 30, seed=0).save(tmp_path / "own.png")
    parameters = {"outputs": outputs, "threads": 1, "photograph": tmp_path / "own.png"}
    done = papermill("attention.ipynb", tmp_path / "out.ipynb", **parameters)
    assert done.returncode == 0, done.stderr
    assert count_pictures(tmp_path / "out.ipynb") >= 19
    figures = outputs.glob("runs/figures/*.png")
    names = {path.name.removesuffix(f"-{folder.name}.png") for path in figures}
    # Boxes are Stanford40's alone.
    assert names == {"links-and-likeness", "maps", "map-distances"}


@pytest.mark.slow
def test_an_exported_page_has_sharp_figures_with_alternative_text(outputs):
    page = HTMLExporter().from_filename(outputs / "distill.ipynb")[0]
    title = "Mean attention of each teacher block on the student's blocks – digits, wrn_10_1, afd"
    (image,) = (tag for tag in re.findall(r"<img[^>]*>", page) if title in unescape(tag))
    assert "teacher block; student block" in unescape(image)
    assert "No description" not in page
    displayed = [
        output
        for cell in cells(outputs / "distill.ipynb")
        for output in cell["outputs"]
        if title in "".join(output.get("data", {}).get("text/plain", ""))
    ]
    (output,) = displayed
    (kind,) = {"image/png", "image/jpeg"} & output["data"].keys()
    width = Image.open(BytesIO(b64decode(output["data"][kind]))).width
    assert f'width="{width // 2}"' in image
    assert output["metadata"][kind]["alt"].startswith(title)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "parameters", "count"),
    [("deploy", {"photographs": "own"}, 2), ("probe", {"target": "digits"}, 1)],
)
def test_a_finished_run_is_deployed_and_probed(outputs, tmp_path, name, parameters, count):
    (tmp_path / "own").mkdir()
    picture(40, 30, seed=0).save(tmp_path / "own/photograph.png")
    if "photographs" in parameters:
        parameters = {"photographs": tmp_path / "own"}
    done = papermill(f"{name}.ipynb", tmp_path / "out.ipynb", outputs=outputs, **parameters)
    assert done.returncode == 0, done.stderr
    assert count_pictures(tmp_path / "out.ipynb") == count
    text = (tmp_path / "out.ipynb").read_text()
    assert all(role in text for role in ("teacher", "baseline", "distilled"))
    assert ("photograph.png" in text) == (name == "deploy")


@pytest.fixture
def some_records(tmp_path):
    """An outputs folder with the records of a few methods, whose pictures take little time."""
    for name in ("none-seed", "kd-from=wrn_16_2-seed", "afd-from=wrn_16_2-seed"):
        for folder in (ROOT / "outputs/records").glob(f"digits-wrn_16_1-{name}=*"):
            shutil.copytree(folder, tmp_path / "records" / folder.name)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "parameters", "count"),
    [
        ("data", {"image_size": 8}, 4),
        ("methods", QUICK | {"methods": "kd,at", "seeds": 1}, 4),
        ("speed", TINY, 1),
        ("results", {"source": "records"}, 3),
    ],
)
def test_the_others_draw_their_pictures(some_records, name, parameters, count):
    outputs = some_records
    if name != "data":
        parameters = parameters | {"outputs": str(outputs)}
    plt.close("all")
    run_cells(load_notebook_node(str(ROOT / f"notebooks/{name}.ipynb")), **parameters)
    assert len(plt.get_fignums()) == count
    plt.close("all")
    if name == "speed":
        files = sorted(outputs.glob("runs/*/speed-digits*"))
        assert [path.suffix for path in files] == [".png", ".md"]
    if name == "results":
        pages = {path.stem for path in (outputs / "tables").iterdir()}
        assert pages == {"headline", "results", "short-runs"}
        assert list(outputs.glob("figures/learning-curves-digits*.png"))
        assert (outputs / "figures/README.md").is_file()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_misspelt_parameter_stops_before_anything_trains(path, tmp_path):
    with pytest.raises(InputError, match="unknown parameter 'otuputs'"):
        run_cells(load_notebook_node(str(path)), otuputs=str(tmp_path))
