"""How the networks are called. Imports no torch, so that whoever only reads names stays quick."""

from __future__ import annotations

import re

from kdnb.errors import InputError

__all__ = ["check_wide", "model_name"]

RESNETS = ("resnet18", "resnet34", "resnet50")


def model_name(name: str) -> str:
    """The name as the literature writes it; the official code's spellings (`wrn40x2`, `resnet34im`) are accepted.

    Raises InputError for anything that is not a model here.
    """
    lowered = name.strip().lower()
    if wide := re.fullmatch(r"wrn[-_]?(\d+)[-_x](\d+)", lowered):
        depth, widen_factor = int(wide[1]), int(wide[2])
        check_wide(depth, widen_factor)
        return f"wrn_{depth}_{widen_factor}"
    if lowered.removesuffix("im") in RESNETS:
        return lowered.removesuffix("im")
    raise InputError(f"unknown model {name!r}: choose wrn_DEPTH_WIDTH (such as wrn_40_2), {', '.join(RESNETS)}")


def check_wide(depth: int, widen_factor: int) -> None:
    """Raises InputError for a wide residual network that cannot be built."""
    if depth < 10 or (depth - 4) % 6 or widen_factor < 1:
        raise InputError(f"wrn_{depth}_{widen_factor}: depth must be 6n + 4 (10, 16, 22, 28, 40 ...), widen factor 1+")
