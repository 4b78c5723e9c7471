"""Reads a file of weights as data, or says what it is: nothing in it is executed."""

import argparse
import collections
import datetime
import pathlib
import re
import types
import warnings
import zipfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from kdnb.errors import InputError, shorten

# Plain containers and numbers, which trainers save with the weights.
HARMLESS = [
    argparse.Namespace,
    types.SimpleNamespace,
    collections.defaultdict,
    collections.deque,
    datetime.date,
    datetime.datetime,
    datetime.timedelta,
    pathlib.PosixPath,
    pathlib.PurePosixPath,
    np.ndarray,
    np.dtype,
    *(type(np.dtype(code)) for code in "?bBhHiIlLqQefdFD"),
    type(np.dtype("U1")),
    *(
        (getattr(np._core.multiarray, name), f"numpy.{core}.multiarray.{name}")
        for name in ("scalar", "_reconstruct")
        for core in ("core", "_core")  # of NumPy 1 and 2
    ),
]

# How files begin that are taken for weights.
SIGNATURES = {
    b"version https://git-lfs": "a git-lfs pointer: fetch the file with git lfs pull",
    b"\x1f\x8b": "an archive (gzip): unpack it first",
    b"BZh": "an archive (bzip2): unpack it first",
    b"\xfd7zXZ": "an archive (xz): unpack it first",
    b"7z\xbc\xaf": "an archive (7z): unpack it first",
    b"Rar!": "an archive (rar): unpack it first",
    b"\x28\xb5\x2f\xfd": "an archive (zstd): unpack it first",
    b"\x89HDF": "an HDF5 file, such as Keras's",
    b"\x93NUMPY": "a NumPy array",
    b"{": "a JSON file",
}


def read_file(path: Path) -> object:
    """Returns what a .safetensors or torch file holds, on the CPU.

    Raises InputError that says what the file is, or which type in it is not data.
    """
    if not path.is_file():
        raise InputError(f"no weights file at {path}")
    start = b""
    try:
        with open(path, "rb") as file:
            start = file.read(512)
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals(HARMLESS), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError:
        raise
    except Exception as error:  # torch's unpickler raises nearly any of a damaged file
        why = kind_of(path, start) or refused(error)
        raise InputError(f"{path} is not a readable weights file ({why})") from None


def kind_of(path: Path, start: bytes) -> str:
    """Returns what a file is that holds no weights; "" if it may be a damaged weights file.

    start: its first 512 bytes.
    """
    for signature, kind in SIGNATURES.items():
        if start.startswith(signature):
            return f"it is {kind}"
    if path.is_file() and not path.stat().st_size:
        return "it is empty"
    if start.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return "it is a web page: download the file itself"
    if start[257:262] == b"ustar":
        return "it is an archive (tar): unpack it first"
    names = set()
    with suppress(Exception), zipfile.ZipFile(path) as archive:  # a damaged one raises nearly any
        names = {name.rpartition("/")[2] for name in archive.namelist()}
    if "constants.pkl" in names:
        return "it is a TorchScript program: save the state dict of its network"
    if names and "data.pkl" not in names:
        return "it is an archive (zip): unpack it first"
    is_text = start.isascii() and all(c.isprintable() or c.isspace() for c in start.decode())
    return "it is text" if is_text else ""


def refused(error: Exception) -> str:
    """Returns why torch or safetensors did not read a file."""
    if match := re.search(r"GLOBAL (\S+)|Unsupported (?:class|global) (\S+)", str(error)):
        return (
            f"it holds a {match[1] or match[2]}, which is not data: save the weights alone, "
            "torch.save(model.state_dict(), FILE)"
        )
    first_line = (str(error).splitlines() or [""])[0]
    return f"it is damaged or of another kind, {type(error).__name__}: {shorten(first_line, 80)}"
