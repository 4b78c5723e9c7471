"""Where the project, its data and the files of its packages lie, wherever Python was started."""

import importlib
import os
import pkgutil
from collections.abc import Iterable
from pathlib import Path


def project_root() -> Path:
    """The folder that holds notebooks/ and outputs/, wherever the notebook was started; else the current folder."""
    here = Path(__file__).resolve().parent.parent
    return here if (here / "notebooks").is_dir() else Path.cwd()


def resolve_path(path: str | Path) -> Path:
    """A path with ~ as the home folder; a relative one from the current folder or, if it is not there, the project."""
    given = Path(os.path.expanduser(path))  # which leaves ~somebody alone where pathlib raises
    return (
        given if given.exists() or not (project_root() / given).exists() else project_root() / given
    )


def data_folder(root: str | Path = "") -> Path:
    """The folder that holds the data: `root`, or $KDNB_DATA, or data/ in the project."""
    return (
        resolve_path(root)
        if root
        else Path(os.path.expanduser(os.environ.get("KDNB_DATA") or project_root() / "data"))
    )


def output_folder(root: str | Path = "") -> Path:
    """The folder under which runs are kept: `root`, or outputs/ in the project."""
    return Path(os.path.expanduser(root)) if root else project_root() / "outputs"


def run_folder(name: str | Path, outputs: str | Path = "") -> Path | None:
    """The folder of a run, by its path or by its name under the outputs folder; None if there is none."""
    root = output_folder(outputs)
    places = resolve_path(name), root / "runs" / name, root / "records" / name
    return next(
        (Path(os.path.abspath(place)) for place in places if (place / "config.json").is_file()),
        None,
    )


def import_files(package: str, folders: Iterable[str]) -> None:
    """Import every module of a package, so that each registers what it defines."""
    for module in pkgutil.iter_modules(folders):
        importlib.import_module(f"{package}.{module.name}")
