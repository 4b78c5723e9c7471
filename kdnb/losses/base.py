"""The base class of all losses, the tables they are registered in, and helpers for feature maps."""

from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdnb.data import Batch
from kdnb.models import Output
from kdnb.sources import claim

LOSSES: dict[str, type["Loss"]] = {}  # name in a mix -> class
METHODS: dict[str, str] = {"none": "ce"}  # name of a method -> mix of weighted losses


class Classifiers(NamedTuple):
    """The last layers of both networks, each with weight (classes, channels) and bias (classes,).

    Attributes:
        student: of the student; it is trained.
        teacher: of the teacher; it is frozen. None in a run without a teacher.
    """

    student: nn.Linear
    teacher: nn.Linear | None


class Loss(nn.Module):
    """Base class of the losses; a subclass is registered under its `name` when it is defined.

    Example::

        class Mine(Loss, name="mine", method="ce + mine:10"):
            same_classes = True
            may_be_zero = frozenset({"margin"})

            def __init__(self, student, teacher, *, T: float = 4.0, margin: float = 1.0): ...

            def forward(self, student, teacher, batch): ...

    A loss is built from an example Output of the student and one of the teacher, from which it gets
    the shapes; the teacher's is None in a run without a teacher. Then it is called with the Outputs
    of each batch. Its keyword-only arguments are its options; a mix sets them as in "mine(T=2)". An
    option has the type of its default, and a number has to be above 0.

    The loss's parameters are trained together with the student's. Its parameters and buffers are
    saved in checkpoints. No gradient reaches the teacher.

    On a CUDA GPU a training step is captured once and replayed. So anything that changes from step
    to step has to be a tensor (for example a buffer), random numbers have to come from torch or
    from a state of the loss's own (`kdnb.losses.random_numbers`), which other runs in the process
    do not change, and `forward` must not wait for the device (no `.item()`, no `if tensor`).

    Args of the class line:
        name: the name of the loss in a mix and in LOSSES.
        method: the published mix that contains the loss; METHODS gets it under `name`. Empty for a
            loss that is no method by itself.

    Attributes:
        needs_teacher: whether the loss reads the teacher's Output, which may be None if not.
        teacher_outputs: the fields of the teacher's Output that the loss reads. One that reads
            "logits" or "pooled" alone gets an Output with nothing else where the teacher's answers
            are stored from earlier epochs and runs.
        same_classes: whether the loss compares predictions, so that student and teacher have to
            predict the same classes.
        needs_labels: whether the loss reads the labels. The label of an image without one is -1;
            such a loss has to leave the image out, by `labelled_mean`. Images without a label are
            used only by a method with a loss that does not need labels.
        views: number of versions of each image that the loss needs. With 2, `batch.images` has a
            weakly augmented version of each image and then, in the same order, a strongly augmented
            one; `output.logits.chunk(2)` splits an Output. A loss that needs 1 may get either.
        warmup: number of epochs over which the weight of the loss rises linearly, from 1 / warmup
            of it in the first epoch; 0 for the full weight from the start.
        may_be_zero: the options that may be 0, such as the weight of one part of the loss.
        needs_classifiers: whether the loss reads the networks' last layers. They are its attribute
            `classifiers` from before `setup` on, and no part of its state.
        needs_batch_size: whether the class is called with the number of images in a batch, as a
            third positional argument. The last batch of an epoch may be smaller.
        teacher_grad: whether the loss takes gradients of the teacher's Output with respect to its
            images or maps, by `torch.autograd.grad`. The teacher's weights are frozen in any case.
        takes_all_teachers: whether `forward` gets a tuple of the Outputs of all teachers. If not,
            a run with several teachers has an instance of the loss for each, and adds them up.
        running_names: the names of the running means, see `register_running_mean`.
    """

    needs_teacher: ClassVar[bool] = True
    teacher_outputs: ClassVar[frozenset[str]] = frozenset(Output._fields)
    same_classes: ClassVar[bool] = False
    needs_labels: ClassVar[bool] = False
    views: ClassVar[int] = 1
    warmup: ClassVar[int] = 0
    may_be_zero: ClassVar[frozenset[str]] = frozenset()
    needs_classifiers: ClassVar[bool] = False
    needs_batch_size: ClassVar[bool] = False
    teacher_grad: ClassVar[bool] = False
    takes_all_teachers: bool = False
    running_names: tuple[str, ...] = ()
    classifiers: Classifiers | None = None

    def __init__(self, *examples: Output):
        super().__init__()

    def __init_subclass__(cls, name: str = "", method: str = "", **kwargs):
        super().__init_subclass__(**kwargs)
        if name:
            claim("loss", name, cls, LOSSES.get(name))
            LOSSES[name] = cls
        if method:
            METHODS[name] = method

    def forward(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        """Returns the loss of a batch: a scalar, without the weight that the mix gives it.

        Args:
            student: the student's Output of `batch.images`.
            teacher: the teacher's Output of the same images; None if `needs_teacher` is False and
                the run has no teacher.
            batch: the images, their labels (-1 for none) and their indices in the training set.
        """
        raise NotImplementedError

    # A loss that changes how the student predicts overrides this with a method
    # `predict(student: Output) -> Output`, which returns the student's Output with the logits that
    # it predicts by, and as `adapted` what its `forward` needs of the computation. All losses get
    # this Output, and the network is tested, saved and exported so.
    predict = None

    def setup(self, labels: Tensor) -> None:
        """Prepares the loss for a training set; called once before training. Does nothing here.

        Args:
            labels: the labels of all training images, int64 (n,), -1 for none. `batch.index` counts
                in them.
        """

    def register_running_mean(self, name: str, shape: tuple[int, ...]) -> None:
        """Registers a mean over the training images, which is saved per epoch in history.npz.

        Call it in `__init__`, and `track(name, values)` in `forward`. A mean "links", (teacher
        blocks, student blocks), is drawn for every run; attention.ipynb draws the links of the test
        images if the loss has a method `attention(student, teacher)` that returns them.

        Args:
            name: name of the mean; history.npz has it as "LOSS.NAME", (epochs, *shape).
            shape: shape of the values of one image.
        """
        self.register_buffer(f"{name}_sum", torch.zeros(shape), persistent=False)
        self.register_buffer(f"{name}_count", torch.zeros(()), persistent=False)
        self.running_names += (name,)

    def track(self, name: str, values: Tensor) -> None:
        """Adds the values of a batch, (batch, *shape), to a running mean; ignored in eval mode."""
        if self.training:
            getattr(self, f"{name}_sum").add_(values.detach().sum(0))
            getattr(self, f"{name}_count").add_(len(values))

    def running_buffers(self) -> dict[str, Tensor]:
        """Returns the sums and counts of the running means by their names.

        The training loop zeroes them before each epoch and saves them in its checkpoints.
        """
        return {
            f"{name}_{part}": getattr(self, f"{name}_{part}")
            for name in self.running_names
            for part in ("sum", "count")
        }

    def means(self) -> dict[str, Tensor]:
        """Returns the running means since they were last zeroed, each of its registered shape."""
        return {
            name: getattr(self, f"{name}_sum") / getattr(self, f"{name}_count")
            for name in self.running_names
        }


def labelled_mean(values: Tensor, labels: Tensor) -> Tensor:
    """Mean over the images that have a label; 0 if none of the batch has.

    Args:
        values: one per image, (batch,). Those of images without a label are not used.
        labels: int64 (batch,), -1 for none.
    """
    # A mask: selecting the images would give tensors whose shape depends on the data.
    is_labelled = labels >= 0
    return torch.where(is_labelled, values, 0).sum() / is_labelled.sum().clamp(min=1)


def divergences(z_s: Tensor, z_t: Tensor, T: float) -> Tensor:
    """KL(teacher || student) of each image's predictions at temperature T, in nats: (batch,).

    Args:
        z_s: the student's logits, (batch, classes).
        z_t: the teacher's logits, (batch, classes).
        T: temperature of both.
    """
    log_p_s = F.log_softmax(z_s.float() / T, dim=1)  # b c
    log_p_t = F.log_softmax(z_t.float() / T, dim=1)  # b c
    return F.kl_div(log_p_s, log_p_t, reduction="none", log_target=True).sum(1)


def align_from_deepest(
    student: Sequence[Tensor], teacher: Sequence[Tensor]
) -> list[tuple[Tensor, Tensor]]:
    """Pairs the feature maps of student and teacher: deepest with deepest, and so on upwards.

    Args:
        student: the student's maps, shallow to deep.
        teacher: the teacher's maps, shallow to deep; there may be more or fewer.

    Returns:
        (student map, teacher map) pairs, shallow to deep. The shallowest maps of the network with
        more of them are left out.
    """
    return [*zip(student[::-1], teacher[::-1], strict=False)][::-1]


def match_size(h_s: Tensor, h_t: Tensor) -> tuple[Tensor, Tensor]:
    """Brings two maps to the smaller of their heights and widths by average pooling, in float32.

    Args:
        h_s: the student's map, (batch, channels, height, width).
        h_t: the teacher's map; its channels, height and width may differ.
    """
    size = [*map(min, h_s.shape[2:], h_t.shape[2:])]
    return tuple(average_pool(h.float(), size) for h in (h_s, h_t))


def average_pool(h: Tensor, size: Sequence[int]) -> Tensor:
    """Returns maps (..., height, width) in another size, by adaptive average pooling."""
    old = h.shape[-2:]
    if tuple(old) == tuple(size):
        return h
    if old[0] % size[0] or old[1] % size[1]:
        return F.adaptive_avg_pool2d(h, size)
    # Windows of one size: the compiler fuses this operation, and not the adaptive one.
    return F.avg_pool2d(h, (old[0] // size[0], old[1] // size[1]))
