"""What the project promises outside its code: one list of dependencies, the README, the tables, a
light import."""

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from kdnb import grid, results
from kdnb.results import tables
from kdnb.runs.folder import RunFolder
from kdnb.runs.parameters import parse_value

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
CONDA = {
    "torch": {"pytorch"},
    "dask[distributed]": {"dask", "distributed"},
}  # what conda-forge calls otherwise
NOTEBOOKS = [
    "IPython",
    "papermill",
    "matplotlib",
    "seaborn",
    "ipywidgets",
    "jupyterlab",
    "dask",
    "distributed",
    "sklearn",
]


def python(code, cwd):
    return subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True)


def test_conda_and_pip_name_the_same_dependencies():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {f"python{project['requires-python']}"}
    for found in [*project["dependencies"], *project["optional-dependencies"]["test"]]:
        name, version = re.fullmatch(r"([\w\[\]-]+)(.*)", found).groups()
        wanted |= {other + version for other in CONDA.get(name, {name})}
    lines = re.findall(r"^ +- (\S+)(?: #.*)?$", (ROOT / "environment.yml").read_text(), re.M)
    assert sorted({*lines} - {"conda-forge", "pip", "pip:"}) == sorted(wanted) and len(
        lines
    ) == len(set(lines))


def test_the_first_screen_of_the_readme_has_the_two_commands():
    first_screen = "\n".join(README.splitlines()[:40])
    assert (
        "pip install -e . && papermill notebooks/distill.ipynb outputs/distill.ipynb\n"
        in first_screen
    )
    assert 'pip install -e ".[test]" && pytest\n' in first_screen


@pytest.mark.parametrize("name", ["first", "headline"])
def test_the_readme_shows_the_tables_that_results_ipynb_made(name):
    shown = README.split(f"<!-- outputs/tables/{name}.md -->\n")[1].split("<!-- end -->")[0]
    assert (
        shown.strip() == (ROOT / f"outputs/tables/{name}.md").read_text().split("\n", 1)[1].strip()
    )


def test_the_tables_are_those_of_the_records():
    for name, page in tables.pages(results.load_frame(ROOT / "outputs/records")).items():
        assert page == (ROOT / f"outputs/tables/{name}.md").read_text(), name


def test_the_accuracies_that_the_readme_says_in_words_are_those_of_the_records():
    runs = results.load_frame(ROOT / "outputs/records").query("dataset == 'cifar100'")
    few, full = (
        runs[runs["train_images"] == 12_500],
        runs[(runs["overrides"] == "") & (runs["network"] == "wrn_16_2")],
    )
    means = few.groupby("method")["top1"].mean()
    said = " ".join(README.split())
    told = [f"{means[method]:.1f}" for method in ("none", "kd", "dkd", "afd")]
    assert "goes from {} % to {} by KD, {} by DKD and {} by KD and AFD".format(*told) in said
    alone = full.query("method == 'none' and seed == 0").iloc[0]
    last = RunFolder(Path(alone["folder"])).metrics["test_top1"][-30:]
    assert (
        f"{alone['top1']:.2f} % after epoch 240, {last.min():.2f} to {last.max():.2f} over the last 30"
        in said
    )


def test_the_pieces_of_the_full_length_table_are_runs_of_full_length(tmp_path, monkeypatch):
    page = (ROOT / "outputs/tables/README.md").read_text()
    for name in ("resnet18_imagenet.safetensors", "outputs/teachers/wrn_40_2-cifar100.safetensors"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    counts = []
    for told, count in re.findall(r"^\| \d+ \| `(-p .+?)` \| (\d+) \|", page, re.M):
        words = iter(shlex.split(told.replace("-p ", "")))
        runs = grid(
            outputs="outputs",
            **{name: parse_value(value) for name, value in zip(words, words, strict=True)},
        )
        assert len(runs) == int(count) and not any(run.overrides or run.teacher_run for run in runs)
        counts.append(len(runs))
    assert counts == [1, 5, 4, 5, 5, 1, 1, 1, 1]


@pytest.mark.parametrize("path", ["README.md", "NOTES.md", "outputs/tables/README.md"])
def test_what_is_linked_to_is_there(path):
    links = re.findall(r"\]\(([^)#]+)\)", (ROOT / path).read_text())
    assert [
        link
        for link in links
        if not link.startswith("http") and not ((ROOT / path).parent / link).exists()
    ] == []


def test_the_python_code_of_the_readme_runs(tmp_path):
    blocks = re.findall(r"```python\n(.+?)```", README, re.S)
    (tmp_path / "kdnb").mkdir()  # as in the folder above a checkout
    done = python("\n".join(blocks), tmp_path)
    assert len(blocks) >= 3 and done.returncode == 0, done.stderr
    assert len(re.findall(r"'digits-\S+'", done.stdout)) == 6 and "-mine-" in done.stdout


def test_importing_it_needs_no_notebook():
    modules = "kdnb, kdnb.__main__, kdnb.analysis, kdnb.study"
    done = python(
        f"import sys; sys.modules.update(dict.fromkeys({NOTEBOOKS})); import {modules}", ROOT
    )
    assert done.returncode == 0, done.stderr
