"""Train a grid of runs on Dask, one process per run, then execute results.ipynb.

    python -m kdnb.study --dataset cifar100 --seeds 0-4 -p teacher_weights none
    python -m kdnb.study --dataset digits -p epochs 1 --dry-run    # only list the commands

The methods are none, kd and afd if --methods names no others; teachers are trained first. Finished
runs are skipped, interrupted ones continue, and a run that fails does not stop the others.

Exit status: 0 finished; 1 a run failed; 2 bad arguments; 130 after Ctrl-C.
"""

import argparse
import shlex
import signal
import sys

from kdnb.data import DATASETS
from kdnb.errors import InputError
from kdnb.losses.mix import split_list
from kdnb.paths import data_folder, output_folder
from kdnb.runs.config import check_config_matches, make_config, set_aside
from kdnb.runs.grid import parse_pairs, plan_study
from kdnb.runs.parameters import check, command_parser
from kdnb.runs.plugins import load_plugins
from kdnb.runs.run import Run
from kdnb.study.cluster import cluster, run_all
from kdnb.study.fingerprints import Study
from kdnb.study.worker import execute, papermill_command, visible_gpus


def parse_seeds(text: str) -> list[int]:
    """ "0-2,7" -> [0, 1, 2, 7]."""
    seeds = []
    for part in text.split(","):
        ends = part.split("-")
        if len(ends) > 2 or not all(end.strip().isdigit() for end in ends):
            raise argparse.ArgumentTypeError(
                f"{text!r}: it must be numbers and ranges, such as 0-4 or 0,1,2"
            )
        seeds += range(int(ends[0]), int(ends[-1]) + 1)
    return seeds


def make_parser() -> argparse.ArgumentParser:
    parser = command_parser("python -m kdnb.study", __doc__)
    add = parser.add_argument
    datasets = ", ".join(DATASETS)
    add(
        "--dataset",
        default="cifar100",
        type=split_list,
        help=f"of {datasets}; several with commas (cifar100)",
    )
    add(
        "--methods",
        default="none,kd,afd",
        type=split_list,
        help="names or mixes (none,kd,afd); teacher: train the teacher alone",
    )
    add("--seeds", default="0", type=parse_seeds, help="of the students: 0-4 or 0,1,2 (0)")
    add(
        "--pair",
        default=[],
        type=split_list,
        help="teacher-student, of kdnb.models.PAIRS; several with commas, or all",
    )
    add(
        "--jobs",
        type=int,
        help="runs side by side on this machine (1, or as many as its GPUs have room for)",
    )
    add("--per-gpu", default=1, type=int, help="runs side by side on a GPU (1)")
    add(
        "--scheduler",
        default="",
        metavar="ADDRESS",
        help="of a running Dask cluster whose workers see the same folders",
    )
    add(
        "--dry-run",
        action="store_true",
        help="only list the finished runs, and the commands of the others",
    )
    add("--outputs", default="", help="folder of runs, tables and figures (outputs/)")
    return parser


def run_study(options: argparse.Namespace) -> int:
    """Plan a study, train its runs and execute results.ipynb; returns the exit status.

    Raises InputError for bad arguments.
    """
    outputs = output_folder(options.outputs).absolute()
    parameters = {str(name): value for name, value in options.p}
    plugins = load_plugins(check("plugins", parameters.get("plugins", ""), ""))
    rerun = parameters.pop("rerun", False)
    pairs = parse_pairs(options.pair)
    check_no_option(parameters, pairs)
    jobs = options.jobs
    if jobs is None:
        jobs = max(1, options.per_gpu * len(visible_gpus()))
    for name, value in {"--jobs": jobs, "--per-gpu": options.per_gpu}.items():
        if value < 1:
            raise InputError(f"{name} is {value}: it must be 1 or more")
    # A worker may have another default.
    data_root = data_folder(check("data_root", parameters.get("data_root", ""), "")).absolute()
    parameters["data_root"] = str(data_root)
    runs = plan_study(
        options.dataset,
        options.methods,
        pairs,
        seed=options.seeds,
        outputs=str(outputs),
        **parameters,
    )
    if rerun and not options.dry_run:
        teachers = {run.teacher_run for run in runs}
        runs = [run if run in teachers else set_aside(run) for run in runs]
    for run in runs:
        if run.done and not options.dry_run:
            check_config_matches(run, make_config(run))
        line = f"finished  {run.folder}" if run.done else f"to run    {run_command(run)}"
        print(line, flush=True)
    if options.dry_run:
        return 0
    failed = {}
    unfinished = [run for run in runs if not run.done]
    if unfinished:
        with cluster(options.scheduler, jobs) as client:
            data = dict.fromkeys(options.dataset, str(data_root))
            study = Study.create(options.per_gpu, outputs / "runs", data, plugins)
            failed = run_all(client, unfinished, study)
    parameters = {"outputs": outputs, "plugins": plugins}
    summary = papermill_command("results.ipynb", outputs / "results.ipynb", parameters)
    if error := execute(summary, outputs / "results.log", {}):
        failed["results.ipynb"] = error
    for name, error in failed.items():
        print(f"failed: {name}: {error}", file=sys.stderr)
    return 1 if failed else 0


def check_no_option(parameters: dict[str, object], pairs: list[dict[str, str]]) -> None:
    """Raises InputError for a parameter of -p that has an option, such as the seed."""
    with_option = {"dataset", "method", "seed", "outputs", *pairs[0]}
    if twice := with_option & parameters.keys():
        raise InputError(f"-p {min(twice)}: it has an option of its own")


def run_command(run: Run) -> str:
    """The command that trains a run by itself."""
    words = ["python", "-m", "kdnb"]
    for name, default in Run.parameters().items():
        value = getattr(run, name)
        if value != default:
            words += ["-p", name, str(value)]
    return shlex.join(words)


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = make_parser()
    # A shell starts background jobs with SIGINT ignored.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        return run_study(parser.parse_args(argv))
    except InputError as error:
        parser.error(str(error))
    except ConnectionError as error:
        print(f"{error}; the same command goes on from here", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
