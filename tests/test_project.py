"""What the project promises outside its code: one list of dependencies, the README's commands, a light import."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from kdnb import results, tables

ROOT = Path(__file__).resolve().parent.parent


def test_conda_and_pip_name_the_same_dependencies():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pip = set(project["dependencies"]) | set(project["optional-dependencies"]["test"])
    lines = [line.strip() for line in (ROOT / "environment.yml").read_text().splitlines()]
    conda = {line.removeprefix("- ").split(" #")[0] for line in lines if line.startswith("- ")}
    conda -= {"conda-forge", "pip", "pip:", "-e ."}
    python = {name for name in conda if name.startswith("python>")}
    assert python == {f"python{project['requires-python']}"}
    # conda-forge calls torch pytorch
    assert {name.replace("pytorch", "torch") for name in conda - python} == pip


def test_the_first_screen_of_the_readme_has_the_two_commands():
    first_screen = "\n".join((ROOT / "README.md").read_text().splitlines()[:40])
    assert "pip install -e . && papermill notebooks/distill.ipynb outputs/distill.ipynb\n" in first_screen
    assert 'pip install -e ".[test]" && pytest\n' in first_screen


def test_the_readme_shows_the_table_that_results_ipynb_made():
    readme = (ROOT / "README.md").read_text()
    shown = readme.split("<!-- outputs/tables/headline.md -->\n")[1].split("<!-- end -->")[0]
    assert shown.strip() == (ROOT / "outputs" / "tables" / "headline.md").read_text().split("\n", 1)[1].strip()


def test_the_tables_are_those_of_the_records():
    table = results.tidy(results.gather(ROOT / "outputs" / "records"))
    assert len(table) > 0
    for name in ("headline", "results", "parameter", "short"):
        file = {"parameter": "parameters", "short": "short-runs"}.get(name, name)
        assert getattr(tables, f"{name}_page")(table) == (ROOT / "outputs" / "tables" / f"{file}.md").read_text(), file


def test_what_the_readme_links_to_is_there():
    links = re.findall(r"\]\(([^)#]+)\)", (ROOT / "README.md").read_text())
    assert links and all((ROOT / link).exists() for link in links if not link.startswith("http"))


@pytest.mark.parametrize("module", ["kdnb", "kdnb.experiment"])
def test_training_needs_no_jupyter(module):
    absent = ["IPython", "papermill", "matplotlib", "seaborn", "ipywidgets", "jupyterlab"]
    code = f"import sys; sys.modules.update(dict.fromkeys({absent})); import {module}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
