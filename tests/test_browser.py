"""The notebooks as a person uses them: JupyterLab in a browser, clicks, a slider, the stop button,
run again.

The notebooks are copies in a temporary folder; server and browser talk over loopback only. Pictures
of what the browser shows are saved in the folder that KDNB_SCREENSHOTS names, for people to look
at.
"""

import base64
import contextlib
import io
import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from conftest import picture
from PIL import Image

from kdnb import Run, train

sync_api = pytest.importorskip(
    "playwright.sync_api", reason="the browser tests need playwright: pip install playwright"
)
pytest.importorskip("jupyterlab", reason="the browser tests need jupyterlab")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.browser,
    pytest.mark.skipif(
        CHROMIUM is None, reason="the browser tests need chromium: apt-get install chromium"
    ),
]

ROOT = Path(__file__).resolve().parent.parent
QUICK = {
    "teacher": "wrn_16_1",
    "student": "wrn_10_1",
    "image_size": 8,
    "precision": "float32",
    "compile": "off",
}
# What keeps Chromium from asking other hosts for anything, at the start and later.
FLAGS = ["--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += [
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]
PATIENCE = 180  # seconds that anything may take on a slow and busy machine


def until(done, what, seconds=PATIENCE, pause=0.2):
    """What `done` returns, once that is true."""
    end = time.monotonic() + seconds
    while not (value := done()):
        assert time.monotonic() < end, f"after {seconds} s still waiting for {what}"
        time.sleep(pause)
    return value


class Lab:
    """A JupyterLab server on a free port, with settings, kernels and notebooks of its own."""

    def __init__(self, folder):
        self.folder = folder
        self.notebooks = folder / "notebooks"
        self.token = secrets.token_hex(16)
        self.notebooks.mkdir()
        settings = folder / "config/lab/user-settings/@jupyterlab/apputils-extension"
        settings.mkdir(parents=True)
        # Without this, a question lies over the first notebook.
        (settings / "notification.jupyterlab-settings").write_text('{"fetchNews": "false"}')
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def __enter__(self):
        folders = {
            "JUPYTER_CONFIG_DIR": "config",
            "JUPYTER_DATA_DIR": "share",
            "JUPYTER_RUNTIME_DIR": "runtime",
        }
        folders |= {"IPYTHONDIR": "ipython", "MPLCONFIGDIR": "matplotlib"}
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("JUPYTER", "JPY_"))}
        environment |= {name: str(self.folder / folder) for name, folder in folders.items()}
        environment.setdefault("OMP_NUM_THREADS", "1")
        options = [
            f"--ServerApp.{k}={v}"
            for k, v in {"ip": "127.0.0.1", "port": self.port, "port_retries": 0}.items()
        ]
        options += [
            f"--ServerApp.root_dir={self.notebooks}",
            f"--IdentityProvider.token={self.token}",
            "--no-browser",
        ]
        options += [
            "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
            "--allow-root",
        ]
        options += ["--LabApp.extension_manager=readonly"]
        self.log = open(self.folder / "server.log", "w")
        command = [sys.executable, "-m", "jupyterlab", *options]
        self.server = subprocess.Popen(
            command, env=environment, cwd=self.folder, stdout=self.log, stderr=self.log
        )
        with contextlib.ExitStack() as failed:
            failed.push(self.__exit__)
            until(self.status, "JupyterLab's server")
            failed.pop_all()
        return self

    def status(self):
        assert self.server.poll() is None, (self.folder / "server.log").read_text()
        return self.ask("status")

    def ask(self, what, method="GET"):
        """The server's answer; None if it is not there yet, or is ending a kernel."""
        headers = {"Authorization": f"token {self.token}"}
        request = urllib.request.Request(f"{self.url}/api/{what}", headers=headers, method=method)
        with contextlib.suppress(OSError), urllib.request.urlopen(request, timeout=30) as answer:
            return json.loads(answer.read() or "null")

    def end_kernels(self):
        for kernel in self.ask("kernels") or []:
            self.ask(f"kernels/{kernel['id']}", "DELETE")

    def __exit__(self, *_):
        # A server ends its kernels; those of a killed one notice that it is gone, and end.
        self.server.terminate()
        try:
            self.server.wait(20)
        except subprocess.TimeoutExpired:
            self.server.kill()
            self.server.wait()
        self.log.close()

    def copy(self, name, last="", **parameters):
        """A copy of a notebook with other defaults in its parameters cell.

        last: text of the last cell that is copied; "": all are.
        """
        notebook = json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text())
        places = [
            i for i, cell in enumerate(notebook["cells"], 1) if last in "".join(cell["source"])
        ]
        notebook["cells"] = notebook["cells"][: places[0] if last else None]
        cell = next(
            cell for cell in notebook["cells"] if "parameters" in cell["metadata"].get("tags", [])
        )
        source = "".join(cell["source"])
        for parameter, value in parameters.items():
            source, n = re.subn(
                rf"(?m)^({parameter}: \w+ = )[^#\n]*", lambda m, v=value: f"{m[1]}{v!r}  ", source
            )
            assert n == 1, parameter
        cell["source"] = source
        (self.notebooks / f"{name}.ipynb").write_text(json.dumps(notebook))
        return self.notebooks / f"{name}.ipynb"


class Notebook:
    """A notebook in JupyterLab, on the page of a browser."""

    def __init__(self, page, lab, path):
        self.page, self.path = page, path
        page.goto(
            f"{lab.url}/lab/workspaces/{path.stem}/tree/{path.name}?token={lab.token}"
        )  # no tabs of before
        until(lambda: [k for k in lab.ask("kernels") or [] if k["connections"]], "a kernel")
        page.locator("#jp-main-statusbar").get_by_text("Python 3 (ipykernel) | Idle").wait_for()
        self.cells = page.locator(".jp-Notebook .jp-CodeCell")

    def menu(self, menu, item):
        self.page.locator(".lm-MenuBar-item").get_by_text(menu, exact=True).click()
        self.page.locator(".lm-Menu-itemLabel").get_by_text(item, exact=True).click()

    def run_all(self):
        self.before = self.counts()[-1]
        self.menu("Run", "Run All Cells")
        last = self.cells.last.locator(".jp-InputArea-prompt")
        until(
            lambda: "*" in last.text_content() or self.counts()[-1] > self.before,
            "the first cell",
            30,
        )

    def counts(self):
        """The number before each code cell; 0: not run, or not yet."""
        prompts = self.cells.locator(".jp-InputArea-prompt").all_text_contents()
        return [
            int(found[1]) if (found := re.search(r"\[(\d+)\]", prompt)) else 0 for prompt in prompts
        ]

    def finish(self):
        """Wait until the cells have run, or one has failed; save as a reader would; the outputs in
        the file by cell."""
        prompts = self.cells.locator(".jp-InputArea-prompt")
        until(lambda: "*" not in "".join(prompts.all_text_contents()), "the last cell")
        before = self.path.stat().st_mtime_ns
        self.menu("File", "Save Notebook")
        until(lambda: self.path.stat().st_mtime_ns != before, "the saved notebook")
        notebook = until(self.read, "the whole of the saved notebook")
        return [cell["outputs"] for cell in notebook["cells"] if cell["cell_type"] == "code"]

    def read(self):
        with contextlib.suppress(json.JSONDecodeError):  # half written
            return json.loads(self.path.read_text())


class Explorer:
    """An explorer of kdnb.plots on the page: the nth of the notebook."""

    def __init__(self, notebook, nth):
        pictures = notebook.page.locator("img.widget-image")
        self.box = (
            notebook.page.locator(".jp-OutputArea-output .widget-vbox")
            .filter(has=pictures)
            .nth(nth)
        )
        self.image = self.box.locator("img.widget-image")
        self.image.scroll_into_view_if_needed()

    def slider(self, name):
        return self.box.locator(".widget-slider").filter(has_text=name)

    def pixels(self):
        """What the browser shows, not what the kernel has sent."""
        read = """async image => {
            const bytes = new Uint8Array(await (await fetch(image.src)).arrayBuffer());
            return btoa(bytes.reduce((text, byte) => text + String.fromCharCode(byte), ""));
        }"""
        until(
            lambda: self.image.evaluate("image => image.complete && image.naturalWidth > 0"),
            "a whole picture",
        )
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(self.image.evaluate(read)))))

    def moved(self, before):
        """The picture, once it is not `before` any more."""
        until(lambda: not np.array_equal(self.pixels(), before), "another picture", 30, 0.05)
        return self.pixels()


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    with Lab(tmp_path_factory.mktemp("lab")) as lab:
        yield lab


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        sandbox = os.geteuid() != 0  # Chromium has none for root
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=FLAGS, chromium_sandbox=sandbox
        )
        yield browser
        browser.close()


@pytest.fixture
def page(lab, browser, tmp_path, request):
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.set_default_timeout(60_000)
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    yield page
    folder = Path(os.environ.get("KDNB_SCREENSHOTS") or tmp_path)
    page.screenshot(path=folder / f"{request.node.name}.png")  # where a failed test stood
    context.close()
    lab.end_kernels()
    assert not [url for url in asked if not url.startswith((lab.url, "data:", "blob:"))]


def flat(outputs):
    return [output for cell in outputs for output in cell]


def text(outputs):
    return "".join(
        "".join(output["text"]) for output in flat(outputs) if output["output_type"] == "stream"
    )


def failures(outputs):
    return [f"{o['ename']}: {o['evalue']}" for o in flat(outputs) if o["output_type"] == "error"]


def figures(outputs):
    return sum(
        bool({"image/png", "image/jpeg"} & set(output.get("data", {}))) for output in flat(outputs)
    )


def test_attention_runs_and_a_slider_moves_its_picture(lab, page, tmp_path):
    fields = QUICK | {"epochs": 2, "teacher_epochs": 1}
    run = train(Run(**fields, outputs=str(tmp_path)), log=lambda line: None)
    path = lab.copy("attention", last="map_explorer", run=str(run.folder), outputs=str(tmp_path))
    notebook = Notebook(page, lab, path)
    notebook.run_all()
    outputs = notebook.finish()
    assert failures(outputs) == []
    # The baseline was trained by the notebook.
    assert len(list((tmp_path / "runs").glob("*/result.json"))) == 3
    stills = figures(outputs)
    assert stills >= 9  # a figure or an explorer's still picture for each cell after the survey

    links = Explorer(notebook, 0)
    last, epoch = links.pixels(), links.slider("epoch")
    assert epoch.locator(".widget-readout").text_content() == "2"
    epoch.locator(".noUi-base").click(position={"x": 1, "y": 2})
    first = links.moved(last)
    assert epoch.locator(".widget-readout").text_content() == "1"
    assert np.flatnonzero((first != last).any((0, 2))).size > 100  # columns
    epoch.locator(".noUi-handle").press("ArrowRight")
    assert (links.moved(first) == last).all()
    links.box.locator("select").select_option("test images, all")
    links.moved(last)

    maps = Explorer(notebook, 1)
    one = maps.pixels()
    maps.slider("image").locator(".noUi-handle").press("ArrowRight")
    two = maps.moved(one)
    maps.slider("teacher").locator(".noUi-handle").press("ArrowLeft")
    three = maps.moved(two)
    picture(60, 40, seed=0).save(tmp_path / "own.jpg")
    with page.expect_file_chooser() as chooser:
        maps.box.locator("button", has_text="Upload").click()
    chooser.value.set_files(tmp_path / "own.jpg")
    maps.moved(three)
    page.screenshot(path=Path(os.environ.get("KDNB_SCREENSHOTS") or tmp_path) / "own.png")

    # Who opens the notebook later sees the stills, and no message about missing widgets.
    lab.end_kernels()
    page.goto("about:blank")
    again = Notebook(page, lab, path)
    shown = again.cells.locator(".jp-OutputArea-child:visible img")
    until(lambda: shown.count() >= stills, "the pictures of the saved notebook")
    page.wait_for_timeout(4000)  # JupyterLab looks for a widget's model for two seconds
    visible = ".jp-OutputArea-child:visible"
    assert again.cells.locator(visible, has_text="Error displaying widget").count() == 0


def test_distill_is_stopped_and_resumes(lab, page, tmp_path):
    more = {"epochs": 4, "teacher_epochs": 1, "batch_size": 16, "train_limit": -1}
    path = lab.copy("distill", **QUICK, **more, outputs=str(tmp_path))
    notebook = Notebook(page, lab, path)
    notebook.run_all()
    until(
        lambda: "epoch 1/4" in notebook.cells.nth(6).text_content(),
        "the first epoch of the distilled student",
    )
    page.locator("[data-jp-item-name=interrupt]").click()
    outputs = notebook.finish()
    sentence = (
        r"Interrupted: stopped after step (\d+) of epoch ([2-4]); run it again to go on from there"
    )
    stopped = re.fullmatch(sentence, "; ".join(failures(outputs)))
    assert stopped, failures(outputs)
    shown = notebook.cells.nth(6).locator(".jp-OutputArea-output").last
    assert shown.inner_text().strip() == failures(outputs)[0]  # the sentence alone, without frames
    step, epoch = map(int, stopped.groups())

    notebook.run_all()
    outputs = notebook.finish()
    assert failures(outputs) == []
    lines = text(outputs)
    assert lines.count("finished before") == 2  # the teacher and the baseline
    assert f"resuming after epoch {epoch - 1}, step {step}\n" in lines
    assert [int(n) for n in re.findall(r"epoch (\d)/4", lines)] == list(range(epoch, 5))
    assert figures(outputs) == 3  # images, learning curves, links
