"""The folders of the package and their order: docs/design.md describes them."""

import ast
import importlib
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import kdnb

PACKAGE = Path(__file__).resolve().parent.parent / "kdnb"
FILES = {path.relative_to(PACKAGE).as_posix(): path for path in sorted(PACKAGE.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text()) for name, path in FILES.items()}
GROUND = {"errors", "paths", "progress", "device", "image_files", "sources"}
COMMANDS = {"__main__", "predict", "export"}
FLOORS = [
    {"models", "data", "plots"},
    {"losses"},
    {"runs"},
    {"training", "study"},
    {"results", "deploy"},
    {"analysis"},
]
FOLDERS = set().union(*FLOORS)
INITS = [name for name in FILES if name.endswith("__init__.py")]
MOST_LINES = 250  # of a file: what is read in one sitting


def module(name: str) -> str:
    """ "models/wrn.py" -> "kdnb.models.wrn"."""
    return f"kdnb/{name}".removesuffix(".py").removesuffix("/__init__").replace("/", ".")


MODULES = {module(name): name for name in FILES}


def imports(tree: ast.AST) -> set[str]:
    """The modules of kdnb that a file imports, at its top or inside a function."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute here"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (inner & MODULES.keys()) or {node.module}
    return found & MODULES.keys()


IMPORTS = {name: imports(tree) for name, tree in TREES.items()}


def folder(name: str) -> str:
    """The folder of a module, or the module itself on the ground floor."""
    return name.removeprefix("kdnb.").split(".")[0]


def floor(name: str) -> int:
    if name in GROUND:
        return 0
    return 1 + next((i for i, names in enumerate(FLOORS) if name in names), len(FLOORS))


def test_every_file_is_in_a_folder_or_on_the_ground_floor():
    top = {name for name in FILES if "/" not in name}
    assert top == {"__init__.py", *(f"{name}.py" for name in GROUND | COMMANDS)}
    assert {name.split("/")[0] for name in FILES if "/" in name} == FOLDERS


@pytest.mark.parametrize("name", FILES)
def test_a_file_imports_from_floors_below_its_own(name):
    own = folder(module(name)) if "/" in name else name.removesuffix(".py")
    others = {folder(found) for found in IMPORTS[name]} - {own}
    wrong = {other for other in others if floor(other) >= floor(own)}
    assert wrong <= (GROUND if own in GROUND else set())


def test_no_two_files_import_each_other():
    inits = {module(name) for name in INITS}
    order = TopologicalSorter({module(name): found - inits for name, found in IMPORTS.items()})
    order.prepare()  # raises CycleError


@pytest.mark.parametrize("name", [name for name in FILES if name.startswith("plots/")])
def test_plots_import_no_other_folder(name):
    assert {folder(found) for found in IMPORTS[name]} <= {"plots"} | GROUND


@pytest.mark.parametrize("name", INITS)
def test_init_files_hand_names_on_and_hide_no_module(name):
    definitions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.AnnAssign)
    assert not [node for node in TREES[name].body if isinstance(node, definitions)]
    inits = [node for node in ast.walk(TREES[name]) if isinstance(node, ast.ImportFrom)]
    names = {alias.asname or alias.name: node.module for node in inits for alias in node.names}
    hidden = [
        own
        for own, source in names.items()
        if f"{module(name)}.{own}" in MODULES and source != module(name)
    ]
    assert hidden == []


def test_public_names_are_found_and_hide_no_module():
    assert set(kdnb.__all__) == {*dir(kdnb)}
    for name in kdnb.__all__:
        public = getattr(kdnb, name)
        is_module = f"kdnb.{name}" in MODULES
        assert not is_module or public is importlib.import_module(f"kdnb.{name}")


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_read_in_one_sitting(name):
    assert len(FILES[name].read_text().splitlines()) <= MOST_LINES
    assert "TYPE_CHECKING" not in FILES[name].read_text()
