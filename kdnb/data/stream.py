"""Batches that are read by a thread, ahead of the training loop, and sent to its device."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import torch
from torch import Tensor

AHEAD = 2  # batches that are read and sent ahead of use

# Choices that decide which kernels are launched: the CPU has to know them.
ON_CPU = ("operation", "magnitude")

Tensors = dict[str, Tensor]


def to_device(tensors: Tensors, device: torch.device, non_blocking: bool = False) -> Tensors:
    """Returns the tensors on a device, but for those of ON_CPU."""
    return {
        name: tensor if name in ON_CPU else tensor.to(device, non_blocking=non_blocking)
        for name, tensor in tensors.items()
    }


def stream(
    read: Callable[[Tensors], Tensors], plans: Iterable[Tensors], device: torch.device
) -> Iterator[Tensors]:
    """Yields `read(plan)` for each plan, on the device.

    A thread reads, pins and sends AHEAD results ahead of use. It ends with the
    iterator. An error in it is raised by the iterator, in place of the result.

    Args:
        read: returns tensors on the CPU.
        plans: its arguments.
        device: CUDA copies on a stream of its own, while the current stream computes.
    """
    # Of another priority, so that it is no stream of a step: torch hands out 32 of each again and
    # again, and what is copied while a step is captured must not become a part of it.
    copies = torch.cuda.Stream(device, priority=-1) if device.type == "cuda" else None

    def send(plan: Tensors) -> tuple[Tensors, torch.cuda.Event | None]:
        tensors = read(plan)
        if copies is None:
            return to_device(tensors, device), None
        with torch.cuda.stream(copies):
            pinned = {name: tensor.pin_memory() for name, tensor in tensors.items()}
            return to_device(pinned, device, non_blocking=True), copies.record_event()

    plans = iter(plans)
    with ThreadPoolExecutor(1, thread_name_prefix="stream") as pool:
        queue = deque(pool.submit(send, plan) for plan in islice(plans, AHEAD))
        try:
            while queue:
                tensors, is_sent = queue.popleft().result()
                queue.extend(pool.submit(send, plan) for plan in islice(plans, 1))
                if is_sent is not None:
                    current = torch.cuda.current_stream(device)
                    current.wait_event(is_sent)
                    for tensor in tensors.values():
                        if tensor.is_cuda:
                            tensor.record_stream(current)  # its memory is in use until then
                yield tensors
        finally:
            for future in queue:
                future.cancel()
