"""Write a trained network as an ONNX, pt2 or TorchScript file, and check it on the test images.

    python -m kdnb.export RUN --to onnx    # or pt2, torchscript
    python -m kdnb.export RUN --int8       # ONNX, and quantised with training images

RUN is a run's folder or name, or a weights file. The file is written next to the weights. Its
predictions and logits are compared with PyTorch's on all test images.

Exit status: 0; 2 for bad input, such as a network that cannot be exported.
"""

import argparse
import sys
from pathlib import Path

from kdnb.errors import InputError, choose
from kdnb.progress import tolerant_output


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m kdnb.export", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("run", metavar="RUN", help="a run's folder or name, or a weights file")
    parser.add_argument("--to", default="onnx", help="onnx, pt2 or torchscript (onnx)")
    parser.add_argument(
        "--uint8",
        action="store_true",
        help="the file takes pixels 0..255 as uint8 and normalises them",
    )
    parser.add_argument("--int8", action="store_true", help="also write a quantised ONNX file")
    parser.add_argument("--file", default="", help="path of the file (by default RUN/student.onnx)")
    parser.add_argument("--data-root", default="", help="folder of the data ($KDNB_DATA or data/)")
    parser.add_argument("--outputs", default="", help="folder of the runs (outputs/)")
    return parser


@tolerant_output()
def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = make_parser()
    options = parser.parse_args(argv)
    # Here: it imports torch, which takes seconds, and --help does not need it.
    from kdnb.device import system_errors

    try:
        if options.int8 and options.to != "onnx":
            raise InputError(f"--int8 is --to onnx alone, not {options.to}")
        with system_errors():
            run_export(options)
    except InputError as error:
        parser.error(str(error))
    return 0


def run_export(options: argparse.Namespace) -> None:
    """Export a network, and compare the file with it. Raises InputError for bad input."""
    # Here: they import torch, which takes seconds, and --help needs none of them.
    from kdnb.deploy import FORMATS, export, load
    from kdnb.deploy.images import run_loaders
    from kdnb.deploy.metadata import find_weights
    from kdnb.deploy.quantisation import quantise

    choose("format", options.to, FORMATS)
    weights = find_weights(options.run, options.outputs)
    classifier = load(weights)
    path = Path(options.file or weights.with_suffix(FORMATS[options.to]))
    train, test = run_loaders(weights, classifier, options.data_root)
    inputs = "uint8" if options.uint8 else "normalised"
    exported = export(classifier, path, options.to, inputs)
    report(exported, classifier, test)
    if options.int8:
        int8 = quantise(exported, path.with_suffix(".int8.onnx"), train.epoch())
        report(int8, classifier, test)


def report(exported, classifier, test) -> None:
    """Print the size of an exported file, and how it compares with PyTorch."""
    from kdnb.deploy.formats import check_exported
    from kdnb.progress import percent

    check = check_exported(exported, classifier, test.epoch())
    agreement, top1, eager_top1 = (
        percent(value, check.images) for value in (check.agreement, check.top1, check.eager_top1)
    )
    print(
        f"{exported.path}: {exported.path.stat().st_size / 1e6:.2f} MB, takes "
        f"{exported.metadata['input']} images\n"
        f"  the same prediction as PyTorch for {agreement} % of {check.images:,} test "
        f"images; largest difference of a logit {check.difference:.2g}\n"
        f"  top-1 {top1} %, PyTorch in float32 {eager_top1} %",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
