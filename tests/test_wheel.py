"""The package as a user installs it: not editable, without a checkout around it."""

import json
import os
import subprocess
import sys
import sysconfig
import venv
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
RUN = ["-p", "dataset", "digits", "-p", "student", "wrn_10_1", "-p", "method", "none"]
RUN += ["-p", "epochs", "1", "-p", "train_limit", "50", "-p", "batch_size", "25"]
RUN += ["-p", "image_size", "8"]


def pip(*words):
    return subprocess.run([sys.executable, "-m", "pip", *words], capture_output=True, text=True)


@pytest.fixture
def wheel(tmp_path):
    """A wheel of the checkout. Its build backend comes from the index, unless it is installed."""
    options = ["--no-deps", "--wheel-dir", str(tmp_path / "wheels")]
    if find_spec("hatchling"):
        options.append("--no-build-isolation")
    done = pip("wheel", *options, str(ROOT))
    if "No matching distribution found for hatchling" in done.stderr:
        pytest.skip("building a wheel needs hatchling: pip install hatchling")
    assert done.returncode == 0, done.stderr
    (path,) = (tmp_path / "wheels").iterdir()
    return path


@pytest.fixture
def installed_python(wheel, tmp_path):
    """The Python of a fresh environment with the wheel, inside a git repository with a commit."""
    repository = tmp_path / "repository"
    environment = repository / "environment"
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(repository)]
    repository.mkdir()
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "another project"], check=True)
    venv.create(environment, symlinks=True)
    python = environment / "bin" / "python"
    done = pip("--python", str(python), "install", "--no-deps", "--no-index", str(wheel))
    assert done.returncode == 0, done.stderr
    # The packages that kdnb needs are those of the tests. An environment sees no other one's
    # packages otherwise. An editable kdnb among them stays unseen: nested .pth files are not read.
    paths = {sysconfig.get_path(name) for name in ("purelib", "platlib")}
    (site_packages,) = environment.glob("lib/python*/site-packages")
    (site_packages / "test_packages.pth").write_text("\n".join(sorted(paths)) + "\n")
    return python


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="the layout of the environment is that of POSIX")
def test_an_installed_wheel_trains_and_makes_tables_and_records_no_commit(
    installed_python, tmp_path
):
    empty = tmp_path / "empty"
    empty.mkdir()
    outputs = tmp_path / "outputs"
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def python(*words):
        return subprocess.run(
            [str(installed_python), *words], cwd=empty, env=env, capture_output=True, text=True
        )

    location = python("-c", "import kdnb; print(kdnb.__file__)").stdout.strip()
    assert Path(location).is_relative_to(installed_python.parents[1])
    done = python("-m", "kdnb", *RUN, "-p", "outputs", str(outputs))
    assert done.returncode == 0, done.stderr
    (folder,) = (outputs / "runs").iterdir()
    assert (folder / "result.json").is_file()
    config = json.loads((folder / "config.json").read_text())
    assert [machine["commit"] for machine in config["machines"]] == [""]

    done = python("-m", "kdnb.results", str(outputs / "runs"), "--outputs", str(outputs))
    assert done.returncode == 0, done.stderr
    assert (outputs / "records" / folder.name / "result.json").is_file()
    assert "wrn_10_1" in (outputs / "tables/short-runs.md").read_text()
    assert "commit unknown" in (outputs / "tables/short-runs.md").read_text()
    assert list(empty.iterdir()) == []
