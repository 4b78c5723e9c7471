"""Turn runs that were made anywhere into records, and make the study's tables anew.

    python -m kdnb.results FOLDER ...    # the finished runs below the folders become records
    python -m kdnb.results --against kd  # differences to a method, seed by seed; writes nothing

With --against, --latex or --csv, a table of the finished runs below the folders is printed; without
folders, of those in outputs/records and outputs/runs.

Exit status: 0; 1 if a run was damaged, and so left out; 2 for a folder that is missing.
"""

import argparse
import sys
from pathlib import Path

from kdnb.errors import InputError
from kdnb.paths import output_folder
from kdnb.progress import tolerant_output


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
    parser.add_argument(
        "--against",
        metavar="METHOD",
        help="print every training's difference to this method (none: labels only), with 95 %%\n"
        "intervals and p-values, as such and corrected for their number (Holm)",
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--latex", action="store_true", help="that table for booktabs and siunitx")
    form.add_argument("--csv", action="store_true", help="that table as comma-separated values")
    return parser


@tolerant_output()
def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = make_parser()
    options = parser.parse_args(argv)
    # Here: they import torch, which takes seconds, and --help needs none of them.
    from kdnb.device import system_errors
    from kdnb.results.records import gather
    from kdnb.runs.plugins import load_plugins

    try:
        with system_errors():
            load_plugins(options.plugins)
            if options.against or options.latex or options.csv:
                print_differences(options)
                return 0
            return min(1, gather(options.folders, output_folder(options.outputs)))
    except InputError as error:
        parser.error(str(error))


def print_differences(options: argparse.Namespace) -> None:
    """Print the table of differences. Raises InputError for a folder that is missing."""
    from kdnb.results.differences import as_latex, as_text, method_differences
    from kdnb.results.frame import load_frame
    from kdnb.results.records import run_folders

    outputs = output_folder(options.outputs)
    places = [outputs / "records", outputs / "runs"]
    if options.folders:
        places = dict.fromkeys(path.parent for path in run_folders(options.folders))
    against = options.against or "none"
    table = method_differences(load_frame(*places), against)
    if options.csv:
        table.to_csv(sys.stdout, index=False, float_format="%.6g")
    else:
        print(as_latex(table) if options.latex else as_text(table, against))


if __name__ == "__main__":
    sys.exit(main())
