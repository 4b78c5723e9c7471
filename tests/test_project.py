"""What the project promises outside its code: dependencies, documents, a light import.

The documents are README.md and docs/*.md. Their Python blocks run, their commands are parsed by the
commands' own parsers, their links lead somewhere, and their numbers are those of the records.
"""

import importlib
import math
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import papermill
import pytest
from papermill.cli import papermill as papermill_command

import kdnb.__main__ as run_command
import kdnb.export as export_command
import kdnb.predict as predict_command
import kdnb.results.__main__ as results_command
import kdnb.runs.__main__ as runs_command
import kdnb.study.__main__ as study_command
from kdnb import METHODS, results
from kdnb.deploy import FORMATS
from kdnb.results.intervals import interval
from kdnb.results.pages import make_pages, methods_table, pair_methods_table
from kdnb.runs.folder import RunFolder

ROOT = Path(__file__).resolve().parent.parent
PATHS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
DOCUMENTS = {path.relative_to(ROOT).as_posix(): path.read_text() for path in PATHS}
README = DOCUMENTS["README.md"]
CODE_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
# Commands that need other machines, the network or a person; nothing of them is checked.
UNCHECKED = ["pip install", "dask scheduler", "dask cuda", "dask ssh"]
UNCHECKED += ["mkdir", "tar", "split", "cat", "cp", "rm", "export"]

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


def code_blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of a document in one language."""
    return [code for name, code in CODE_BLOCK.findall(text) if name == language]


def shell_commands(code: str) -> list[list[str]]:
    """The words of each command of shell code, without comments and leading assignments."""
    commands = []
    for line in code.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="&|;")
        lexer.whitespace_split = True
        words = []
        for word in [*lexer, ";"]:
            if not set(word) <= set("&|;"):
                words.append(word)
                continue
            while words and re.match(r"\w+=", words[0]):
                words.pop(0)
            if words:
                commands.append(words)
            words = []
    return commands


def documented_commands(text: str) -> list[list[str]]:
    """The commands of a document: those of its sh blocks, and kdnb's in its sentences."""
    prose = CODE_BLOCK.sub("", text)
    inline = re.findall(r"`((?:python3? -m kdnb|papermill|pytest)\b[^`]*)`", prose)
    code = [*code_blocks(text, "sh"), *(" ".join(span.split()) for span in inline)]
    return [words for part in code for words in shell_commands(part)]


@pytest.fixture
def planned(monkeypatch):
    """The runs that `python -m kdnb` would train. Nothing is trained, and no records are made."""
    runs = []
    module = importlib.import_module("kdnb.training.train")  # the command imports it when it runs
    monkeypatch.setattr(module, "train_together", lambda group, *_: runs.extend(group) or group)
    monkeypatch.setattr("kdnb.results.records.gather", lambda *_: 0)
    monkeypatch.setattr(results_command, "print_differences", lambda _: None)
    return runs


def check_papermill(arguments: list[str]) -> None:
    """Fails if papermill does not know an option, or the notebook has no such parameter."""
    options = papermill_command.make_context("papermill", arguments).params
    folder = ROOT if "/" in options["notebook_path"] else ROOT / "notebooks"
    parameters = papermill.inspect_notebook(str(folder / options["notebook_path"]))
    assert {key for key, _ in options["parameters"]} <= parameters.keys()


def check_command(words: list[str]) -> None:
    """Fails if a command of a document could not be given like this."""
    match words:
        case ["python" | "python3", "-m", "kdnb.study", *arguments]:
            assert study_command.main([*arguments, "--dry-run"]) == 0
        case ["python" | "python3", "-m", "kdnb.results", *arguments]:
            assert results_command.main(arguments) == 0
        case ["python" | "python3", "-m", "kdnb.predict", *arguments]:
            predict_command.make_parser().parse_args(arguments)
        case ["python" | "python3", "-m", "kdnb.export", *arguments]:
            assert export_command.make_parser().parse_args(arguments).to in FORMATS
        case ["python" | "python3", "-m", "kdnb.runs", *arguments]:
            runs_command.make_parser().parse_intermixed_args(arguments)
        case ["python" | "python3", "-m", "kdnb", *arguments]:
            assert run_command.main(arguments) == 0
        case ["papermill", *arguments]:
            check_papermill(arguments)
        case ["pytest", *arguments] | ["python3", "-m", "pytest", *arguments]:
            missing = [path for path in arguments if "/" in path and not (ROOT / path).exists()]
            assert missing == []
        case ["cd", folder]:
            assert (ROOT / folder).is_dir()
        case _:
            assert " ".join(words).startswith(tuple(UNCHECKED)), words


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives to a document's headings."""
    headings = re.findall(r"^#+ (.+)$", CODE_BLOCK.sub("", text), re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def generated_block(text: str, name: str) -> str:
    return text.split(f"<!-- {name} -->\n")[1].split("<!-- end -->")[0].strip()


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


def test_the_readme_is_one_page():
    assert len(README.splitlines()) <= 150 and len(README.split()) <= 1300


def test_the_first_screen_of_the_readme_has_the_two_commands():
    first_screen = README.splitlines()[:40]
    assert (
        "pip install -e . && papermill notebooks/distill.ipynb outputs/distill.ipynb --log-output"
        in first_screen
    )
    assert 'pip install -e ".[test]" && pytest' in first_screen


def test_the_readme_links_to_every_document():
    assert [
        name for name in DOCUMENTS if name.startswith("docs/") and f"({name})" not in README
    ] == []


@pytest.mark.parametrize("name", DOCUMENTS)
def test_the_python_blocks_of_a_document_run(name, tmp_path):
    blocks = code_blocks(DOCUMENTS[name], "python")
    (tmp_path / "kdnb").mkdir()  # as in the folder above a checkout
    (tmp_path / "tests/losses").mkdir(parents=True)  # a document adds a reference case
    shutil.copy(ROOT / "tests/losses/losses.npz", tmp_path / "tests/losses")
    done = python("\n".join(blocks), tmp_path)
    assert done.returncode == 0, done.stderr
    for block in code_blocks(DOCUMENTS[name], "py"):  # these need a cluster
        compile(block, name, "exec")


def test_the_documents_have_python_blocks():
    assert all(
        code_blocks(DOCUMENTS[name], "python")
        for name in ("README.md", "docs/own-data-networks-losses.md")
    )


@pytest.mark.parametrize("name", DOCUMENTS)
def test_the_commands_of_a_document_can_be_given(name, planned, registries, tmp_path, monkeypatch):
    for block in code_blocks(DOCUMENTS[name], "python"):
        if "class Mine(" in block:
            (tmp_path / "mine.py").write_text(block)
    monkeypatch.chdir(tmp_path)
    for words in documented_commands(DOCUMENTS[name]):
        check_command(words)


@pytest.mark.parametrize(
    "command",
    [
        "python -m kdnb -p datset digits",
        "python -m kdnb.study --seed 1",
        "python -m kdnb.results --tables here",
        "python -m kdnb.export NAME --to gguf",
        "papermill distill.ipynb out.ipynb -p datset digits",
        "papermill distil.ipynb out.ipynb",
        "pytest tests/nowhere/",
        "cd nowhere",
        "true && make everything",
    ],
)
def test_a_command_that_cannot_be_given_is_noticed(command, planned):
    with pytest.raises((AssertionError, SystemExit, OSError)):
        for words in shell_commands(command):
            check_command(words)


@pytest.mark.parametrize("name", [*DOCUMENTS, "CHANGELOG.md"])
def test_the_links_of_a_document_lead_somewhere(name):
    path = ROOT / name
    for link in re.findall(r"\]\(([^)]+)\)", path.read_text()):
        if link.startswith("http"):
            continue
        file, _, anchor = link.partition("#")
        target = path.parent / file if file else path
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text()), link


@pytest.mark.parametrize(
    ("document", "page"), [("README.md", "readme"), ("docs/results.md", "headline")]
)
def test_a_document_shows_the_table_as_generated(document, page):
    file = f"outputs/tables/{page}.md"
    _title, text = (ROOT / file).read_text().split("\n", 1)
    assert generated_block(DOCUMENTS[document], file) == text.strip()


def test_the_tables_are_those_of_the_records():
    for name, page in make_pages(results.load_frame(ROOT / "outputs/records")).items():
        assert page == (ROOT / f"outputs/tables/{name}.md").read_text(), name


def test_the_table_of_methods_is_that_of_the_package():
    block = generated_block(DOCUMENTS["docs/methods.md"], "methods")
    assert block.strip() == methods_table()
    mixes = dict(re.findall(r"^\| (\w+) +\| `(.+?)` +\|", block, re.M))
    assert mixes and mixes.items() <= METHODS.items()
    block = generated_block(DOCUMENTS["docs/methods.md"], "pair-methods")
    assert block.strip() == pair_methods_table()


def test_the_numbers_in_sentences_are_those_of_the_records():
    runs = results.load_frame(ROOT / "outputs/records")
    sentences = " ".join(DOCUMENTS["docs/results.md"].split())
    cifar = runs[runs["dataset"] == "cifar100"]
    quarter = cifar[cifar["train_images"] == 12_500]
    digits = runs[(runs["dataset"] == "digits") & (runs["network"] == "wrn_16_1")]
    two_views = digits[digits["overrides"] == "views 2 instead of 1"]
    digits = digits[digits["overrides"] == ""]

    def top1(part, method):
        return part[part["method"] == method].set_index("seed")["top1"]

    def difference(part, method, other):
        return interval((top1(part, method) - top1(part, other)).to_numpy(), "+.2f")

    def fitted(method):
        """The accuracy on a run's own training images in its last epoch, mean of the seeds."""
        folders = quarter[quarter["method"] == method]["folder"]
        last = [RunFolder(folder).metrics["train_top1"].iloc[-1] for folder in folders]
        return f"{sum(last) / len(last):.0f}"

    none, kd, dkd, afd = (f"{top1(quarter, m).mean():.1f}" for m in ("none", "kd", "dkd", "afd"))
    full = cifar[(cifar["epochs"] == 240) & (cifar["method"] == "none")].iloc[0]
    last = RunFolder(full["folder"]).metrics["test_top1"][-30:]
    toy = [f"{top1(digits, method).mean():.2f}" for method in ("none", "afd")]
    for sentence in (
        f"goes from {none} % to {kd} by knowledge distillation (KD), {dkd} by decoupled knowledge "
        f"distillation (DKD) and {afd} by KD and attention-based feature distillation (AFD)",
        f"goes from {toy[0]} % to {toy[1]} by KD and AFD",
        f"right on {fitted('none')} % of its own training images, AFD's student on {fitted('afd')}",
        f"{full['top1']:.2f} % after epoch 240",
        f"{last.min():.2f} to {last.max():.2f} over the last 30",
        f"{difference(quarter, 'afd', 'kd')} points seed by seed",
        f"AFD on top of the same KD adds {difference(digits, 'afd', 'ce + kd:0.9')} points",
        f"KD on top of AFD adds {difference(digits, 'afd', 'ce + afd:50')}",
        f"mlkd differs from kd by {difference(two_views, 'mlkd', 'kd')} points",
    ):
        assert sentence in sentences
    assert f"{none} % from labels only, {afd} % when one of 40" in " ".join(README.split())


def test_the_pieces_of_the_full_length_table_are_runs_of_full_length(
    tmp_path, planned, monkeypatch
):
    for name in ("resnet18_imagenet.safetensors", "outputs/teachers/wrn_40_2-cifar100.safetensors"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    pieces = re.findall(
        r"^\| \d+ \| `(-p .+?)` \| (\d+) \| ([\d,]+) \|", DOCUMENTS["docs/full-length.md"], re.M
    )
    images = {"cifar100": 50_000, "stanford40": 4_000}
    counts = []
    for arguments, count, steps in pieces:
        planned.clear()
        assert run_command.main([*shlex.split(arguments), "-p", "outputs", "outputs"]) == 0
        assert len(planned) == int(count)
        epochs = [math.ceil(images[run.dataset] / run.batch_size) for run in planned]
        total = sum(run.epochs * epoch for run, epoch in zip(planned, epochs, strict=True))
        assert total == int(steps.replace(",", ""))
        assert not any(run.overrides or run.teacher_run for run in planned)
        counts.append(len(planned))
    assert counts == [1, 5, 5, 4, 5, 5, 1, 2, 2]


@pytest.mark.parametrize(
    "command",
    ["kdnb.__main__", "kdnb.export", "kdnb.predict"]
    + [f"kdnb.{name}.__main__" for name in ("results", "runs", "study")],
)
def test_help_needs_no_torch(command):
    code = f"import sys, {command} as command; command.make_parser().format_help()"
    done = python(f"{code}; assert 'torch' not in sys.modules", ROOT)
    assert done.returncode == 0, done.stderr


def test_importing_it_needs_no_notebook():
    modules = "kdnb, kdnb.__main__, kdnb.analysis, kdnb.study"
    done = python(
        f"import sys; sys.modules.update(dict.fromkeys({NOTEBOOKS})); import {modules}", ROOT
    )
    assert done.returncode == 0, done.stderr
