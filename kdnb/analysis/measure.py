"""Measurements of functions: the time that they take, and the memory that autograd saves.

Timings on a shared machine are noisy. So candidates take turns in one process, and medians are
compared.
"""

import statistics
import time
from collections.abc import Callable, Mapping

import torch

from kdnb.data import Batch

WARM_UPS = 2  # calls of each function that are not counted


def time_alternately(
    functions: Mapping[str, Callable], device: torch.device, repeats: int = 10
) -> dict[str, float]:
    """The median time of each function in seconds.

    The functions are called in turn, `repeats` times after two warm-ups. The order is reversed from
    turn to turn, so that none always follows the same other one.
    """
    seconds = {name: [] for name in functions}
    for turn in range(repeats + WARM_UPS):
        for name in functions if turn % 2 else reversed(functions):
            synchronize(device)
            start = time.perf_counter()
            functions[name]()
            synchronize(device)
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values[WARM_UPS:]) for name, values in seconds.items()}


def synchronize(device: torch.device) -> None:
    """Wait for an accelerator to finish; a CPU computes at once."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def saved_bytes(step: Callable[[], None]) -> int:
    """Bytes of the tensors that autograd saves in a step; shared memory counts once."""
    sizes = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        step()
    return sum(sizes.values())


def in_float32(batch: Batch, memory_format: torch.memory_format = torch.preserve_format) -> Batch:
    """A batch whose images, and those for a teacher, are float32."""
    made = {
        name: getattr(batch, name).to(torch.float32, memory_format=memory_format)
        for name in ("images", "teacher_images")
        if getattr(batch, name) is not None
    }
    return batch._replace(**made)
