"""Parameters as notebooks, papermill and the shell hand them over: names, types and ranges."""

import argparse
import ast
import contextlib
import math
from collections.abc import Collection, Mapping

from kdnb.errors import InputError

TYPES = {
    str: "text",
    int: "a whole number (below 2^63)",
    float: "a finite number",
    bool: "True or False",
}


def check(name: str, value: object, default: object) -> object:
    """The value of a parameter in the type of its default.

    papermill guesses types from text: it turns "1" into an integer and "None" into None. Raises
    InputError for another type and for a number out of range.
    """
    kind = type(default)
    if kind is str and value is None:
        return "none"
    is_integer = isinstance(value, int) and not isinstance(value, bool) and value < 2**63
    is_number = is_integer or isinstance(value, float)
    if kind is float and is_number and math.isfinite(value):
        value = float(value)
    elif kind is int:
        if not is_integer:
            raise InputError(f"{name} is {value!r}: it must be {TYPES[kind]}")
    elif type(value) is not kind or kind is float:
        raise InputError(f"{name} is {value!r}: it must be {TYPES[kind]}")
    least = -1 if name == "train_limit" else 0
    if kind in (int, float) and value < least:
        raise InputError(f"{name} is {value}: it must be {least} or more")
    return value


def parse_value(text: str) -> object:
    """The value that papermill reads from `text` in `-p name text`."""
    with contextlib.suppress(ValueError, SyntaxError, TypeError):
        return ast.literal_eval(text)
    return text


def command_parser(program: str, description: str) -> argparse.ArgumentParser:
    """A parser of a command with the option `-p NAME VALUE` for parameters of a run."""
    parser = argparse.ArgumentParser(
        program,
        description=description,
        formatter_class=argparse.RawTextHelpFormatter,
        allow_abbrev=False,
        usage="%(prog)s [options]",
    )
    parser.add_argument(
        "-p",
        nargs=2,
        action="append",
        default=[],
        type=parse_value,
        metavar=("NAME", "VALUE"),
        help="a parameter of kdnb.Run; papermill --help-notebook train.ipynb lists them",
    )
    return parser


def as_table(index_name: str, values: Mapping[str, object]):
    """Names and values as a pandas DataFrame of strings."""
    import pandas as pd

    return pd.DataFrame({"value": values.values()}, index=pd.Index(values, name=index_name)).astype(
        str
    )


def from_notebook(namespace: Mapping, known: Collection[str]) -> dict[str, object]:
    """The values of the known parameters in a notebook's `globals()`.

    papermill only warns about a misspelt `-p`, and Python does not notice a misspelt assignment. So
    the cells that set
    parameters are parsed: the latest parameters cell and the one that papermill adds. Raises
    InputError for a name in them that is not known.
    """
    set_by_hand: set[str] = set()
    set_by_papermill: set[str] = set()
    for cell in namespace.get("In", []):
        try:
            statements = ast.parse(cell).body
        except SyntaxError:  # a cell with magics
            continue
        annotated = {node.target.id for node in statements if isinstance(node, ast.AnnAssign)}
        targets = [t for node in statements if isinstance(node, ast.Assign) for t in node.targets]
        assigned = {target.id for target in targets if isinstance(target, ast.Name)}
        if cell.startswith("# Parameters\n"):
            set_by_papermill = assigned
        elif annotated & set(known):
            set_by_hand = annotated | assigned
    for name in [*sorted(set_by_hand), *sorted(set_by_papermill)]:
        if name not in known:
            raise InputError(f"unknown parameter {name!r}: choose from {', '.join(known)}")
    return {name: namespace[name] for name in known if name in namespace}
