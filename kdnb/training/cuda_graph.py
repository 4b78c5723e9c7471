"""A training step as one CUDA graph: one launch in place of hundreds of kernel launches.

With batches of 64 small images, a GPU computes faster than Python can launch kernels. A captured
step reads and writes the same memory at every replay: its inputs are copied into place, and what
changes between steps, such as the learning rate, has to be a tensor.
"""

import warnings
from collections.abc import Callable, Hashable, Iterator
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
    """`step(tensors)`, captured as a CUDA graph at its fourth call and replayed from then on.

    The inputs of later calls have the keys and shapes of the fourth. A step that cannot be
    captured runs as it is, with a warning. Raises torch.OutOfMemoryError if it does not fit in
    memory.

    Args:
        step: is called with a dictionary of tensors; it runs on the current stream, does not wait
            for the device, and returns nothing. It changes tensors in place.
        pool: memory that graphs share which are never replayed at the same time; see `graph_pool`.
    """

    def __init__(self, step: Callable[[dict], None], pool: tuple | None = None):
        self.step = step
        self.pool = pool
        self.calls = 0
        self.inputs: dict[Hashable, Tensor] = {}
        self.replay: Callable[[], None] | None = None

    def __call__(self, inputs: dict[Hashable, Tensor]) -> None:
        self.calls += 1
        if self.calls == WARM_UPS + 1:
            self.inputs = {name: tensor.clone() for name, tensor in inputs.items()}
            try:
                self.replay = capture(lambda: self.step(self.inputs), self.pool)
            except torch.OutOfMemoryError:  # the step alone would not fit either
                raise
            except RuntimeError as error:
                warnings.warn(
                    f"the step is not replayed as a CUDA graph, which costs time: {error}",
                    stacklevel=2,
                )
        if self.replay is None:
            self.step(inputs)
            return
        for name, static in self.inputs.items():
            static.copy_(inputs[name])
        self.replay()


def graph_pool(device: torch.device) -> tuple | None:
    """A new memory pool for CUDA graphs; None on other devices."""
    return torch.cuda.graph_pool_handle() if device.type == "cuda" else None


def capture(step: Callable[[], None], pool: tuple | None = None) -> Callable[[], None]:
    """Capture what `step` launches on the current stream; returns a function that replays it.

    The step itself does not run.
    """
    graph = torch.cuda.CUDAGraph()
    # Thread-local, because another thread may allocate memory meanwhile for the next batches.
    mode = {"capture_error_mode": "thread_local"}
    with torch.cuda.graph(graph, pool, stream=torch.cuda.current_stream(), **mode):
        step()
    return graph.replay
