"""A training step as one CUDA graph: hundreds of kernel launches become one.

At a batch of 64 small images a GPU computes faster than Python can tell it what to compute. A recorded step reads and
writes the same memory at every replay: inputs are copied into place, and what changes between steps, such as the
learning rate, has to be a tensor.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

WARM_UPS = 3  # steps that are compiled, choose their algorithms and allocate what stays, before one is recorded


@contextmanager
def aside(stream: torch.cuda.Stream | None) -> Iterator[None]:
    """Work on another CUDA stream, after what was asked for before and before what is asked for next; None: as usual.

    A step can only be recorded on a stream that is not the default one, and autograd remembers the stream of the steps
    before: all of them have to run on the recording one.
    """
    if stream is None:
        yield
        return
    usual = torch.cuda.current_stream(stream.device)
    stream.wait_stream(usual)
    with torch.cuda.stream(stream):
        yield
    usual.wait_stream(stream)


class Replayed:
    """`step(*tensors)`, recorded at its fourth call and from then on replayed with other contents of the same shapes.

    step: works on the current stream, waits for nothing and returns nothing; all its effects are on tensors that stay.
    Where it cannot be recorded it goes on as it is, with a warning.
    """

    def __init__(self, step: Callable[..., None]):
        self.step, self.calls, self.replay = step, 0, None

    def __call__(self, *inputs: Tensor) -> None:
        self.calls += 1
        if self.calls == WARM_UPS + 1:
            self.inputs = [tensor.clone() for tensor in inputs]
            try:
                self.replay = record(lambda: self.step(*self.inputs))
            except RuntimeError as error:
                warnings.warn(
                    f"the step is not replayed as a CUDA graph, which costs time: {error}",
                    stacklevel=2,
                )
        if self.replay is None:
            return self.step(*inputs)
        for place, tensor in zip(self.inputs, inputs, strict=True):
            place.copy_(tensor)
        self.replay()


def record(step: Callable[[], None]) -> Callable[[], None]:
    """A CUDA graph of what `step` asks of the current stream, without doing it; returns what does it."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
        step()
    return graph.replay
