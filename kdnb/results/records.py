"""Records: what is committed of a finished run, in outputs/records."""

import contextlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from kdnb.errors import InputError
from kdnb.paths import output_folder
from kdnb.progress import percent
from kdnb.results.frame import load_frame, run_row
from kdnb.results.pages import fill_documents, make_pages, save
from kdnb.runs.files import read_bytes, write_atomically, write_json
from kdnb.runs.folder import RunFolder
from kdnb.runs.stored_names import REPLACED


def make_record(run: RunFolder, outputs: Path) -> Path:
    """Copy the small files of a finished run, all but weights, to outputs/records.

    Raises InputError for a run that is not finished, or damaged.
    """
    target = outputs / "records" / run.folder.name  # which a later preset might name otherwise
    _ = run_row(run), run.metrics, run.links_by_epoch  # raise what is wrong with any of the files
    config = {name: value for name, value in run.config.items() if name != "where"}
    write_json(target / "config.json", config)
    for name in ("metrics.csv", "history.npz", "result.json"):
        if (run.folder / name).is_file():
            write_atomically(target / name, read_bytes(run.folder / name))
    return target


def run_folders(folders: Sequence[Path]) -> list[Path]:
    """The folders of runs below some folders, sorted; prints which folders cannot be read.

    Raises InputError for a folder that is missing.
    """
    if missing := [folder for folder in folders if not folder.is_dir()]:
        raise InputError(f"{missing[0]}: no such folder")

    def report(error: OSError) -> None:
        print(f"left out: cannot read {error.filename}: {error.strerror}", file=sys.stderr)

    # Resolved, because the name of a run is that of its folder: "." has none.
    walks = (os.walk(folder.resolve(), onerror=report) for folder in folders)
    paths = {Path(path) for walk in walks for path, _, names in walk if "config.json" in names}
    return sorted(path for path in paths if path.parent.name != REPLACED)


def gather(folders: Sequence[Path], outputs: Path) -> int:
    """Make records of the finished runs below some folders, then the tables.

    Returns the number of damaged runs.

    Prints a line for each run that is new, replaces another record, is not finished, or is damaged.
    Raises InputError for a folder that is missing.
    """
    damaged = 0
    for path in run_folders(folders):
        try:
            gather_run(RunFolder(path), outputs)
        except InputError as error:
            damaged += 1
            print(f"left out: {error}", file=sys.stderr)
    texts = make_pages(load_frame(outputs / "records"))
    save(texts, outputs / "tables")
    if outputs.resolve() == output_folder().resolve():
        fill_documents(texts)
    return damaged


def gather_run(run: RunFolder, outputs: Path) -> None:
    """Make a record of a finished run, if there is none with the same result. Raises InputError."""
    name = run.folder.name
    if not run.done:
        print(f"not finished: {name}")
        return
    record = outputs / "records" / name / "result.json"
    is_replaced = record.is_file()
    if is_replaced and read_bytes(record) == read_bytes(run.folder / "result.json"):
        with contextlib.suppress(InputError):  # a damaged record is made anew
            _ = RunFolder(record.parent).result
            return
    make_record(run, outputs)
    top1 = percent(run.result["top1"], run.result["test_images"])
    print(f"{'replaced' if is_replaced else 'new'}: {name}, top-1 {top1} %")
