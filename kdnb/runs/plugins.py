"""Plug-ins: the user's own Python files and modules, which register losses, networks, data sets.

A plug-in needs nothing but `import kdnb`. It is named by the parameter `plugins` of a run or by the
environment variable KDNB_PLUGINS, as a path or as an importable name, several with commas; or an
installed package names it under the entry point group `kdnb.plugins`.
"""

import hashlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Callable
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType

from kdnb.errors import InputError
from kdnb.paths import resolve_path

GROUP = "kdnb.plugins"
VARIABLE = "KDNB_PLUGINS"
LOADED: dict[str, str] = {}  # {path or module name: the start of the SHA-256 of its file}


class PluginError(InputError):
    """A plug-in is missing, or raises an error when it is imported."""


def load_plugins(names: str = "") -> str:
    """Import plug-ins that are not imported yet, and files that changed since.

    The plug-ins in KDNB_PLUGINS and of installed packages are imported first.

    Args:
        names: paths of Python files and importable names, separated by commas.

    Returns:
        The names with absolute paths, those in KDNB_PLUGINS included.

    Raises PluginError for a plug-in that is missing, or that raises an error.
    """
    load_installed()
    given = f"{os.environ.get(VARIABLE, '')},{names}".split(",")
    canonical = dict.fromkeys(canonical_name(name.strip()) for name in given if name.strip())
    for name in canonical:
        load_plugin(name)
    return ",".join(canonical)


@cache
def load_installed() -> None:
    for entry in entry_points(group=GROUP):
        guard(f"{entry.name} ({entry.value})", entry.load)


def canonical_name(name: str) -> str:
    """The absolute path of a file, or the importable name of a module."""
    is_file = name.endswith(".py") or os.sep in name
    return os.path.abspath(resolve_path(name)) if is_file else name


def load_plugin(name: str) -> None:
    """Import one plug-in, given by its canonical name. Raises PluginError."""
    if not os.path.isabs(name):
        module = guard(name, lambda: importlib.import_module(name))
        file = getattr(module, "__file__", None)
        LOADED[name] = digest(Path(file).read_bytes()) if file else ""
        return
    if not os.path.isfile(name):
        raise PluginError(f"plug-in {name}: no such file")
    try:
        data = Path(name).read_bytes()
    except OSError as error:
        raise PluginError(f"plug-in {name} cannot be read: {error.strerror}") from None
    if LOADED.get(name) != digest(data):
        if name in LOADED or name not in imported_files():
            guard(name, lambda: execute(name, data))
        LOADED[name] = digest(data)


def imported_files() -> set[str]:
    """The files of all imported modules: a plug-in may have been imported by hand."""
    files = {getattr(module, "__file__", None) for module in list(sys.modules.values())}
    return {os.path.abspath(file) for file in files if isinstance(file, str)}


def execute(path: str, data: bytes) -> None:
    """Execute a file as a module, which is found under its name when an object is unpickled."""
    module = ModuleType(module_name(path))
    module.__file__ = path
    # Not by an import: a compiled file that looks as old as its source would be used in its place.
    code = compile(data, path, "exec")
    replaced = sys.modules.get(module.__name__)
    sys.modules[module.__name__] = module
    try:
        exec(code, vars(module))
    except BaseException:
        if replaced is None:
            del sys.modules[module.__name__]
        else:
            sys.modules[module.__name__] = replaced
        raise


def module_name(path: str) -> str:
    """The name of a file's module; it hides no other module, such as random."""
    stem = Path(path).stem
    try:
        spec = importlib.util.find_spec(stem)
    except (ImportError, ValueError):  # a module without a spec, as this function makes them
        spec = None
    file = getattr(sys.modules.get(stem, spec), "__file__", None) or getattr(spec, "origin", None)
    return f"{stem}_plugin" if (spec or stem in sys.modules) and file != path else stem


def guard(name: str, load: Callable[[], object]) -> object:
    """What `load` returns. Raises PluginError with the last line of the error that it raises."""
    try:
        return load()
    except (Exception, SystemExit) as error:
        last_line = traceback.format_exception_only(error)[-1].strip()
        raise PluginError(f"plug-in {name} cannot be imported: {last_line}") from error


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
