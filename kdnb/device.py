"""Where and how to compute: device, precision, compiling and threads, and what was used."""

import contextlib
import os
import platform
import re
import shutil
import subprocess
import time
import traceback
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import torch

from kdnb.errors import InputError, choose, quote, shorten

DEFAULT_THREADS = torch.get_num_threads()
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}

DATA_SHARE = 0.5  # of a device's free memory: the rest is for networks and their feature maps

# Training pixels from which on compiling saves more time than it takes, about twice over. Measured
# on two CPU cores, and on a GPU in bf16 at 32 pixels (docs/performance.md), where steps are
# replayed as a graph in any case.
COMPILE_PIXELS = {
    ("cpu", "float32"): 5e8,
    ("cpu", "bfloat16"): 3e8,
    ("cuda", "float32"): 4e9,
    ("cuda", "bfloat16"): 4e9,
}


def pick_device(name: str = "auto") -> torch.device:
    """The device "auto", "cpu", "cuda", "cuda:N" or "mps". Raises InputError if it is missing."""
    available = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if name == "auto":
        name = next(kind for kind in ("cuda", "mps", "cpu") if available[kind])
    kind, colon, index = name.partition(":")
    choose("device", kind, ["auto", *available])
    has_index = re.fullmatch("[0-9]{1,4}", index) and int(index) < torch.cuda.device_count()
    if not available.get(kind) or (colon and not (kind == "cuda" and has_index)):
        present = ", ".join(kind for kind, is_there in available.items() if is_there)
        raise InputError(f"device {quote(name)} is not on this machine: choose auto, {present}")
    return torch.device(name)


def pick_precision(name: str, device: torch.device) -> str:
    """The precision of a name; "auto" is bfloat16 if the device has instructions for it."""
    if name != "auto":
        return choose("precision", name, ["auto", *PRECISIONS])
    is_native = False
    if device.type == "cpu":
        is_native = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
    if device.type == "cuda":  # older GPUs emulate it, slower than float32
        is_native = torch.cuda.get_device_capability(device) >= (8, 0)
    return "bfloat16" if is_native else "float32"


def fits(nbytes: int, device: torch.device) -> bool:
    """Whether data take at most a share of a device's free memory; a CPU maps them from disk."""
    if device.type == "cuda":
        return nbytes <= DATA_SHARE * torch.cuda.mem_get_info(device)[0]
    if device.type == "mps":
        in_use = torch.mps.driver_allocated_memory()
        return nbytes <= DATA_SHARE * (torch.mps.recommended_max_memory() - in_use)
    return True


def fits_in_memory(nbytes: int) -> bool:
    """Whether data take at most a quarter of the free main memory, or of a container's limit.

    False without psutil, which comes with Jupyter.
    """
    try:
        import psutil  # here: neither a deployed network nor `python -m kdnb` needs it
    except ImportError:
        return False
    free = psutil.virtual_memory().available
    with contextlib.suppress(OSError, ValueError):  # no container, or one without a limit ("max")
        group = Path("/sys/fs/cgroup")
        used = int((group / "memory.current").read_text())
        free = min(free, int((group / "memory.max").read_text()) - used)
    return nbytes <= free / 4


def pick_compile(name: str, device: torch.device, precision: str, pixels: float) -> bool:
    """Whether to compile a step; "auto": if there is a compiler and a run is long enough.

    pixels: epochs x images x pixels per image, of the whole run, so that a resumed run computes the
    same. Raises InputError for "on" without a compiler.
    """
    if name == "on" and not has_compiler():
        raise InputError(
            "compile is on: there is no C++ compiler here (c++, g++, clang++, or what CXX names)"
        )
    is_worth_it = pixels >= COMPILE_PIXELS.get((device.type, precision), float("inf"))
    return name == "on" or (name == "auto" and is_worth_it and has_compiler())


def has_compiler() -> bool:
    """Whether torch.compile finds a C++ compiler."""
    return bool(os.environ.get("CXX") or any(map(shutil.which, ("c++", "g++", "clang++"))))


# What torch's errors say, on any device, where memory cannot be allocated.
ALLOCATION = re.compile(
    "can't allocate memory|not enough memory|out of memory|Invalid buffer size"
    "|Storage size calculation overflowed|integer multiplication overflow"
)


@contextlib.contextmanager
def system_errors() -> Iterator[None]:
    """A context that turns what the machine refuses, a file or memory, into an InputError."""
    try:
        yield
    except OSError as error:
        # A broken connection is no matter of files, and its class says what to do.
        if isinstance(error, ConnectionError):
            raise
        files = " and ".join(
            shorten(str(name)) for name in (error.filename, error.filename2) if name
        )
        reason = error.strerror or str(error) or type(error).__name__
        raise InputError(f"{files}: {reason}" if files else reason) from error
    except (MemoryError, OverflowError, RuntimeError) as error:
        is_allocation = isinstance(error, MemoryError | OverflowError | torch.OutOfMemoryError)
        if not (is_allocation or ALLOCATION.search(str(error))):
            raise
        sentences = re.sub(r"^\[enforce fail.*?\. ", "", str(error)).splitlines()
        reason = (sentences or [""])[0].partition(". ")[0]
        # The traceback's frames hold the tensors for as long as somebody keeps the error.
        traceback.clear_frames(error.__traceback__)
        raise InputError(
            f"{shorten(reason) or 'there is too little memory'}: a smaller batch_size, image_size, "
            "network or option of a loss, bfloat16, or data_on_device no needs less"
        ) from None


def set_threads(threads: int) -> None:
    """Set the number of CPU threads; 0: torch's default when kdnb was imported."""
    torch.set_num_threads(threads or DEFAULT_THREADS)


def environment(device: str) -> dict:
    """Device, versions of libraries, commit and time: the provenance of a number."""
    libraries = {name: version(name) for name in ("torch", "torchvision", "numpy")}
    return {
        "device": device_name(device),
        "device_type": device.partition(":")[0],
        "versions": {"python": platform.python_version(), **libraries},
        "commit": commit(),
        "started": time.strftime("%F %T %z"),
    }


def device_name(device: str) -> str:
    """The name of a GPU, or of the CPU with its number of cores."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    cpu = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        cpu = next(iter(models), cpu)
    name = f"{cpu}, {os.cpu_count()} cores"
    return name if device == "cpu" else f"{name}, {device}"


def commit() -> str:
    """The commit of this code, with "+changes" if files differ from it; "" outside a checkout.

    A repository that merely surrounds an installed package does not track this file.
    """
    folder = Path(__file__).parent

    def git(*arguments: str) -> str:
        command = ["git", *arguments]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "--", Path(__file__).name)
        # New files count, too, even those that a .gitignore hides.
        changes = git("status", "--porcelain", "--untracked-files=all", "--ignored", "--", "*.py")
        return git("rev-parse", "--short=12", "HEAD") + ("+changes" if changes else "")
    except (OSError, subprocess.CalledProcessError):
        return ""
