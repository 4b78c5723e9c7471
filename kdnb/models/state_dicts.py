"""Finds a network among the tensors that a trainer saved, in dictionaries and with prefixes.

All tensors of a file are listed by their paths. A network is where most of its keys are found.
"""

import argparse
import collections
import re
import types
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from kdnb.errors import InputError

# Modules that torch wraps around a network, or around a part of it.
WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
COUNTERS = ("n_averaged", "total_ops", "total_params", "num_batches_tracked")  # no weights
USUAL = ("model", "state_dict", "net", "student", "teacher")  # names of the network in a file
DEPTH = 20  # of dictionaries in dictionaries


class Entry(NamedTuple):
    """A tensor in a file: the path of the dictionary that holds it, its key there, and itself."""

    dictionary: tuple[str, ...]
    key: str
    tensor: Tensor

    @property
    def path(self) -> tuple[str, ...]:
        """Dictionaries and key in words, without WRAPPERS."""
        return split(*self.dictionary, self.key)


def split(*keys: str) -> tuple[str, ...]:
    """Returns the parts of keys between their dots, without WRAPPERS."""
    return tuple(word for key in keys for word in key.split(".") if word not in WRAPPERS)


def entries(content: object) -> list[Entry]:
    """Returns all tensors of a file, within dictionaries, lists and namespaces."""
    return list(walk(content, (), set()))


def walk(content: object, path: tuple[str, ...], seen: set[int]) -> Iterator[Entry]:
    """Yields the tensors within a container. Each container is entered once: it may hold itself."""
    if id(content) in seen or len(path) > DEPTH:
        return
    seen.add(id(content))
    if isinstance(content, argparse.Namespace | types.SimpleNamespace):
        content = vars(content)
    if isinstance(content, list | tuple):
        content = dict(enumerate(content))
    if isinstance(content, Mapping):
        for key, value in content.items():
            if isinstance(value, Tensor):
                yield Entry(path, str(key), value)
            else:
                yield from walk(value, (*path, str(key)), seen)


def is_named(word: str, role: str) -> bool:
    """Returns whether a word of a path is a role's: student, my_student, snet, model_s, net_S."""
    parts = re.split(r"[\W\d_]+", word.lower())
    return bool(role) and any(
        part.startswith(role) or part in (role[0], f"{role[0]}net", f"{role[0]}model")
        for part in parts
    )


def find_network(
    found: list[Entry], expected: Mapping[str, Tensor], role: str, path: Path
) -> dict[str, Tensor]:
    """Returns the tensors of a network by their keys, without what is in front of them.

    Of several places in the file it takes the one with most of the network's keys, then shapes;
    then the one that is named like the role; then one of a usual name; then the first. If several
    fit, a line says which one was taken.

    Args:
        found: all tensors of a file.
        expected: a state dict of the network.
        role: "student" or "teacher"; "" for neither.
        path: the file.
    """
    keys = {split(key): key for key in expected}
    states: dict[tuple, dict[str, Tensor]] = {}  # by dictionary and what is in front of the keys
    for entry in found:
        words = entry.path
        for start in range(len(words)):
            if key := keys.get(words[start:]):
                place = entry.dictionary, words[:start]
                states.setdefault(place, {}).setdefault(key, entry.tensor)
    if not states:
        return {}

    def fit(place: tuple) -> tuple:
        state = states[place]
        return len(state), sum(state[key].shape == expected[key].shape for key in state)

    def preference(place: tuple) -> tuple:
        named = any(is_named(word, role) for word in place[1])
        usual = max((len(USUAL) - USUAL.index(w) for w in place[1] if w in USUAL), default=0)
        return *fit(place), named, usual

    best = max(states, key=preference)  # the first of equals
    if others := [place for place in states if place != best and fit(place) == fit(best)]:
        names = (".".join(place[1]) or "without a name" for place in (best, *others))
        print(f"{path} holds several such networks ({', '.join(names)}): the first one is taken")
    dictionary, front = best
    state = dict(states[best])
    known = {id(tensor) for tensor in state.values()}
    for entry in found:  # what else is there is of another network, if it is no counter
        is_there = entry.dictionary == dictionary and entry.path[: len(front)] == front
        if is_there and id(entry.tensor) not in known:
            state.setdefault(".".join(entry.path[len(front) :]), entry.tensor)
    return state


def largest_dictionary(found: list[Entry]) -> dict[str, Tensor]:
    """Returns the tensors of the dictionary of a file that has most of them, by their keys.

    A wrapper that all keys begin with is removed.
    """
    sizes = collections.Counter(entry.dictionary for entry in found)
    [(dictionary, _)] = sizes.most_common(1)
    state = {entry.key: entry.tensor for entry in found if entry.dictionary == dictionary}
    while len(fronts := {key.partition(".")[0] for key in state}) == 1 and fronts <= WRAPPERS:
        state = {key.partition(".")[2]: tensor for key, tensor in state.items()}
    return state


def is_counter(key: str) -> bool:
    return key.rpartition(".")[2] in COUNTERS


def plain(tensors: Mapping[str, Tensor], path: Path, known: Collection[str] = ()) -> dict:
    """Returns tensors as a network takes them: dense, half precision and float64 as float32.

    Counters that the network does not know are left out.

    Raises InputError for a tensor with fewer values than its shape has, and for nan or infinity.
    """
    state = {}
    for key, value in tensors.items():
        if is_counter(key) and known and key not in known:
            continue
        if value.is_meta or value.is_nested or value.is_quantized:
            raise InputError(f"{path}: {key} is no plain tensor")
        value = value.detach()
        if value.layout != torch.strided:
            raise InputError(f"{path}: {key} is a sparse tensor: save it as to_dense()")
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise InputError(f"{path}: {key} has fewer values than its shape {tuple(value.shape)}")
        value = value.float() if value.is_floating_point() else value
        if not value.isfinite().all():
            raise InputError(f"{path}: {key} is not finite: it has nan or infinite values")
        if key.endswith("running_var") and (value < 0).any():
            raise InputError(f"{path}: {key} is a variance and has negative values")
        state[key] = value
    return state
