"""The package stays small, and its imports run one way."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "kdnb"
FILES = {path.relative_to(PACKAGE).as_posix(): path for path in sorted(PACKAGE.rglob("*.py"))}
PACKAGES = {name.split("/")[0] for name in FILES if "/" in name}


def imports(tree: ast.AST) -> set[str]:
    """The modules of kdnb that code imports when it runs, wherever in it that stands."""
    if isinstance(tree, ast.If) and "TYPE_CHECKING" in ast.unparse(tree.test):
        return set().union(*map(imports, tree.orelse))
    found = set().union(*map(imports, ast.iter_child_nodes(tree)))
    if isinstance(tree, ast.Import):
        found |= {alias.name for alias in tree.names}
    if isinstance(tree, ast.ImportFrom):
        assert not tree.level, "imports are absolute here"
        found |= {f"kdnb.{alias.name}" for alias in tree.names} if tree.module == "kdnb" else {tree.module}
    return {name for name in found if name.startswith("kdnb.")}


IMPORTS = {name: imports(ast.parse(path.read_text())) for name, path in FILES.items()}


def room(name: str) -> str:
    """A package with its modules is one room: "models/wrn.py" and "kdnb.models.wrn" are in "models"."""
    return name.removeprefix("kdnb.").replace("/", ".").removesuffix(".py").split(".")[0]


def test_rooms_stand_on_at_most_eight_floors():
    rooms = {room(name): set() for name in FILES if name != "__init__.py"}
    for name in FILES.keys() - {"__init__.py"}:
        rooms[room(name)] |= {room(found) for found in IMPORTS[name]} - {room(name)}
    assert set().union(*rooms.values()) <= rooms.keys()
    floors = {}
    for name in TopologicalSorter(rooms).static_order():  # raises CycleError for rooms that import each other
        floors[name] = 1 + max((floors[below] for below in rooms[name]), default=-1)
    assert max(floors.values()) < 8, sorted(floors.items(), key=lambda item: item[1])


@pytest.mark.parametrize("name", [name for name in FILES if name.startswith("plots/")])
def test_plots_take_arrays_and_know_no_run(name):
    allowed = {"kdnb.progress"} if name == "plots/explorers.py" else set()
    assert {found for found in IMPORTS[name] if room(found) != "plots"} <= allowed


def test_the_package_is_small():
    lines = {name: len(path.read_text().splitlines()) for name, path in FILES.items()}
    assert {name: n for name, n in lines.items() if n > 220} == {}
    assert sum(lines.values()) <= 7281  # 3,300 are promised: lower this with every line that goes
