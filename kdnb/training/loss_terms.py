"""The losses of a method, built for a student and one or several teachers."""

from collections.abc import Sequence

from torch import Tensor, nn

from kdnb.data import Batch
from kdnb.errors import InputError
from kdnb.losses import LOSSES, Loss
from kdnb.losses.base import Classifiers
from kdnb.losses.mix import Term
from kdnb.losses.predicting import Predicting
from kdnb.models import Output


class Teachers(nn.ModuleList):
    """Several teachers of one student, called as one: returns a tuple of their Outputs."""

    def forward(self, images: Tensor) -> tuple[Output, ...]:
        return tuple(teacher(images) for teacher in self)


class OverTeachers(nn.ModuleList):
    """The sum of a loss over several teachers: an instance of the loss for each of them."""

    @property
    def needs_labels(self) -> bool:
        return self[0].needs_labels

    def forward(self, student: Output, teachers: tuple[Output, ...], batch: Batch) -> Tensor:
        return sum(
            loss(student, teacher, batch) for loss, teacher in zip(self, teachers, strict=True)
        )

    def running_buffers(self) -> dict[str, Tensor]:
        """The buffers of the running means, by "number.name", the teachers counted from 0."""
        return {
            f"{number}.{name}": buffer
            for number, loss in enumerate(self)
            for name, buffer in loss.running_buffers().items()
        }

    def means(self) -> dict[str, Tensor]:
        """The running means, by "number.name", the teachers counted from 0."""
        return {
            f"{number}.{name}": mean
            for number, loss in enumerate(self)
            for name, mean in loss.means().items()
        }


def classifier_of(network: nn.Module) -> nn.Linear:
    """Returns a network's last layer.

    Raises InputError for a network without a classifier, and for a student of a method that changed
    how it predicts: its last layer does not read its pooled features.
    """
    if isinstance(network, Predicting):
        raise InputError(
            "the method reads the teacher's classifier, and this teacher does not predict by its "
            "network alone: choose another teacher or method"
        )
    if not network.classifier_name:
        raise InputError("the method needs the teacher's classifier, and this teacher has none")
    return network.get_submodule(network.classifier_name)


def build_loss(
    term: Term,
    student: nn.Module,
    teachers: Sequence[nn.Module],
    student_example: Output | None,
    teacher_examples: Sequence[Output],
    labels: Tensor | None,
    batch_size: int,
) -> Loss | OverTeachers:
    """Returns the loss of a term, or its sum over several teachers.

    Args:
        term: a summand of a method.
        student: the network that is trained.
        teachers: the frozen networks; none for a method without a teacher.
        student_example: an Output of the student; None if the method has no teacher.
        teacher_examples: an Output of each teacher.
        labels: of all training images, see `Loss.setup`; None leaves `setup` out.
        batch_size: images in a batch.
    """
    loss_class = LOSSES[term.loss]
    extra = (batch_size,) if loss_class.needs_batch_size else ()

    def build(teacher: nn.Module | None, example: Output | None) -> Loss:
        loss = loss_class(student_example, example, *extra, **term.options)
        if loss_class.needs_classifiers:
            last = None if teacher is None else classifier_of(teacher)
            loss.classifiers = Classifiers(classifier_of(student), last)
        if labels is not None:
            loss.setup(labels)
        return loss

    if not teachers:
        return build(None, None)
    loss = build(teachers[0], teacher_examples[0])
    is_for_each = loss_class.needs_teacher and not loss.takes_all_teachers
    if len(teachers) == 1 or not is_for_each:
        return loss
    if loss.predict:
        raise InputError(
            f"{term.loss} changes how the student predicts, which one teacher alone may do: "
            f"there are {len(teachers)}"
        )
    others = zip(teachers[1:], teacher_examples[1:], strict=True)
    return OverTeachers([loss, *(build(teacher, example) for teacher, example in others)])
