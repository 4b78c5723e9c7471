"""The code that a run uses: hashes of its losses, networks and data set, and whether they changed.

A hash tells code apart that computes the same, such as a loss before and after a clean-up. The
file code_versions.csv lists the hashes of what comes with kdnb: those with one name compute the
same, up to the random numbers that they draw.
"""

import csv
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path

from kdnb.data import DATASETS
from kdnb.losses import LOSSES, Loss
from kdnb.losses.mix import Term, options_of
from kdnb.models.base import find_family
from kdnb.sources import code_hash, file_of, unwrap

PACKAGE = str(Path(__file__).resolve().parent.parent)


def definitions(
    terms: Sequence[Term], networks: Iterable[str], dataset: str
) -> dict[str, Callable]:
    """The classes and functions that a run uses, by kind and name, such as "loss kd"."""
    used = {f"loss {term.loss}": LOSSES[term.loss] for term in terms}
    used |= {f"network {name}": find_family(name)[1] for name in networks if name}
    used[f"data set {dataset}"] = DATASETS[dataset].load
    return used


def hashes(used: Mapping[str, Callable]) -> dict[str, str]:
    """The hash of each definition; without those that have no source code."""
    found = {
        name: code_hash(each, Loss if isinstance(each, type) and issubclass(each, Loss) else object)
        for name, each in used.items()
    }
    return {name: digest for name, digest in found.items() if digest}


def options(terms: Sequence[Term]) -> dict[str, dict[str, object]]:
    """The value of every option of each loss, defaults included."""
    return {term.loss: {**options_of(term.loss), **term.options} for term in terms}


def has_outside_code(used: Mapping[str, Callable]) -> bool:
    """Whether a definition comes from a file outside the package, such as a plug-in."""
    return not all(file_of(unwrap(each)).startswith(PACKAGE) for each in used.values())


@cache
def versions() -> dict[str, str]:
    """{hash: name of the version} of the code that comes with kdnb."""
    with open(Path(__file__).with_name("code_versions.csv"), newline="") as file:
        return {row["hash"]: row["version"] for row in csv.DictReader(file)}


def computes_the_same(digest: str, other: str) -> bool:
    """Whether two hashes are equal, or belong to one version of what comes with kdnb."""
    return versions().get(digest, digest) == versions().get(other, other)


def describe(stored: Mapping[str, str]) -> str:
    """What tells stored code apart from that of today's kdnb; "" if nothing does.

    stored: "code" of a config.json.
    """
    # The versions of today are named like the definition; earlier ones have more words.
    names = {name: versions().get(digest, f"{digest:.6} ") for name, digest in stored.items()}
    return ", ".join(
        f"{name}: {version.strip()}" for name, version in names.items() if " " in version
    )


def changed(stored: Mapping[str, str], current: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """{name: (stored hash, current hash)} of the definitions whose code differs."""
    return {
        name: (stored[name], digest)
        for name, digest in current.items()
        if name in stored and not computes_the_same(stored[name], digest)
    }
