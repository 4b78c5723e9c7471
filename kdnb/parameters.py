"""Parameters as papermill hands them to a notebook: which were set, of which type they are, where folders lie."""

from __future__ import annotations

import ast
import math
import os
from pathlib import Path

from kdnb.errors import InputError

__all__ = ["checked", "data_folder", "injected", "project_root"]


def project_root() -> Path:
    """The folder that holds notebooks/ and outputs/, wherever the notebook was started; else the current folder."""
    here = Path(__file__).resolve().parent.parent
    return here if (here / "notebooks").is_dir() else Path.cwd()


def data_folder(data_root: str) -> Path:
    """The folder that holds the data: `data_root`, or $KDNB_DATA, or data/ in the project."""
    return Path(data_root or os.environ.get("KDNB_DATA") or project_root() / "data").expanduser()


def injected(cells: list[str]) -> set[str]:
    """The names that papermill's `-p`, `-y` and `-f` set: those assigned in the cell that it adds, "# Parameters"."""
    names = set()
    for cell in cells:
        if cell.startswith("# Parameters\n"):
            targets = [t for node in ast.parse(cell).body if isinstance(node, ast.Assign) for t in node.targets]
            names |= {t.id for t in targets if isinstance(t, ast.Name)}
    return names


def checked(name: str, value: object, kind: type) -> object:
    """`value` as a `kind`. Raises InputError if it is another: papermill guesses types from the text it is given."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    if kind is float and (whole or isinstance(value, float)) and math.isfinite(value):
        return float(value)
    if (kind is int and whole) or (kind is not float and type(value) is kind):
        return value
    if kind is str and value is None:  # papermill turns -p teacher_weights None into None
        return "none"
    wanted = {str: "text", int: "a whole number", float: "a finite number", bool: "True or False"}[kind]
    raise InputError(f"{name} is {value!r}: it must be {wanted}")
