"""Reads a file of weights as data, or says what it is: nothing in it is executed."""

import argparse
import collections
import datetime
import decimal
import fractions
import pathlib
import re
import types
import warnings
import zipfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from numpy._core import multiarray  # of NumPy 1.26, too, whose numpy._core is otherwise empty
from safetensors.torch import load_file

from kdnb.errors import InputError, shorten

# Plain containers and numbers, which trainers save with the weights. The built-in types are what a
# defaultdict fills itself with. No range: a list of one may take all memory.
HARMLESS = [
    argparse.Namespace,
    types.SimpleNamespace,
    collections.defaultdict,
    *(bool, dict, float, frozenset, int, list, str, tuple),
    datetime.date,
    datetime.datetime,
    datetime.time,
    datetime.timedelta,
    datetime.timezone,
    decimal.Decimal,
    fractions.Fraction,
    pathlib.PosixPath,
    pathlib.PurePosixPath,
    np.ndarray,
    np.dtype,
    *(type(np.dtype(code)) for code in "?bBhHiIlLqQefdFDmM"),
    type(np.dtype("U1")),
    *(
        (getattr(multiarray, name), f"numpy.{core}.multiarray.{name}")
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
    b"\x89PNG": "an image",
    b"\xff\xd8\xff": "an image",
    b"\x7fELF": "a program",
    **dict.fromkeys((b"\x80\3", b"\x80\4", b"\x80\5"), "a pickle that torch.save did not write"),
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
            content = torch.load(path, map_location="cpu", weights_only=True)
        if zipfile.is_zipfile(path):
            check_checksums(path)  # torch does not look at them
        return content
    except PermissionError:
        raise
    except Exception as error:  # torch's unpickler raises nearly any of a damaged file
        why = kind_of(path, start) or refused(error)
        raise InputError(f"{path} is not a readable weights file ({why})") from None


def check_checksums(path: Path) -> None:
    """Raises BadZipFile if a part of a torch file in zip format differs from its checksum.

    A checksum of 0 is none: torch can be told to write no others.
    """
    with zipfile.ZipFile(path) as archive:
        for part in filter(lambda part: part.CRC, archive.infolist()):
            with archive.open(part) as file:
                while file.read(2**20):
                    pass


def kind_of(path: Path, start: bytes) -> str:
    """Returns what a file is that holds no weights; "" if it may be a damaged weights file.

    start: its first 512 bytes.
    """
    for signature, kind in SIGNATURES.items():
        if start.startswith(signature):
            return f"it is {kind}"
    if path.is_file() and not path.stat().st_size:
        return "it is empty"
    markup = start.removeprefix(b"\xef\xbb\xbf").lstrip().lower()  # without a byte order mark
    if markup.startswith((b"<!doctype", b"<html", b"<?xml", b"<head", b"<!--")):
        return "it is a web page: download the file itself"
    is_safetensors = path.suffix == ".safetensors"
    if start[8:10] == b'{"' and not is_safetensors:
        return "it is a safetensors file: its name has to end with .safetensors"
    if start[257:262] == b"ustar":
        return "it is an archive (tar): unpack it first"
    names = set()
    with suppress(Exception), zipfile.ZipFile(path) as archive:  # a damaged one raises nearly any
        names = {name.rpartition("/")[2] for name in archive.namelist()}
    if "constants.pkl" in names:
        return "it is a TorchScript program: save the state dict of its network"
    if names and "data.pkl" not in names:
        return "it is an archive (zip): unpack it first"
    if "data.pkl" in names and is_safetensors:
        return "it is torch's file: its name must not end with .safetensors"
    text = start.decode(errors="ignore")
    is_utf8 = len(text.encode()) > len(start) - 4  # the last character may be cut
    is_text = is_utf8 and all(c.isprintable() or c.isspace() for c in text)
    return "it is text" if start and is_text else ""


# How torch's unpickler names a type that it refuses, and what it says in front of a reason.
REFUSED = re.compile(r"GLOBAL (\S+)|Unsupported (?:class|global) (\S+)|but got <class '([\w.]+)'>")
ADVICE = re.compile(r".*WeightsUnpickler error:\s*", re.DOTALL)


def refused(error: Exception) -> str:
    """Returns why torch or safetensors did not read a file, without torch's advice."""
    if match := REFUSED.search(str(error)):
        return (
            f"it holds a {match[match.lastindex]}, which is not data: save the weights alone, "
            "torch.save(model.state_dict(), FILE)"
        )
    first_line = (ADVICE.sub("", str(error)).splitlines() or [""])[0]
    if "weights_only" in first_line:
        first_line = ""
    reason = ": ".join(filter(None, (type(error).__name__, shorten(first_line, 80))))
    return f"it is damaged or of another kind, {reason}"
