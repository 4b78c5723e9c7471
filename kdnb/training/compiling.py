"""Compiled functions, in the best of several ways that works."""

import warnings
from collections.abc import Callable
from typing import TypeVar

import torch

from kdnb.runs.run import Run

# Options of inductor by device, which are tried in their order. combo_kernels computes what does
# not depend on each other, such as the losses' terms, in one kernel.
OPTIONS = {"cuda": ({"combo_kernels": True}, None)}
MOST_VERSIONS = 64  # of one function that torch may hold: of methods that are trained together
SEEDS = ("seed", "teacher_seed", "teacher_weights_hash")  # fields that change no operation
Result = TypeVar("Result")

compiled_for: dict = {}  # the identity of the last run, without its seeds


def forget_other_runs(run: Run) -> None:
    """Drop what was compiled before, unless it was for the same networks and method.

    A notebook trains many networks, and torch holds few compiled versions of one function.
    """
    identity = {name: value for name, value in run.identity.items() if name not in SEEDS}
    if identity != compiled_for:
        torch.compiler.reset()
        compiled_for.clear()
        compiled_for.update(identity)


def compile_and_call(
    function: Callable,
    device: torch.device,
    call: Callable[[Callable], Result],
    undo: Callable[[], None] = lambda: None,
) -> tuple[Callable, Result]:
    """Compile a function and call it for the first time.

    Returns what to call from then on, and the result of `call`. It is the function itself if this
    cannot be compiled in any way; there is a warning for each.

    Args:
        function: what to compile.
        device: where it computes.
        call: is called with the compiled function, and calls it.
        undo: undoes what a failed call has changed.

    Raises torch.OutOfMemoryError, and what the function itself raises.
    """
    for options in OPTIONS.get(device.type, (None,)):
        compiled = torch.compile(function, dynamic=False, options=options)
        try:
            with torch._dynamo.config.patch(recompile_limit=MOST_VERSIONS):
                return compiled, call(compiled)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # compilers fail in many ways; the function's own error recurs
            cause = getattr(error, "inner_exception", error)
            way = f" with {', '.join(options)}" if options else ""
            message = f"the step is not compiled{way}, which costs time: {cause}"
            warnings.warn(message.splitlines()[0], stacklevel=2)
            undo()
    return function, call(function)
