"""Parameters as a notebook or papermill hands them over: which were set, and of which type they are."""

import ast
import contextlib
import math
from collections.abc import Collection, Mapping

from kdnb.errors import InputError


def checked(name: str, value: object, default: object) -> object:
    """`value` in the type of `default`. Raises InputError for another type, and for a number out of range.

    papermill guesses types from the text it is given.
    """
    kind = type(default)
    whole = isinstance(value, int) and not isinstance(value, bool) and value < 2**63
    if kind is str and value is None:  # papermill turns -p teacher_weights None into None
        return "none"
    if kind is float and (whole or isinstance(value, float)) and math.isfinite(value):
        value = float(value)
    elif not ((kind is int and whole) or (kind in (str, bool) and type(value) is kind)):
        wanted = {str: "text", int: "a whole number (below 2^63)", float: "a finite number"}.get(
            kind, "True or False"
        )
        raise InputError(f"{name} is {value!r}: it must be {wanted}")
    if kind in (int, float) and value < (least := -1 if name == "train_limit" else 0):
        raise InputError(f"{name} is {value}: it must be {least} or more")
    return value


def typed(text: str) -> object:
    """What papermill takes `text` for in `-p name text`."""
    with contextlib.suppress(ValueError, SyntaxError, TypeError):
        return ast.literal_eval(text)
    return text


def words(changes: Mapping[str, list]) -> str:
    """{name: [value, the preset's]} for people."""
    told = {
        ("train_limit", "-1"): "all",
        ("milestones", "[]"): "one cycle",
        ("pretrained", ""): "from scratch",
    }
    spelt = {
        name: [told.get((name, str(value)), value) for value in both]
        for name, both in changes.items()
    }
    return ", ".join(f"{name} {value} instead of {usual}" for name, (value, usual) in spelt.items())


def listing(what: str, values: Mapping[str, object]):
    """Names and values as a pandas table, for a notebook's reader; what: what they are of."""
    import pandas as pd

    return pd.DataFrame({"value": values.values()}, index=pd.Index(values, name=what)).astype(str)


def from_notebook(namespace: Mapping, known: Collection[str]) -> dict[str, object]:
    """The values of the `known` parameters in a notebook's `globals()`.

    Raises InputError for a name that its parameters cell, or the cell that papermill adds, sets beside them: papermill
    only warns about a misspelt `-p`, Python about nothing, and the defaults would be trained.
    """
    set_by_hand, set_by_papermill = [], []
    for cell in namespace.get("In", []):
        try:
            body = ast.parse(cell).body
        except SyntaxError:  # a cell with magics
            continue
        typed = {node.target.id for node in body if isinstance(node, ast.AnnAssign)}
        targets = [
            target for node in body if isinstance(node, ast.Assign) for target in node.targets
        ]
        untyped = {target.id for target in targets if isinstance(target, ast.Name)}
        if cell.startswith("# Parameters\n"):
            set_by_papermill = sorted(untyped)
        elif typed & set(known):
            set_by_hand = sorted(
                typed | untyped
            )  # the latest such cell: an earlier one may have been corrected
    for name in [*set_by_hand, *set_by_papermill]:
        if name not in known:
            raise InputError(f"unknown parameter {name!r}: choose from {', '.join(known)}")
    return {name: namespace[name] for name in known if name in namespace}
