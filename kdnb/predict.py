"""Classify photographs with a trained network.

    python -m kdnb.predict RUN PHOTO ... [--csv]

RUN is a run's folder or name, or a weights file. PHOTO is an image file or a folder of images.

Exit status: 0; 2 for bad input, such as a photograph that cannot be decoded.
"""

import argparse
import sys

from kdnb.errors import InputError
from kdnb.progress import tolerant_output


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m kdnb.predict", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("run", metavar="RUN", help="a run's folder or name, or a weights file")
    parser.add_argument("photographs", metavar="PHOTO", nargs="+", help="an image, or a folder")
    parser.add_argument("--top", type=int, default=5, help="classes per photograph (5)")
    parser.add_argument("--csv", action="store_true", help="print comma-separated values")
    parser.add_argument(
        "--skip-damaged", action="store_true", help="leave out files that cannot be decoded"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    parser.add_argument("--outputs", default="", help="folder of the runs (outputs/)")
    return parser


@tolerant_output()
def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = make_parser()
    options = parser.parse_args(argv)
    # Here: they import torch, which takes seconds, and --help needs none of them.
    from kdnb.deploy import load
    from kdnb.device import pick_device, system_errors

    try:
        with system_errors():
            classifier = load(options.run, options.outputs).to(pick_device(options.device))
            table = classifier.predict(options.photographs, options.top, options.skip_damaged)
    except InputError as error:
        parser.error(str(error))
    if options.csv:
        table.to_csv(sys.stdout, index=False)
    else:
        print(table.to_string(index=False, float_format="{:.4f}".format))
    return 0


if __name__ == "__main__":
    sys.exit(main())
