"""kdnb.progress: threads wait without spinning only in a notebook's kernel on a busy machine."""

import os
import subprocess
import sys
from types import ModuleType

import pytest

from kdnb import progress

IMPORT = """
import os
before = dict(os.environ)
import kdnb
print({name for name in os.environ if os.environ[name] != before.get(name)})
"""


@pytest.fixture
def kernel(monkeypatch):
    """This process looks like a kernel that has not yet imported torch, on a busy machine."""
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.setitem(sys.modules, "ipykernel", ModuleType("ipykernel"))
    monkeypatch.setattr("psutil.cpu_percent", lambda seconds: 90.0)
    yield monkeypatch
    os.environ.pop("OMP_WAIT_POLICY", None)  # monkeypatch then restores what was there


def test_a_kernel_on_a_busy_machine_waits_passively_and_says_so(kernel, capsys):
    progress.wait_passively_if_busy()
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
    assert "threads wait without spinning" in capsys.readouterr().out


def test_on_a_quiet_machine_nothing_changes(kernel, capsys):
    kernel.setattr("psutil.cpu_percent", lambda seconds: progress.BUSY_PERCENT - 1)
    progress.wait_passively_if_busy()
    assert "OMP_WAIT_POLICY" not in os.environ
    assert capsys.readouterr().out == ""


def test_outside_a_kernel_nothing_changes(kernel, capsys):
    kernel.delitem(sys.modules, "ipykernel")
    progress.wait_passively_if_busy()
    assert "OMP_WAIT_POLICY" not in os.environ
    assert capsys.readouterr().out == ""


def test_a_setting_of_the_users_stays(kernel, capsys):
    kernel.setenv("OMP_WAIT_POLICY", "ACTIVE")
    progress.wait_passively_if_busy()
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"
    assert capsys.readouterr().out == ""


def test_after_torch_it_is_too_late(kernel, capsys):
    kernel.setitem(sys.modules, "torch", ModuleType("torch"))
    progress.wait_passively_if_busy()
    assert "OMP_WAIT_POLICY" not in os.environ
    assert capsys.readouterr().out == ""


def test_importing_kdnb_changes_no_variable_of_the_environment():
    env = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    done = subprocess.run([sys.executable, "-c", IMPORT], env=env, capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr
