"""Parameters as notebooks, papermill and the shell hand them over: names, types and ranges."""

import argparse
import ast
import contextlib
import math
from collections.abc import Collection, Mapping

from kdnb.errors import SMALLEST, InputError, quote, to_number, underflows

TYPES = {
    str: "text",
    int: "a whole number (below 2^63)",
    float: f"a finite number (0, or of at least {SMALLEST})",
    bool: "True or False",
}


NONE_IS_A_VALUE = ("method", "student_weights", "teacher_weights", "methods", "augment")
# YAML 1.1, which papermill reads with -f and -y, takes these words for True and False.
YAML_WORDS = {
    "compile": {True: "on", False: "off"},
    "data_on_device": {True: "yes", False: "no"},
    "teacher_cache": {True: "on", False: "off"},
}
LEAST = dict.fromkeys(("train_limit", "momentum", "weight_decay"), -1)  # of a number; otherwise 0
MOST = {"image_size": 10_000, "teacher_size": 10_000, "threads": 1024, "lr": 1e9}
MOST |= {"clip": 1e9, "weight_decay": 1e9, "views": 2}
MOST_THINGS = 10_000  # that a command's option may ask for
MOST_LETTERS = 4096  # of a text: the longest path of Linux


def check(name: str, value: object, default: object) -> object:
    """The value of a parameter in the type of its default.

    papermill guesses types from text: it turns "1" into an integer and "None" into None, which
    stands for the default where "none" is no value. YAML leaves 1e-3 as text. Raises InputError for
    another type and for a value out of range.
    """
    kind = type(default)
    if value is None:
        value = "none" if name in NONE_IS_A_VALUE else default
    if isinstance(value, bool):
        value = YAML_WORDS.get(name, {}).get(value, value)
    if kind is float and isinstance(value, str):
        with contextlib.suppress(ValueError):
            value = to_number(value)
    is_integer = isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63
    is_finite = is_integer or (isinstance(value, float) and math.isfinite(value))
    is_right = {int: is_integer, float: is_finite}.get(kind, type(value) is kind)
    if not is_right:
        raise InputError(f"{name} is {quote(value)}: it must be {TYPES[kind]}")
    value = kind(value)
    if kind is str and ("\0" in value or len(value) > MOST_LETTERS):
        raise InputError(
            f"{name} is {quote(value)}: it must be text of at most {MOST_LETTERS:,} letters "
            "without a zero byte"
        )
    if kind in (int, float):
        least, most = LEAST.get(name, 0), MOST.get(name, math.inf)
        if value < least:
            raise InputError(f"{name} is {value}: it must be {least} or more")
        if value > most:
            raise InputError(f"{name} is {value}: it must be {most:,} or less")
    return value


def parse_value(text: str) -> object:
    """The value that papermill reads from `text` in `-p name text`.

    A number that would become 0 stays text, which `check` refuses.
    """
    # Python's parser gives up on deep nesting with a RecursionError or a MemoryError.
    with contextlib.suppress(ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        value = ast.literal_eval(text)
        return text if has_underflow(text.strip()) else value
    return text


def has_underflow(source: str) -> bool:
    """Whether a Python expression contains a number that is not 0, but is 0 as a float."""
    constants = [node for node in ast.walk(ast.parse(source, mode="eval")) if is_float(node)]
    return any(underflows(ast.get_source_segment(source, node)) for node in constants)


def is_float(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, float)


def count(text: str) -> int:
    """The value of a command's option that is a number of things."""
    try:
        value = to_number(text, int)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if not 1 <= value <= MOST_THINGS:
        raise argparse.ArgumentTypeError(f"{value} is not between 1 and {MOST_THINGS:,}")
    return value


def minutes(text: str) -> float:
    """The value of a command's option that is a time."""
    try:
        return to_number(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


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
        help="set a parameter of kdnb.Run, as in `-p epochs 3`; may be given several times;\n"
        "papermill --help-notebook train.ipynb lists them",
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
    the cells that set parameters are parsed: the latest parameters cell and the one that papermill
    adds. A number that would become 0 is its text, which `check` refuses. Raises InputError for a
    name in the cells that is not known.
    """
    set_by_hand: dict[str, str] = {}  # {name: the text of its value}
    set_by_papermill: dict[str, str] = {}
    for cell in namespace.get("In", []):
        try:
            statements = ast.parse(cell).body
        except SyntaxError:  # a cell with magics
            continue
        annotated = assigned_in(cell, [n for n in statements if isinstance(n, ast.AnnAssign)])
        assigned = assigned_in(cell, [n for n in statements if isinstance(n, ast.Assign)])
        if cell.startswith("# Parameters\n"):
            set_by_papermill = assigned
        elif annotated.keys() & set(known):
            set_by_hand = annotated | assigned
    for name in [*sorted(set_by_hand), *sorted(set_by_papermill)]:
        if name not in known:
            raise InputError(f"unknown parameter {name!r}: choose from {', '.join(known)}")
    lost = {
        name: text
        for name, text in (set_by_hand | set_by_papermill).items()
        if namespace.get(name) == 0 and has_underflow(text)
    }
    values = {name: namespace[name] for name in known if name in namespace}
    return values | lost


def assigned_in(cell: str, statements: Collection[ast.Assign | ast.AnnAssign]) -> dict[str, str]:
    """The names that statements of a cell assign to, with the text of each value."""
    texts = {}
    for node in statements:
        targets = [node.target] if isinstance(node, ast.AnnAssign) else node.targets
        text = ast.get_source_segment(cell, node.value) if node.value else "None"
        texts |= {target.id: text for target in targets if isinstance(target, ast.Name)}
    return texts
