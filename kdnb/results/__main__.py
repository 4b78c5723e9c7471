"""Runs that were made elsewhere become records, and the study's tables are made anew.

    python -m kdnb.results FOLDER ...    # the finished runs below it, of any machine, become records; then the tables

Exit status: 0; 1 if a run was damaged, and so left out; 2 for a folder that is not there.
"""

import argparse
import sys
from pathlib import Path

from kdnb.errors import InputError
from kdnb.paths import output_folder
from kdnb.results.frame import load_frame, record
from kdnb.results.tables import pages, save
from kdnb.runs.folder import RunFolder


def gather(folders: list[Path], outputs: Path) -> int:
    """Make records of the finished runs below some folders, then the tables anew; how many were damaged.

    Says a line of each run that is new, replaces another record, is not finished, or cannot be read. Raises InputError.
    """
    if missing := [folder for folder in folders if not folder.is_dir()]:
        raise InputError(f"{missing[0]}: no such folder")
    damaged = 0
    for path in sorted(found for folder in folders for found in folder.rglob("config.json")):
        try:
            run, name = RunFolder(path.parent), path.parent.name
            kept, measured = (
                place / "result.json" for place in (outputs / "records" / name, run.folder)
            )
            if not run.done:
                print(f"not finished: {name}")
            elif not kept.is_file() or kept.read_bytes() != measured.read_bytes():
                word = "replaced" if kept.is_file() else "new"
                print(f"{word}: {record(run, outputs).name}, top-1 {run.result['top1']:.2f} %")
        except InputError as error:
            damaged += 1
            print(f"left out: {error}", file=sys.stderr)
    save(pages(load_frame(outputs / "records")), outputs / "tables")
    return damaged


def main(argv: list[str] | None = None) -> int:
    """The exit status; see the top of this file."""
    form = {"formatter_class": argparse.RawTextHelpFormatter}
    parser = argparse.ArgumentParser("python -m kdnb.results", description=__doc__, **form)
    add = parser.add_argument
    add(
        "folders",
        nargs="*",
        type=Path,
        metavar="FOLDER",
        help="under which runs lie; none: only the tables",
    )
    add("--outputs", default="", help="folder of records/ and tables/ (outputs/)")
    given = parser.parse_args(argv)
    try:
        return min(1, gather(given.folders, output_folder(given.outputs)))
    except InputError as error:
        parser.error(str(error))


if __name__ == "__main__":
    sys.exit(main())
