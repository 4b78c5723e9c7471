"""Methods as data: a name, or a mix of weighted losses such as "ce:0.1 + kd:0.9(T=2) + afd:200"."""

import inspect
import math
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np

from kdnb.errors import SMALLEST, InputError, choose, quote, shorten, to_number
from kdnb.losses.base import LOSSES, METHODS

TERM = re.compile(r"(\w+)\s*(?::\s*([^\s()]+))?\s*(?:\(([^()]*)\))?")  # loss:weight(options)
MOST = 1e9  # of an option, whose square is a float32, too
EXAMPLE = "a mix such as 'ce:0.1 + kd:0.9(T=2) + afd:200'"


class Term(NamedTuple):
    """One summand of the training objective.

    Attributes:
        loss: a name in LOSSES, such as "ce".
        weight: what the loss is multiplied with.
        options: the options of the loss that differ from its defaults, sorted by name.
    """

    loss: str
    weight: float
    options: dict[str, object]


def parse(method: str, own_methods: Mapping[str, str] | None = None) -> tuple[Term, ...]:
    """Returns the terms of a method, in the order in which they are summed.

    The labels come first, then losses on predictions, then losses on features.

    Args:
        method: a name in METHODS, or a mix.
        own_methods: {name: mix} of a data set's preset or a pair of networks, before METHODS.

    Raises InputError for an unknown name, loss or option, and for a mix that cannot be read.
    """
    mixes = {**METHODS, **(own_methods or {})}
    mix = mixes.get(method.strip(), method)
    return parse_mix(method, mix, tuple(LOSSES.values()))


@lru_cache(1024)  # a study has thousands of runs of a few methods
def parse_mix(method: str, mix: str, losses: tuple[type, ...]) -> tuple[Term, ...]:
    """Returns the terms of a mix.

    Args:
        method: the text that the user gave, for the error.
        mix: the mix that it stands for.
        losses: all classes in LOSSES. They only make the cache miss when a loss is registered.
    """
    if not re.search(r"[:+(]", mix) and mix.strip() not in LOSSES:
        raise InputError(
            f"unknown method {quote(method)}: choose one of {', '.join(METHODS)}, or {EXAMPLE}"
        )
    # At each +, but for those of exponents (1e+06) and within parentheses.
    parts = re.split(r"(?<!\de)\+(?![^(]*\))", mix)
    terms = [parse_term(part.strip(), mix) for part in parts]
    names = [term.loss for term in terms]
    if duplicates := {name for name in names if names.count(name) > 1}:
        raise InputError(f"method {quote(mix)} names {', '.join(sorted(duplicates))} twice")
    return tuple(sorted(terms, key=summation_order))


def summation_order(term: Term) -> tuple:
    loss = LOSSES[term.loss]
    return loss.needs_teacher, not loss.same_classes, term.loss


def split_list(text: str) -> list[str]:
    """Splits a list of methods at its commas, but not at those between the options of a loss."""
    return re.split(r"\s*,\s*(?![^(]*\))", text)


def parse_term(part: str, mix: str) -> Term:
    """Returns the term that a part of a mix describes. Raises InputError, which quotes the mix."""
    match = TERM.fullmatch(part)
    if not match:
        raise InputError(f"method {quote(mix)}: {part!r} cannot be read; write {EXAMPLE}")
    loss, weight_text, options_text = match.groups()
    choose("loss", loss, LOSSES)
    try:
        weight = to_number(weight_text or "1")
    except ValueError:
        weight = math.nan
    if not weight > 0:
        raise InputError(
            f"method {quote(mix)}: the weight of {loss} is {shorten(weight_text)}: it must "
            f"be a number above 0 (at least {SMALLEST})"
        )
    return Term(loss, weight, parse_options(loss, options_text or "", mix))


def parse_options(loss: str, text: str, mix: str) -> dict[str, object]:
    """Returns the options in "name=value, ..." that differ from the loss's defaults, by name.

    Raises InputError for an unknown or repeated option and for a value that is not allowed.
    """
    defaults = options_of(loss)
    options = {}
    for pair in text.split(","):
        if not pair.strip():
            continue
        name, _, value = (word.strip() for word in pair.partition("="))
        if name in options:
            raise InputError(f"method {quote(mix)}: {loss} has {name} twice")
        if name not in defaults:
            allowed = f"choose one of {', '.join(defaults)}" if defaults else "it has none"
            raise InputError(f"method {quote(mix)}: {loss} has no option {name!r}: {allowed}")
        options[name] = parse_value(loss, name, value, defaults[name], mix)
    return {name: options[name] for name in sorted(options) if options[name] != defaults[name]}


def parse_value(loss: str, name: str, value: str, default: object, mix: str) -> object:
    """Returns an option's value in the type of its default.

    A number has to be above 0, or at least 0 if the loss says so in `may_be_zero`.
    Raises InputError for another.
    """
    kind = type(default)
    is_number = kind in (int, float)
    may_be_zero = name in LOSSES[loss].may_be_zero
    try:
        convert = partial(to_number, kind=kind) if is_number else kind
        parsed = {"True": True, "False": False}[value] if kind is bool else convert(value)
        if is_number:
            parsed = abs(parsed) if parsed == 0 else parsed  # -0.0 would be another spelling of 0
            is_large_enough = parsed >= 0 if may_be_zero else parsed > 0
            if not (is_large_enough and parsed <= MOST):
                raise ValueError
    except (KeyError, ValueError, TypeError):
        expected = f"like {default}"
        if is_number:
            number = "a whole number" if kind is int else "a number"
            bound = "of 0 or more" if may_be_zero else "above 0"
            nearest = "" if kind is int else f", and not nearer to 0 than {SMALLEST}"
            expected = f"{number} {bound}, such as {default} (at most {MOST:g}{nearest})"
        raise InputError(
            f"method {quote(mix)}: {name} of {loss} is {value!r}: it must be {expected}"
        ) from None
    return parsed


def options_of(loss: str) -> dict[str, object]:
    """Returns the options of a loss and their defaults: the keyword-only arguments of its class."""
    parameters = inspect.signature(LOSSES[loss].__init__).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def needs_teacher(terms: Sequence[Term]) -> bool:
    """Returns whether any of the terms needs a teacher."""
    return any(LOSSES[term.loss].needs_teacher for term in terms)


def views_needed(terms: Sequence[Term]) -> int:
    """Returns how many versions of each training image the terms compare."""
    return max(LOSSES[term.loss].views for term in terms)


def weight_at(loss: str, weight: float, epoch):
    """Returns the weight of a loss in an epoch, which rises linearly while the loss warms up.

    Args:
        loss: a name in LOSSES.
        weight: the full weight.
        epoch: the epoch, counted from 0, or an array of epochs.
    """
    warmup = LOSSES[loss].warmup
    if not warmup:
        return weight
    return weight * np.minimum(1.0, (epoch + 1) / warmup)


def canonical(terms: Sequence[Term]) -> str:
    """Returns the one spelling of a mix: `parse` reads it back as the same terms.

    Two runs train the same objective if their canonical mixes are equal.
    """
    mix = " + ".join(map(canonical_term, terms))
    if mix in METHODS:  # a single loss, such as "kd": without a weight it is the method's name
        return f"{mix}:1"
    return mix


def canonical_term(term: Term) -> str:
    weight = "" if term.weight == 1 else f":{np.format_float_positional(term.weight, trim='-')}"
    options = ", ".join(f"{name}={value}" for name, value in term.options.items())
    return f"{term.loss}{weight}" + (f"({options})" if options else "")


def label(mix: str, own_methods: Mapping[str, str] | None = None) -> str:
    """Returns the name of a canonical mix, for legends, tables and folders; a nameless mix itself.

    Args:
        mix: a canonical mix.
        own_methods: {name: mix} of a data set's preset or a pair of networks, before METHODS.
    """
    mixes = {**METHODS, **(own_methods or {})}
    return names_by_mix(tuple(mixes.items()), tuple(LOSSES.values())).get(mix, mix)


@lru_cache(64)
def names_by_mix(mixes: tuple[tuple[str, str], ...], losses: tuple[type, ...]) -> dict[str, str]:
    """Returns {canonical mix: name} of (name, mix) pairs.

    losses: all classes in LOSSES. They only make the cache miss when a loss is registered.
    """
    return {canonical(parse(mix)): name for name, mix in mixes}


def applicable_terms(
    terms: Sequence[Term], same_classes: bool, allow_partial: bool
) -> tuple[tuple[Term, ...], tuple[str, ...]]:
    """Returns the terms that a teacher can be used for, and the names of the losses left out.

    Losses that compare predictions are left out if the teacher predicts other classes.

    Args:
        terms: the terms of a method.
        same_classes: whether student and teacher predict the same classes.
        allow_partial: whether losses may be left out. At least one that needs the teacher has to
            remain.

    Raises InputError if losses would have to be left out and may not.
    """
    excluded = tuple(t for t in terms if LOSSES[t.loss].same_classes and not same_classes)
    applicable = tuple(t for t in terms if t not in excluded)
    names = tuple(term.loss for term in excluded)
    if excluded and not (allow_partial and needs_teacher(applicable)):
        features = ", ".join(
            name for name, loss in LOSSES.items() if loss.needs_teacher and not loss.same_classes
        )
        suggestion = canonical(applicable) if needs_teacher(applicable) else "ce + afd:200"
        raise InputError(
            f"{', '.join(names)} compares predictions, and this teacher knows other classes or "
            f"has no classifier: choose one on features ({features}) such as '{suggestion}', or a "
            "teacher of these classes"
        )
    return applicable, names
