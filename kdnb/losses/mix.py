"""Methods as data: a name, or a mix of weighted losses such as "ce:0.1 + kd:0.9(T=2) + afd:200"."""

import inspect
import math
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from kdnb.errors import InputError, choose
from kdnb.losses.base import LOSSES, METHODS

TERM = re.compile(r"(\w+)\s*(?::\s*([^\s()]+))?\s*(?:\(([^()]*)\))?")
EXAMPLE = "a mix such as 'ce:0.1 + kd:0.9(T=2) + afd:200'"


class Term(NamedTuple):
    """One summand of the objective: a loss in LOSSES ("ce": cross-entropy with the labels), its weight and options."""

    loss: str
    weight: float
    options: dict[str, object]  # those that are not the loss's defaults


def parse(method: str, named: Mapping[str, str] | None = None) -> tuple[Term, ...]:
    """The terms of a method, in the order in which they are summed: labels, then predictions, then features.

    method: a name in METHODS or a mix. named: mixes that a data set gives to names in place of METHODS'.
    Raises InputError for an unknown name, loss or option, and for a mix that cannot be read.
    """
    return parse_mix(
        method, ({**METHODS, **(named or {})}).get(method.strip(), method), tuple(LOSSES.values())
    )


@lru_cache(1024)  # thousands of runs have few methods
def parse_mix(method: str, text: str, losses: tuple[type, ...]) -> tuple[Term, ...]:
    """The terms of `text`, which `method` stands for; losses: those that there are, some may have come since."""
    if not re.search(r"[:+(]", text) and text.strip() not in LOSSES:
        raise InputError(
            f"unknown method {method!r}: choose one of {', '.join(METHODS)}, or {EXAMPLE}"
        )
    terms = [parse_term(part.strip(), text) for part in re.split(r"(?<!\de)\+(?![^(]*\))", text)]
    names = [term.loss for term in terms]
    if twice := {name for name in names if names.count(name) > 1}:
        raise InputError(f"method {text!r} names {', '.join(sorted(twice))} twice")
    return tuple(
        sorted(
            terms,
            key=lambda t: (LOSSES[t.loss].needs_teacher, not LOSSES[t.loss].same_classes, t.loss),
        )
    )


def split_list(text: str) -> list[str]:
    """Methods, or other names, that stand in a list with commas, but for those between the options of a loss."""
    return re.split(r"\s*,\s*(?![^(]*\))", text)


def parse_term(part: str, text: str) -> Term:
    match = TERM.fullmatch(part)
    if not match:
        raise InputError(f"method {text!r}: {part!r} cannot be read; write {EXAMPLE}")
    name, weight, options = match.groups()
    choose("loss", name, LOSSES)
    try:
        number = float(weight or 1)
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and number > 0):
        raise InputError(
            f"method {text!r}: the weight of {name} is {weight}: it must be a number above 0"
        )
    known, given = options_of(name), {}
    for pair in filter(None, (option.strip() for option in (options or "").split(","))):
        key, _, value = (word.strip() for word in pair.partition("="))
        if key in given:
            raise InputError(f"method {text!r}: {name} has {key} twice")
        if key not in known:
            allowed = f"choose one of {', '.join(known)}" if known else "it has none"
            raise InputError(f"method {text!r}: {name} has no option {key!r}: {allowed}")
        try:
            kind = type(known[key])
            given[key] = {"True": True, "False": False}[value] if kind is bool else kind(value)
            if kind in (int, float) and not 0 < given[key] < math.inf:
                raise ValueError
        except (KeyError, ValueError, TypeError):
            due = {float: "a number above 0, such as", int: "a whole number above 0, such as"}.get(
                kind, "like"
            )
            raise InputError(
                f"method {text!r}: {key} of {name} is {value!r}: it must be {due} {known[key]}"
            ) from None
    return Term(name, number, {k: v for k, v in sorted(given.items()) if v != known[k]})


def options_of(loss: str) -> dict[str, object]:
    """The options of a loss and their defaults: the keyword arguments of its class."""
    parameters = inspect.signature(LOSSES[loss].__init__).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def needs_teacher(terms: Sequence[Term]) -> bool:
    """Whether some of the terms need a teacher."""
    return any(LOSSES[term.loss].needs_teacher for term in terms)


def weight_at(loss: str, weight: float, epoch):
    """The weight of a loss in an epoch (from 0; or an array of them): warming up it rises, (epoch + 1) / warm-up."""
    ramp = LOSSES[loss].warmup
    return weight * (np.minimum(1.0, (epoch + 1) / ramp) if ramp else 1.0)


def canonical(terms: Sequence[Term]) -> str:
    """The mix of some terms, one spelling for each, which is read back as the same: what makes two runs the same."""

    def one(term: Term) -> str:
        options = ", ".join(f"{name}={value}" for name, value in term.options.items())
        weight = "" if term.weight == 1 else f":{np.format_float_positional(term.weight, trim='-')}"
        return f"{term.loss}{weight}" + (f"({options})" if options else "")

    mix = " + ".join(map(one, terms))
    return (
        f"{mix}:1" if mix in METHODS else mix
    )  # a loss by itself: its name alone would be the method's


def label(mix: str, named: Mapping[str, str] | None = None) -> str:
    """The name of a mix in METHODS (or of the data set's own), for legends, tables and folders; else the mix."""
    return names_by_mix(tuple({**METHODS, **(named or {})}.items()), tuple(LOSSES.values())).get(
        mix, mix
    )


@lru_cache(64)
def names_by_mix(known: tuple[tuple[str, str], ...], losses: tuple[type, ...]) -> dict[str, str]:
    """{mix: its name} of what is known, while there are these losses."""
    return {canonical(parse(text)): name for name, text in known}


def applicable_terms(
    terms: Sequence[Term], same_classes: bool, allow_partial: bool
) -> tuple[tuple[Term, ...], tuple[str, ...]]:
    """The terms that a teacher can serve, and the names of those it cannot: comparing predictions needs its classes.

    allow_partial: leave the others out, as long as something of the teacher is left. Raises InputError otherwise.
    """
    lost = [t for t in terms if LOSSES[t.loss].same_classes and not same_classes]
    kept = tuple(t for t in terms if t not in lost)
    if lost and not (allow_partial and needs_teacher(kept)):
        features = ", ".join(
            name for name, loss in LOSSES.items() if loss.needs_teacher and not loss.same_classes
        )
        instead = canonical(kept) if needs_teacher(kept) else "ce + afd:200"
        raise InputError(
            f"{', '.join(t.loss for t in lost)} compares predictions, and this teacher knows other classes: choose "
            f"one on features ({features}) such as '{instead}', or a teacher of these classes"
        )
    return kept, tuple(t.loss for t in lost)
