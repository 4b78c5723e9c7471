"""A training step as one CUDA graph: one launch in place of hundreds of kernel launches.

With batches of 64 small images, a GPU computes faster than Python can launch kernels. A captured
step reads and writes the same memory at every replay: its inputs are copied into place, and what
changes between steps, such as the learning rate, has to be a tensor.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

WARM_UPS = 3  # steps before the capture: they compile, choose algorithms and allocate memory


@contextmanager
def on_side_stream(stream: torch.cuda.Stream | None) -> Iterator[None]:
    """Run the kernels of the context on another CUDA stream, in order with the current one.

    Without a stream, nothing changes.

    A step cannot be captured on the default stream, and autograd remembers the stream of earlier
    steps. So all steps have to run on the stream of the capture.
    """
    if stream is None:
        yield
        return
    current = torch.cuda.current_stream(stream.device)
    stream.wait_stream(current)
    try:
        with torch.cuda.stream(stream):
            yield
    finally:  # also after an error, so that what follows finds the results of the steps before
        current.wait_stream(stream)


class CUDAGraphStep:
    """`step(*tensors)`, captured as a CUDA graph at its fourth call and replayed from then on.

    The inputs of later calls have the shapes of the fourth. A step that cannot be captured runs as
    it is, with a warning. Raises torch.OutOfMemoryError if it does not fit in memory.

    Args:
        step: runs on the current stream, does not wait for the device, and returns nothing. It
            changes tensors in place.
    """

    def __init__(self, step: Callable[..., None]):
        self.step = step
        self.calls = 0
        self.inputs: list[Tensor] = []
        self.replay: Callable[[], None] | None = None

    def __call__(self, *inputs: Tensor) -> None:
        self.calls += 1
        if self.calls == WARM_UPS + 1:
            self.inputs = [tensor.clone() for tensor in inputs]
            try:
                self.replay = capture(lambda: self.step(*self.inputs))
            except torch.OutOfMemoryError:  # the step alone would not fit either
                raise
            except RuntimeError as error:
                warnings.warn(
                    f"the step is not replayed as a CUDA graph, which costs time: {error}",
                    stacklevel=2,
                )
        if self.replay is None:
            self.step(*inputs)
            return
        for static, tensor in zip(self.inputs, inputs, strict=True):
            static.copy_(tensor)
        self.replay()


def capture(step: Callable[[], None]) -> Callable[[], None]:
    """Capture what `step` launches on the current stream; returns a function that replays it.

    The step itself does not run.
    """
    graph = torch.cuda.CUDAGraph()
    # Thread-local, because another thread may allocate memory meanwhile for the next batches.
    mode = {"capture_error_mode": "thread_local"}
    with torch.cuda.graph(graph, stream=torch.cuda.current_stream(), **mode):
        step()
    return graph.replay
