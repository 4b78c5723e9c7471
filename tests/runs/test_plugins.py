"""kdnb.runs.plugins: a file of one's own works wherever a run is made or read."""

import os
import re
import shutil
import subprocess
import sys
from itertools import chain
from pathlib import Path

import pytest
from conftest import left_in
from helpers import break_off, press_stop

from kdnb import LOSSES, METHODS, InputError, Run, create_model, train
from kdnb.results import load_frame, tables
from kdnb.runs import plugins
from kdnb.runs.config import REPLACED
from kdnb.study import __main__ as study

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = (ROOT / "docs/own-data-networks-losses.md").read_text()
PLUGIN = re.search(r"## Plug-ins.*?```python\n(.*?)```", DOCUMENT, re.DOTALL)[1]
RUN = {"dataset": "noise", "method": "mine", "precision": "float32", "compile": "off"}
RUN |= {"teacher": "small", "teacher_epochs": 1, "epochs": 1, "device": "cpu", "threads": 1}
WORDS = [word for name, value in RUN.items() for word in ("-p", name, str(value))]


@pytest.fixture(autouse=True)
def clean(registries, monkeypatch):
    monkeypatch.delenv(plugins.VARIABLE, raising=False)


@pytest.fixture
def mine(tmp_path):
    """The plug-in of the documentation."""
    path = tmp_path / "mine.py"
    path.write_text(PLUGIN)
    return path


def quiet(line):
    pass


def python(*words, cwd=ROOT, **env):
    command = [sys.executable, *words]
    env = os.environ | {"PYTHONPATH": str(cwd)} | env
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)


# Where it is taken


def test_a_run_imports_it_and_imports_it_again_when_it_is_opened(tmp_path, mine):
    run = train(Run(**RUN, plugins=str(mine), outputs=str(tmp_path)), quiet)
    assert run.student == "small"
    assert set(run.config["code"]) == {"loss ce", "loss mine", "network small", "data set noise"}
    assert run.config["options"] == {"ce": {}, "mine": {"scale": 1.0}}
    assert run.config["plugins"].keys() == {"mine.py"}
    assert run.config["machines"][0]["commit"].endswith("+changes")
    assert len(load_frame(tmp_path / "runs")) == 2
    code = f"import kdnb; print(kdnb.Run.open({run.name!r}, {str(tmp_path)!r}).label)"
    assert python("-c", code).stdout == "mine\n"
    mine.rename(tmp_path / "moved.py")
    assert python("-c", code).stderr.endswith(f"PluginError: plug-in {mine}: no such file\n")


def test_the_shell_and_the_environment_take_it(tmp_path, mine):
    words = ["-m", "kdnb", *WORDS, "-p", "outputs", str(tmp_path)]
    done = python(*words, "-p", "plugins", str(mine))
    assert done.returncode == 0, done.stderr
    done = python(*words, KDNB_PLUGINS=str(mine))
    assert done.stdout.count("finished before") == 1, done.stderr


@pytest.mark.slow
def test_a_study_with_two_workers_makes_notebooks_and_tables_with_it(tmp_path, mine, capsys):
    argv = ["--dataset", "noise", "--methods", "none,mine", "--jobs", "2", *WORDS[6:]]
    argv += ["-p", "plugins", str(mine), "-p", "data_root", str(tmp_path)]
    assert study.main([*argv, "--outputs", str(tmp_path / "o")]) == 0, capsys.readouterr()
    frame = load_frame(tmp_path / "o" / "runs")
    assert sorted(frame["method"]) == ["mine", "none"]  # the baseline is its teacher, too
    assert "mine" in (tmp_path / "o/runs/tables/short-runs.md").read_text()


# In a process for each tree and first import, but torch is imported once for all of them.
IMPORTS = """
import os, sys
import torch, torchvision
for tree, first in zip(sys.argv[1::2], sys.argv[2::2]):
    if not os.fork():
        sys.path.insert(0, tree)
        exec(f"import {first}, kdnb; run = kdnb.Run(dataset='noise', method='mine')")
        assert kdnb.__file__.startswith(tree)
        print(first, run.student, flush=True)
        os._exit(0)
    os.wait()
"""


@pytest.mark.slow
def test_a_file_in_the_package_needs_no_parameter(tmp_path):
    """Whichever is imported first: the package, or the file."""
    imports = []
    for folder in ("losses", "models", "data"):
        tree = tmp_path / folder
        shutil.copytree(ROOT / "kdnb", tree / "kdnb")
        (tree / "kdnb" / folder / "mine.py").write_text(PLUGIN)
        imports += [(str(tree), "kdnb"), (str(tree), f"kdnb.{folder}.mine")]
    done = python("-c", IMPORTS, *chain(*imports), cwd=tmp_path)
    assert done.stdout.splitlines() == [f"{first} small" for _, first in imports], done.stderr


def test_modules_and_installed_packages_are_taken(tmp_path, mine, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    assert plugins.load_plugins("mine") == "mine"
    assert "mine" in LOSSES

    class Entry:
        name, value = "some", "package.module"

        def load(self):
            METHODS["installed"] = "ce + kd"

    monkeypatch.setattr(plugins, "entry_points", lambda group: [Entry()])
    plugins.load_installed.cache_clear()
    assert Run(method="installed").label == "installed"


# What is wrong with it


def test_a_missing_or_failing_plug_in_is_one_sentence(tmp_path, mine):
    with pytest.raises(InputError, match=r"plug-in .*there.py: no such file"):
        Run(plugins=str(tmp_path / "there.py"))
    with pytest.raises(InputError, match=r"plug-in no_such_module .*No module named"):
        Run(plugins="no_such_module")
    mine.write_text("import kdnb\nkdnb.Loss.name_that_is_not_there\n")
    with pytest.raises(
        InputError, match=r"mine.py cannot be imported: AttributeError: .*not_there"
    ):
        Run(plugins=str(mine))
    done = python("-m", "kdnb", "-p", "plugins", str(mine))
    assert done.returncode == 2
    assert done.stderr.count("\n") <= 2


def test_it_may_not_take_the_name_of_another_loss_or_hide_a_module(tmp_path, mine):
    mine.write_text("import kdnb\nclass KD(kdnb.Loss, name='kd'):\n    def forward(self): ...\n")
    with pytest.raises(InputError, match=r"loss 'kd' is defined in .*kd.py already"):
        Run(plugins=str(mine))
    path = tmp_path / "random.py"
    path.write_text("import kdnb\nkdnb.METHODS['hidden'] = 'ce + kd'\n")
    assert Run(plugins=str(path), method="hidden").label == "hidden"
    assert not hasattr(sys.modules["random"], "kdnb")


# When it changes


def test_a_changed_loss_is_refused_and_trained_anew_on_request(tmp_path, mine):
    run = train(Run(**RUN, plugins=str(mine), outputs=str(tmp_path)), quiet)
    before = run.weights.read_bytes()
    mine.write_text(PLUGIN.replace("scale: float = 1.0", "scale: float = 3.0"))
    changed = Run(**RUN, plugins=str(mine), outputs=str(tmp_path))
    assert changed.name == run.name
    sentence = r"finished with other code on .*loss mine \(.*scale of mine \(1.0, now 3.0\); rerun"
    with pytest.raises(InputError, match=sentence):
        train(changed, quiet)
    anew = train(changed.with_changes(rerun=True), quiet)
    assert anew.weights.read_bytes() != before
    (old,) = (tmp_path / REPLACED).iterdir()
    assert (old / "student.safetensors").read_bytes() == before
    assert train(changed, quiet).done


def test_an_interrupted_run_is_not_continued_with_other_code(tmp_path, mine):
    run = Run(**RUN, plugins=str(mine), outputs=str(tmp_path))
    break_off(run, step=4, how=press_stop)  # its teacher has three steps
    mine.write_text(PLUGIN.replace(".square()", ".abs()"))
    with pytest.raises(InputError, match="begun with other code"):
        train(Run(**RUN, plugins=str(mine), outputs=str(tmp_path)), quiet)


def test_rows_of_other_code_are_not_averaged(tmp_path, mine):
    train(Run(**RUN, plugins=str(mine), outputs=str(tmp_path)), quiet)
    mine.write_text(PLUGIN.replace(".square()", ".abs()"))
    train(Run(**RUN, plugins=str(mine), outputs=str(tmp_path), seed=1), quiet)
    frame = load_frame(tmp_path / "runs").query("method == 'mine'")
    assert frame["code"].nunique() == 2
    assert len(tables.summary_table(frame)) == 2


def test_a_slash_in_a_name_makes_one_folder(tmp_path, mine):
    mine.write_text(PLUGIN.replace('register("small")', 'register("own/small")'))
    fields = RUN | {"student": "own/small", "method": "none", "teacher": ""}
    run = train(Run(**fields, plugins=str(mine), outputs=str(tmp_path)), quiet)
    assert run.folder.parent == tmp_path / "runs"
    assert load_frame(tmp_path / "runs")["network"].tolist() == ["own/small"]
    assert create_model("own/small", 2).classifier_name == "4"
    assert "student.safetensors" in left_in(run.folder)
