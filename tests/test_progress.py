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


@pytest.mark.parametrize(
    "value, images, shown",
    [(97.2222, 360, "97.2"), (73.28, 10_000, "73.28"), (54.0, 50, "54"), (9.0, 10**6, "9.00")],
)
def test_a_share_has_no_more_decimals_than_one_image_is_worth(value, images, shown):
    assert progress.percent(value, images) == shown


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


@pytest.mark.parametrize("error", [BrokenPipeError(), OSError(28, "full"), ValueError("closed")])
def test_what_nobody_reads_ends_nothing(monkeypatch, error):
    class Closed:
        encoding = "utf-8"

        def write(self, text):
            raise error

        flush = fileno = lambda self: self.write("")

    for stream in (Closed(), None):  # None: closed when Python started
        monkeypatch.setattr(sys, "stdout", stream)
        with progress.tolerant_output():
            print("epoch 1/2", flush=True)


def test_a_name_that_is_not_utf8_is_printed_with_escapes(capsys):
    with progress.tolerant_output():
        print("a\udcff")
    assert capsys.readouterr().out == "a\\udcff\n"


@pytest.mark.slow
@pytest.mark.parametrize("output", ["2>&- | head -1", "> /dev/full", ">&-"])
def test_a_training_goes_on_when_its_output_is_closed(tmp_path, output):
    command = f"{sys.executable} -m kdnb -p student wrn_10_1 -p method none -p epochs 2 "
    command += f"-p train_limit 40 -p batch_size 20 -p threads 1 -p outputs {tmp_path} {output}"
    script = f"{command}; exit ${{PIPESTATUS[0]}}"
    assert subprocess.run(["bash", "-c", script], capture_output=True).returncode == 0
    assert len(list(tmp_path.glob("runs/*/result.json"))) == 1
