"""The one exception for bad input: a sentence for the person who typed it, without the frames below."""


class InputError(ValueError):
    """What was asked for cannot be done; the message names it and says what is allowed.

    A notebook and papermill show the sentence alone: the frames between the cell and the check would tell the
    reader nothing. Plain Python shows the usual traceback.
    """

    def _render_traceback_(
        self,
    ) -> list[str]:  # IPython's protocol for exceptions that draw themselves
        return [f"{type(self).__name__}: {self}"]


def choose(what: str, name: str, known) -> str:
    """``name`` if it is one of ``known``, else an InputError that lists them."""
    if name not in known:
        raise InputError(f"unknown {what} {name!r}: choose one of {', '.join(sorted(known))}")
    return name
