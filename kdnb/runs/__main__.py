"""List, show and delete the runs on this machine.

    python -m kdnb.runs list            # state, accuracy, seconds and MB of each
    python -m kdnb.runs show NAME       # its parameters, machine, result and files
    python -m kdnb.runs delete NAME     # its folder and its figures; asks first
    python -m kdnb.runs prune           # checkpoints of runs that stopped a week ago, and teachers'
                                        # answers that no run used for a week; asks first
    python -m kdnb.runs disk            # what runs, figures and caches take

NAME is a run's name or folder, or a pattern such as 'digits-*'. Records are never deleted.

Exit status: 0; 1 if the answer was no; 2 for bad input, such as a run that is being trained.
"""

import argparse
import contextlib
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from kdnb.errors import InputError, quote, to_number
from kdnb.paths import answers_folder, cache_folder, output_folder
from kdnb.progress import percent, tolerant_output
from kdnb.runs import disk
from kdnb.runs.folder import RunFolder


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m kdnb.runs", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("command", choices=("list", "show", "delete", "prune", "disk"))
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="which runs (all; delete and show need one)"
    )
    parser.add_argument("--yes", action="store_true", help="do not ask")
    parser.add_argument(
        "--days", type=positive, default=7, help="for prune: since the last checkpoint or use (7)"
    )
    parser.add_argument("--outputs", default="", help="folder of the runs (outputs/)")
    return parser


def positive(text: str) -> float:
    """The value of a command's option that is a time."""
    with contextlib.suppress(ValueError):
        if (value := to_number(text)) >= 0:
            return value
    raise argparse.ArgumentTypeError(f"{quote(text)} is not a number of 0 or more")


def megabytes(nbytes: int) -> str:
    return f"{nbytes / 1e6:,.1f}"


def number(value: float, digits: int) -> str:
    return "" if math.isnan(value) else f"{value:.{digits}f}"


def print_runs(runs: Sequence[disk.StoredRun]) -> None:
    rows = [("state", "top-1 (%)", "seconds", "MB", "name")]
    rows += [
        (run.state, number(run.top1, 1), number(run.seconds, 0), megabytes(run.nbytes), run.name)
        for run in runs
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for state, top1, seconds, size, name in rows:
        numbers = zip((top1, seconds, size), widths[1:4], strict=True)
        columns = [state.ljust(widths[0]), *(text.rjust(width) for text, width in numbers), name]
        print("  ".join(columns))


def print_run(run: disk.StoredRun) -> None:
    """Print what a run is, and what is on disk of it. Raises InputError for a damaged one."""
    folder = RunFolder(run.path)
    config = folder.config
    facts = {"folder": run.path, "state": run.state, **config.get("run", {})}
    for machine in config.get("machines", [])[-1:]:
        facts |= {"last trained": machine.get("started"), "on": machine.get("device")}
        facts |= {"commit": machine.get("commit")}
    facts["MB"] = megabytes(run.nbytes)
    if folder.done:
        result = folder.result
        top1 = percent(result["top1"], result["test_images"])
        facts |= {"top-1 (%)": top1, "seconds": number(run.seconds, 0)}
    for path in run.figures:
        facts[f"figure {path.name.removesuffix(f'-{run.name}{path.suffix}')}"] = path
    width = max(map(len, facts))
    for name, value in facts.items():
        if value not in ("", None):
            print(f"{name:{width}}  {value}")


def confirmed(question: str, yes: bool) -> bool:
    """Whether the user agrees. Raises InputError if nobody can be asked."""
    if yes:
        return True
    try:
        return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        raise InputError("nobody is there to answer: --yes does it without asking") from None


def print_taught(runs: Sequence[disk.StoredRun], outputs: Path) -> None:
    """Print which other runs have one of these as their teacher: analyses need its weights."""
    names = {run.name for run in runs}
    for other in disk.stored_runs(outputs):
        if other.name in names or other.state == "damaged":
            continue
        config = RunFolder(other.path).config
        weights = (config.get("teacher") or {}).get("weights", "")
        file = config.get("where", {}).get("teacher_weights", "")
        for name in names & {weights, Path(file).parent.name}:
            print(f"{name} is the teacher of {other.name}")


def run_command(options: argparse.Namespace) -> int:
    outputs = output_folder(options.outputs)
    if options.command == "disk":
        use = disk.disk_use(outputs, cache_folder(), answers_folder())
        for what, (nbytes, folder) in use.items():
            print(f"{megabytes(nbytes):>10} MB  {what:{max(map(len, use))}}  {folder}")
        return 0
    if options.command in ("show", "delete") and not options.names:
        raise InputError(f"{options.command} needs the name of a run")
    runs = disk.stored_runs(outputs, options.names or ["*"])
    if options.command == "show":
        status = 0
        for run in runs:
            try:
                print_run(run)
            except InputError as error:  # a damaged run is no reason to leave out the others
                print(error, file=sys.stderr)
                status = 2
        return status
    if options.command == "prune":
        return prune(runs, options)
    print_runs(runs)
    if options.command == "list" or not runs:
        return 0
    print_taught(runs, outputs)
    nbytes = sum(run.nbytes + sum(map(disk.size_of, run.figures)) for run in runs)
    if not confirmed(f"delete these, {megabytes(nbytes)} MB?", options.yes):
        return 1
    for run in runs:
        disk.delete(run)
    print(f"{megabytes(nbytes)} MB are free again")
    return 0


def prune(runs: Sequence[disk.StoredRun], options: argparse.Namespace) -> int:
    """Delete old checkpoints of runs, and teachers' answers unless runs were named."""
    runs = disk.prunable(runs, options.days)
    answers = [] if options.names else disk.answer_files(answers_folder(), options.days)
    print_runs(runs)
    of_runs = sum(disk.size_of(path) for run in runs for path in run.checkpoints)
    of_answers = sum(map(disk.allocated, answers))
    questions = []
    if runs:
        questions += [f"delete their checkpoints, {megabytes(of_runs)} MB? They would start anew."]
    if answers:
        print(*answers, sep="\n")
        questions += [f"delete these answers of teachers, {megabytes(of_answers)} MB?"]
    if not questions:
        return 0
    if not confirmed(" ".join(questions), options.yes):
        return 1
    for run in runs:
        disk.prune(run)
    for path in answers:
        path.unlink(missing_ok=True)
    print(f"{megabytes(of_runs + of_answers)} MB are free again")
    return 0


@tolerant_output()
def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = make_parser()
    options = parser.parse_intermixed_args(argv)  # options may come before names
    # Here: it imports torch, which takes seconds, and --help does not need it.
    from kdnb.device import system_errors

    try:
        with system_errors():
            return run_command(options)
    except InputError as error:
        parser.error(str(error))


if __name__ == "__main__":
    sys.exit(main())
