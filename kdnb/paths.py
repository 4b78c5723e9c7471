"""Where the project, its data and its runs are, wherever Python was started."""

import importlib
import os
import pkgutil
import re
import sys
from collections.abc import Iterable
from pathlib import Path

from kdnb.errors import InputError, quote

WAITING: list[str] = []  # modules that could not be imported yet


def project_root() -> Path:
    """The folder that contains notebooks/ and outputs/; without a checkout, the current folder."""
    root = Path(__file__).resolve().parent.parent
    return root if (root / "notebooks").is_dir() else Path.cwd()


def expand_home(path: str | Path) -> Path:
    """A path with ~ as the home folder, unless there is a file whose name begins with ~.

    Raises InputError for an unknown ~user, for a ~ without a home folder, and for what is no path.
    """
    text = os.fspath(path)
    if "\0" in text:
        raise InputError(f"{quote(text)} is no path: it has a zero byte")
    expanded = os.path.expanduser(text)
    first = expanded.split(os.sep)[0]
    if first.startswith("~") and not os.path.lexists(first):
        raise InputError(
            f"{quote(text)}: there is no home folder for {quote(first)}; give a path without ~"
        )
    return Path(expanded)


def resolve_path(path: str | Path) -> Path:
    """A path relative to the current folder or, if it does not exist there, to the project."""
    given = expand_home(path)
    in_project = project_root() / given
    return in_project if in_project.exists() and not given.exists() else given


def file_name(text: str) -> str:
    """A text as the name of one file or folder: an underscore for what file systems mind."""
    return re.sub(r'[\\/:*?"<>|\x00-\x1f\x7f]', "_", text)


def data_folder(root: str | Path = "") -> Path:
    """The folder of the data: `root`, or $KDNB_DATA, or data/ in the project."""
    if root:
        return resolve_path(root)
    return expand_home(os.environ.get("KDNB_DATA") or project_root() / "data")


def output_folder(root: str | Path = "") -> Path:
    """The folder of runs, tables and figures: `root`, or outputs/ in the project."""
    return expand_home(root) if root else project_root() / "outputs"


def cache_folder() -> Path:
    """The folder of caches: $KDNB_CACHE, or kdnb/ of $XDG_CACHE_HOME or ~/.cache.

    Raises InputError if it is in a home folder that is not known.
    """
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    try:
        return expand_home(os.environ.get("KDNB_CACHE") or Path(home) / "kdnb")
    except InputError as error:
        raise InputError(
            f"the decoded images cannot be saved ({error}): set KDNB_CACHE to a folder that can be "
            "written to"
        ) from None


def answers_folder() -> Path:
    """The folder of the teachers' answers. Raises InputError as `cache_folder` does."""
    return cache_folder() / "answers"


def run_folder(name: str | Path, outputs: str | Path = "") -> Path | None:
    """The folder of a run, given by its path or its name under the outputs folder; None if missing.

    A run's own folder comes before a record of the same name.
    """
    root = output_folder(outputs)
    for path in (resolve_path(name), root / "runs" / name, root / "records" / name):
        if (path / "config.json").is_file():
            return Path(os.path.abspath(path))
    return None


def import_files(package: str, folders: Iterable[str]) -> None:
    """Import every module of a package, so that each registers what it defines.

    A file of the user's in one package may need another that is still being imported, as a network
    and a loss in one file do. It is imported when that package is complete.
    """
    names = [f"{package}.{module.name}" for module in pkgutil.iter_modules(folders)]
    for name in [*WAITING, *names]:
        try:
            importlib.import_module(name)
        except (AttributeError, ImportError):
            if not is_being_imported("kdnb.losses") or package == "kdnb.losses":
                raise
            WAITING.append(name)


def is_being_imported(name: str) -> bool:
    return name in sys.modules and sys.modules[name].__spec__._initializing
