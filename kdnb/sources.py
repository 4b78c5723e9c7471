"""The source code of what is registered: losses, networks and data sets.

A changed loss is another training, so a run records a hash of the code that it uses.
"""

import ast
import hashlib
import linecache
import sys
from collections.abc import Callable
from functools import lru_cache, partial

from kdnb.errors import InputError

TEXTS: dict[object, str] = {}  # {class or function: the text of its file when it was defined}


def claim(kind: str, name: str, definition: Callable, previous: Callable | None) -> None:
    """Remember the source of what is about to be registered under a name.

    Args:
        kind: such as "loss", for the error.
        name: the name that it is registered under.
        definition: the class or function.
        previous: what is registered under this name already; None if nothing is.

    Raises InputError if the name belongs to a definition in another file. A definition may be
    repeated, as when a cell of a notebook is executed again.
    """
    if previous is not None and file_of(previous) != file_of(definition):
        raise InputError(
            f"the {kind} {name!r} is defined in {file_of(previous)} already: choose another name "
            f"in {file_of(definition)}"
        )
    TEXTS[unwrap(definition)] = read_text(unwrap(definition))


def unwrap(definition: Callable) -> Callable:
    """The class or function itself, without the arguments that functools.partial added."""
    while isinstance(definition, partial):
        definition = definition.func
    return definition if hasattr(definition, "__qualname__") else type(definition)


def file_of(definition: Callable) -> str:
    """The file of a class or function; a cell of a notebook counts as a file."""
    definition = unwrap(definition)
    members = vars(definition).values() if isinstance(definition, type) else [definition]
    codes = [member.__code__ for member in members if hasattr(member, "__code__")]
    if codes:
        # Cells that define the same class again have other names, but one module.
        is_cell = getattr(definition, "__module__", "") == "__main__"
        return "__main__" if is_cell else codes[0].co_filename
    module = sys.modules.get(definition.__module__)
    return getattr(module, "__file__", None) or definition.__module__


def read_text(definition: Callable) -> str:
    """The text of the file, or the cell, that defines a class or function; "" if it has none."""
    members = vars(definition).values() if isinstance(definition, type) else [definition]
    names = [member.__code__.co_filename for member in members if hasattr(member, "__code__")]
    name = names[0] if names else file_of(definition)
    linecache.checkcache(name)
    return "".join(linecache.getlines(name))


def code_hash(definition: Callable, base: type = object) -> str:
    """The first 12 hex digits of the SHA-256 of the code of a class or function.

    It covers the bases of a class up to `base`, and what the code uses of its own file: functions,
    classes and constants. Comments, docstrings and the layout do not count.

    Returns "" if there is no source code, as for classes typed into an interactive Python.
    """
    definition = unwrap(definition)
    parts = []
    classes = definition.__mro__ if isinstance(definition, type) else (definition,)
    for each in classes:
        if isinstance(each, type) and (issubclass(base, each) or is_library(each)):
            continue
        text = TEXTS.get(each) or read_text(each)
        parts.append(normalised(text, each.__qualname__.split(".")[0]))
    if not all(parts):
        return ""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def is_library(each: type) -> bool:
    """Whether a class belongs to Python or to torch, whose versions are recorded."""
    return each.__module__.split(".")[0] in ("builtins", "typing", "abc", "torch", "torchvision")


@lru_cache
def normalised(text: str, name: str) -> str:
    """The syntax of a definition in a file, and of what it uses of that file; "" if missing."""
    try:
        statements = ast.parse(text).body
    except SyntaxError:  # a cell with magics
        return ""
    definitions: dict[str, list[ast.stmt]] = {}
    for statement in statements:
        for defined in names_defined(statement):
            definitions.setdefault(defined, []).append(statement)
    used, new = set(), {name} & definitions.keys()
    while new:
        used |= new
        names = {name for each in new for root in definitions[each] for name in names_used(root)}
        new = (names & definitions.keys()) - used
    return "\n".join(
        repr(syntax(statement)) for each in sorted(used) for statement in definitions[each]
    )


def names_defined(statement: ast.stmt) -> list[str]:
    if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return [statement.name]
    if isinstance(statement, (ast.Assign, ast.AnnAssign, ast.AugAssign)):
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        names = [node for target in targets for node in ast.walk(target)]
        return [node.id for node in names if isinstance(node, ast.Name)]
    return []


def names_used(root: ast.stmt) -> set[str]:
    """The names that a statement reads, without those of its own variables and arguments."""
    nodes = list(ast.walk(root))
    names = [node for node in nodes if isinstance(node, ast.Name)]
    own = {node.id for node in names if isinstance(node.ctx, ast.Store)}
    own |= {node.arg for node in nodes if isinstance(node, ast.arg)}
    return {node.id for node in names} - own


def syntax(node) -> object:
    """A syntax tree as nested lists without docstrings, the same in all versions of Python."""
    if isinstance(node, list):
        return [syntax(each) for each in node]
    if not isinstance(node, ast.AST):
        return node
    fields = dict(ast.iter_fields(node))
    has_body = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
    if has_body and ast.get_docstring(node) is not None:
        fields["body"] = node.body[1:]
    contents = [
        (name, syntax(value)) for name, value in fields.items() if value is not None and value != []
    ]
    return [type(node).__name__, *contents]
