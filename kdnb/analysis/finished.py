"""Which finished run a notebook is about."""

from collections.abc import Callable, Mapping
from functools import partial

from kdnb.errors import InputError
from kdnb.losses import LOSSES
from kdnb.losses.mix import Term
from kdnb.paths import output_folder, resolve_path
from kdnb.results.frame import or_warn
from kdnb.runs import parameters
from kdnb.runs.run import Run


def run_from_notebook(
    namespace: Mapping, accept: Callable[[Run], bool] | None = None, **own: object
) -> Run:
    """The run that the parameters of a notebook about a finished run name.

    With an empty `run`, it is the newest finished run that is accepted; without any, a new run of
    the digits with AFD, which is not trained here.

    Args:
        namespace: the notebook's `globals()`.
        accept: which runs are looked for; None: those whose loss links blocks, such as AFD.
        own: names and defaults of further parameters of the notebook.

    Raises InputError for an unknown parameter, one of a wrong type, and for a run or photograph
    that does not exist.
    """
    texts = ("run", "photograph", "teacher_weights", "data_root", "outputs", "plugins")
    defaults = dict.fromkeys(texts, "") | {"device": "auto", "threads": 0} | own
    given = parameters.from_notebook(namespace, defaults)
    if isinstance(given.get("run"), Run):  # the cell is executed again: `run` is now its result
        return given["run"]
    where = {
        name: parameters.check(name, value, defaults[name])
        for name, value in given.items()
        if value
    }
    photograph = where.pop("photograph", "")
    if photograph and not resolve_path(photograph).is_file():
        raise InputError(f"photograph {photograph!r}: no such file")
    where = {name: value for name, value in where.items() if name not in own}
    if name := where.pop("run", ""):
        return Run.open(name, **where)
    newest = newest_run(accept or has_links, **where)
    if newest is None:
        print("There is no such finished run: one of the digits with AFD is trained first.")
        return Run(**where)
    return newest


def newest_run(accept: Callable[[Run], bool], **where) -> Run | None:
    """The newest finished run whose weights are stored and that is accepted; None without any.

    where: fields of the run such as outputs, data_root or device. A damaged run is left out, with a
    warning.
    """
    files = output_folder(where.get("outputs", "")).glob("runs/*/student.safetensors")
    for path in sorted(files, key=lambda path: path.stat().st_mtime, reverse=True):
        run = or_warn("the search", partial(Run.open, **where), path.parent)
        if run and run.done and accept(run):
            return run
    return None


def has_teacher(run: Run) -> bool:
    """Whether a run has one teacher."""
    return len(run.teachers) == 1


def has_links(run: Run) -> bool:
    """Whether the method of a run includes a loss with attention between blocks, of one teacher."""
    return has_teacher(run) and link_term(run) is not None


def link_term(run: Run) -> Term | None:
    """The first term of a run whose loss has attention between blocks; None without any."""
    return next((term for term in run.terms if hasattr(LOSSES[term.loss], "attention")), None)
