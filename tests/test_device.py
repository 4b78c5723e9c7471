import json
import subprocess
from pathlib import Path

import pytest
import torch

from kdnb import InputError
from kdnb import device as module
from kdnb.device import environment, pick_compile, pick_device, pick_precision

CPU = torch.device("cpu")


def test_devices():
    assert pick_device("cpu") == CPU and pick_device("auto").type in ("cpu", "cuda", "mps")
    with pytest.raises(
        InputError, match="unknown device 'gpu': choose one of auto, cpu, cuda, mps"
    ):
        pick_device("gpu")
    for name in ("cpu:1", "cuda:99", "cuda:x"):
        with pytest.raises(
            InputError, match=rf"device '{name}' is not on this machine: choose auto, cpu"
        ):
            pick_device(name)


@pytest.mark.parametrize("native", [True, False])
def test_precisions(monkeypatch, native):
    assert (
        pick_precision("float32", CPU) == "float32"
        and pick_precision("bfloat16", CPU) == "bfloat16"
    )
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native)
    assert pick_precision("auto", CPU) == (
        "bfloat16" if native else "float32"
    )  # emulated, it is slower
    assert pick_precision("auto", torch.device("mps")) == "float32"
    with pytest.raises(
        InputError, match="unknown precision 'int8': choose one of auto, bfloat16, float32"
    ):
        pick_precision("int8", CPU)


def test_compiling_where_it_repays_itself(monkeypatch):
    monkeypatch.setattr(module.shutil, "which", lambda name: name == "g++")
    assert pick_compile("on", CPU, "float32", 1) and not pick_compile("off", CPU, "float32", 1e12)
    for (kind, precision), least in module.COMPILE_PIXELS.items():
        assert [
            pick_compile("auto", torch.device(kind), precision, least - less) for less in (0, 1)
        ] == [True, False]
    assert not pick_compile("auto", torch.device("mps"), "float32", 1e12)
    monkeypatch.setattr(module.shutil, "which", lambda name: None)
    monkeypatch.delenv("CXX", raising=False)
    assert not pick_compile("auto", CPU, "float32", 1e12)  # without a compiler
    with pytest.raises(InputError, match="compile is on: there is no C"):
        pick_compile("on", CPU, "float32", 1)


def test_environment_can_stand_beside_a_number():
    found = json.loads(json.dumps(environment("cpu")))
    assert found["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert "cores" in found["device"] and found["device_type"] == "cpu"
    here = Path(__file__).parent
    head = subprocess.run(
        ["git", "rev-parse", "--short=12", "HEAD"], cwd=here, capture_output=True, text=True
    )
    assert (
        found["commit"].removesuffix("+changes") == head.stdout.strip()
    )  # both "" outside a checkout


def test_outside_a_checkout_there_is_no_commit(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert module.commit() == ""


def test_the_commit_of_a_repository_around_an_installed_package_is_not_recorded(
    tmp_path, monkeypatch
):
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(tmp_path)]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "another project"], check=True)
    monkeypatch.setattr(module, "__file__", str(tmp_path / "device.py"))
    (tmp_path / "device.py").touch()
    assert module.commit() == ""


def test_files_that_git_does_not_track_are_named_with_the_commit(tmp_path, monkeypatch):
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(tmp_path)]
    monkeypatch.setattr(module, "__file__", str(tmp_path / "device.py"))
    (tmp_path / "device.py").touch()
    (tmp_path / ".gitignore").write_text("mine.py\n*.pyc\n")
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "this project"], check=True)
    (tmp_path / "device.pyc").touch()
    assert module.commit() and not module.commit().endswith("+changes")
    (tmp_path / "mine.py").touch()
    assert module.commit().endswith("+changes")
