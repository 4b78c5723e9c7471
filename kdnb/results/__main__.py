"""Turn runs that were made anywhere into records, and make the study's tables anew.

    python -m kdnb.results FOLDER ...    # the finished runs below the folders become records

Exit status: 0; 1 if a run was damaged, and so left out; 2 for a folder that is missing.
"""

import argparse
import sys
from pathlib import Path

from kdnb.errors import InputError
from kdnb.paths import output_folder
from kdnb.plugins import load_plugins
from kdnb.results.records import gather


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m kdnb.results", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "folders",
        nargs="*",
        type=Path,
        metavar="FOLDER",
        help="where to look for runs; without any, only the tables are made",
    )
    parser.add_argument("--plugins", default="", help="own losses and data sets: a.py,b_module")
    parser.add_argument("--outputs", default="", help="folder of records/ and tables/ (outputs/)")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = make_parser()
    options = parser.parse_args(argv)
    try:
        load_plugins(options.plugins)
        return min(1, gather(options.folders, output_folder(options.outputs)))
    except InputError as error:
        parser.error(str(error))


if __name__ == "__main__":
    sys.exit(main())
