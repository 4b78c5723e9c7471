"""What a distillation loss is; each stands in a file of its own and makes itself known by its class line."""

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdnb.data import Batch
from kdnb.models import Output

LOSSES: dict[str, type["Loss"]] = {}
METHODS: dict[str, str] = {"none": "ce"}  # name -> mix of weighted losses; see kdnb.methods


class Loss(nn.Module):
    """A loss between two networks: built from one example Output of each, called with the Outputs of a batch.

    class DKD(Loss, name="dkd", method="ce + dkd"):
        same_classes, warmup = True, 20
        def __init__(self, student: Output, teacher: Output, *, T: float = 4.0): ...

    name: what a mix calls it. method: the mix in which it was published, if it is a method of its own. Keyword
    arguments with a default are its options, "dkd(T=2)". Its parameters are trained, and they and its buffers kept
    in checkpoints; gradients never reach the teacher. On a CUDA GPU a step is recorded and replayed: what changes from
    step to step has to be a tensor, such as a buffer, and random numbers torch's.

    needs_teacher: it needs a teacher. same_classes: it compares predictions, so that student and teacher have to know the
    same classes.
    warmup: epochs over which its weight rises linearly, from 1 / warmup in the first.
    """

    needs_teacher: ClassVar[bool] = True
    same_classes: ClassVar[bool] = False
    warmup: ClassVar[int] = 0
    running_names: tuple[str, ...] = ()  # the running means

    def __init__(self, *examples: Output):
        super().__init__()

    def __init_subclass__(cls, name: str = "", method: str = "", **kwargs):
        super().__init_subclass__(**kwargs)
        if name:
            LOSSES[name] = cls
        if method:
            METHODS[name] = method

    def forward(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        """The loss of a batch, a scalar."""
        raise NotImplementedError

    def setup(self, labels: Tensor) -> None:
        """Told once, before training: the labels (n,) of the training set, whose images `batch.index` counts."""

    def register_running_mean(self, name: str, shape: tuple[int, ...]) -> None:
        """Register a running mean of this shape: `track` adds to it, the loop keeps one per epoch in history.npz."""
        self.register_buffer(f"{name}_sum", torch.zeros(shape), persistent=False)
        self.register_buffer(f"{name}_count", torch.zeros(()), persistent=False)
        self.running_names += (name,)

    def track(self, name: str, values: Tensor) -> None:
        """Add (batch, *shape) to a running mean, in train mode; nothing waits for the device."""
        if self.training:
            getattr(self, f"{name}_sum").add_(values.detach().sum(0))
            getattr(self, f"{name}_count").add_(len(values))

    def running_buffers(self) -> dict[str, Tensor]:
        """What `means` are computed from: zeroed by the loop before an epoch, kept in its checkpoints."""
        return {
            f"{n}_{part}": getattr(self, f"{n}_{part}")
            for n in self.running_names
            for part in ("sum", "count")
        }

    def means(self) -> dict[str, Tensor]:
        """The running means since they were last zeroed."""
        return {
            name: getattr(self, f"{name}_sum") / getattr(self, f"{name}_count")
            for name in self.running_names
        }


def align_from_deepest(
    student: Sequence[Tensor], teacher: Sequence[Tensor]
) -> list[tuple[Tensor, Tensor]]:
    """Both networks' maps two by two from the deepest on, in order; the shallowest of who has more stay alone."""
    return [*zip(student[::-1], teacher[::-1], strict=False)][::-1]


def match_size(h_s: Tensor, h_t: Tensor) -> tuple[Tensor, ...]:
    """A student's and a teacher's map (batch, channels, height, width), the larger averaged down, in float32."""
    size = [*map(min, h_s.shape[2:], h_t.shape[2:])]
    pair = h_s.float(), h_t.float()
    return tuple(h if [*h.shape[2:]] == size else F.adaptive_avg_pool2d(h, size) for h in pair)
