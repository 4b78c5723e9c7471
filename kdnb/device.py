"""Where and how to compute: what "auto" means for device, precision, compiling, threads; and what it was in the end."""

import contextlib
import os
import platform
import shutil
import subprocess
import time
import traceback
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import torch

from kdnb.errors import InputError, choose

DEFAULT_THREADS = torch.get_num_threads()
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# From how many training pixels on compiling a step repays itself, about twice over: measured on two CPU cores, and on a
# GPU in bf16 at 32 pixels (NOTES.md), where steps are replayed without it, too.
COMPILE_PIXELS = {
    ("cpu", "float32"): 5e8,
    ("cpu", "bfloat16"): 3e8,
    ("cuda", "float32"): 4e9,
    ("cuda", "bfloat16"): 4e9,
}


def pick_device(name: str = "auto") -> torch.device:
    """ "auto", "cpu", "cuda", "cuda:N" or "mps" -> a device that is really there. Raises InputError."""
    there = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if name == "auto":
        name = next(kind for kind in ("cuda", "mps", "cpu") if there[kind])
    kind, colon, index = name.partition(":")
    choose("device", kind, ["auto", *there])
    known = not colon or (
        kind == "cuda" and index.isdigit() and int(index) < torch.cuda.device_count()
    )
    if not (there[kind] and known):
        present = ", ".join(kind for kind, ok in there.items() if ok)
        raise InputError(f"device {name!r} is not on this machine: choose auto, {present}")
    return torch.device(name)


def pick_precision(name: str, device: torch.device) -> str:
    """ "auto" -> bfloat16 where the device multiplies it natively, else float32."""
    if name != "auto":
        return choose("precision", name, ["auto", *PRECISIONS])
    native = (
        device.type == "cpu" and getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
    )
    if device.type == "cuda":  # emulated bf16 is slower than float32: only with the instructions
        native = torch.cuda.get_device_capability(device) >= (8, 0)
    return "bfloat16" if native else "float32"


def pick_compile(name: str, device: torch.device, precision: str, pixels: float) -> bool:
    """ "auto" -> compile a step where that repays itself: with a compiler at hand and a run that is long enough.

    pixels: epochs x images x pixels an image, of the whole run and not of what is left of it, so that a resumed run
    computes the same. Raises InputError for "on" where there is none.
    """
    if name == "on" and not has_compiler():
        raise InputError(
            "compile is on: there is no C++ compiler here (c++, g++, clang++, or what CXX names)"
        )
    repays = pixels >= COMPILE_PIXELS.get((device.type, precision), float("inf"))
    return name == "on" or (name == "auto" and repays and has_compiler())


def has_compiler() -> bool:
    return bool(
        os.environ.get("CXX")
        or shutil.which("c++")
        or shutil.which("g++")
        or shutil.which("clang++")
    )


@contextlib.contextmanager
def oom_as_input_error() -> Iterator[None]:
    """Raises InputError for what a CUDA GPU's memory does not hold."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        why = str(error).partition(". ")[0]
        traceback.clear_frames(
            error.__traceback__
        )  # they hold what fills it, as long as somebody keeps the error
        raise InputError(
            f"{why}: a smaller batch_size, image_size or network, or bfloat16, needs less"
        ) from None


def set_threads(threads: int) -> None:
    """Compute with so many threads of the CPU; 0: as many as torch or OMP_NUM_THREADS said in the beginning."""
    torch.set_num_threads(threads or DEFAULT_THREADS)


def environment(device: str) -> dict:
    """Device, library versions, commit and time: what stands beside every number."""
    libraries = {name: version(name) for name in ("torch", "torchvision", "numpy")}
    return {
        "device": device_name(device),
        "device_type": device.partition(":")[0],
        "versions": {"python": platform.python_version(), **libraries},
        "commit": commit(),
        "started": time.strftime("%F %T %z"),
    }


def device_name(device: str) -> str:
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    cpu = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next(
            (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), cpu
        )
    return f"{cpu}, {os.cpu_count()} cores" + ("" if device == "cpu" else f", {device}")


def commit() -> str:
    """The commit of the code that runs, with "+changes" if files differ from it; "" outside a checkout."""
    here = Path(__file__).parent

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", *words], cwd=here, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".")
        return git("rev-parse", "--short=12", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return ""
