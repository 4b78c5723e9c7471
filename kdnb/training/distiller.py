"""The objective: a student, a frozen teacher, and the weighted losses between them."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kdnb.data import Batch
from kdnb.errors import InputError
from kdnb.losses import LOSSES
from kdnb.losses.mix import Term, applicable_terms, canonical, needs_teacher, parse, weight_at
from kdnb.models import Output, class_count, example_output


def check_maps(terms: Sequence[Term], student: Output, teacher: Output) -> None:
    """Raises InputError for losses on features if a network has no feature maps."""
    names = [
        term.loss
        for term in terms
        if LOSSES[term.loss].needs_teacher and not LOSSES[term.loss].same_classes
    ]
    for role, output in {"student": student, "teacher": teacher}.items():
        if names and not output.feats:
            raise InputError(
                f"{', '.join(names)} compares features, and this {role} returns no feature maps: "
                "choose a loss on predictions such as 'ce:0.1 + kd:0.9', or another network"
            )


class Distiller(nn.Module):
    """The weighted sum of a method's losses, such as ce + 0.9 kd + 200 afd.

    Args:
        student: a network that returns `Output`.
        teacher: another one; its weights are frozen, and it stays in eval mode. A method without a
            teacher's losses needs none.
        method: the name of a method, a mix, or parsed terms.
        example: images (2 or more, 3, height, width), from which the losses learn the shapes of
            both networks' maps.
        teacher_example: as many images in the teacher's size, if it differs.
        same_classes: whether the teacher predicts the student's classes; None: if it predicts as
            many.
        labels: (n,) of the whole training set, for losses that remember its images, such as CRD.
        allow_partial: leave out losses that this teacher cannot serve, and name them in `left_out`.

    Raises InputError for a missing teacher or example, for images that are too small for a network,
    for losses that the teacher cannot serve, unless they may be left out, and for losses on
    features of a network without feature maps.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | None = None,
        method: str | Sequence[Term] = "none",
        example: Tensor | None = None,
        *,
        teacher_example: Tensor | None = None,
        same_classes: bool | None = None,
        labels: Tensor | None = None,
        allow_partial: bool = False,
    ):
        super().__init__()
        self.student = student
        self.teacher: nn.Module | None = None
        self.left_out: tuple[str, ...] = ()
        self.losses = nn.ModuleDict()
        self.terms = parse(method) if isinstance(method, str) else tuple(method)
        student_example = None if example is None else example_output(student, example)
        outputs = student_example, None
        if needs_teacher(self.terms):
            if teacher is None or example is None:
                raise InputError(
                    f"the method {canonical(self.terms)} needs a teacher and an example batch"
                )
            if same_classes is None:
                same_classes = class_count(student) == class_count(teacher)
            self.terms, self.left_out = applicable_terms(self.terms, same_classes, allow_partial)
            self.teacher = teacher.requires_grad_(False).eval()
            if teacher_example is None:
                teacher_example = example
            outputs = student_example, example_output(teacher, teacher_example)
            check_maps(self.terms, *outputs)
        for term in self.terms:
            loss = LOSSES[term.loss](*outputs, **term.options)
            if labels is not None:
                loss.setup(labels)
            self.losses[term.loss] = loss
        # A tensor on the device: a captured step would keep a Python number for ever.
        weights = torch.tensor([term.weight for term in self.terms])
        self.register_buffer("weights", weights, persistent=False)
        self.to(next(student.parameters()).device)

    def train(self, mode: bool = True) -> "Distiller":
        """Set the mode of the student and the losses; the teacher stays in eval mode."""
        super().train(mode)
        if self.teacher is not None:
            self.teacher.eval()
        return self

    def start_epoch(self, epoch: int) -> None:
        """Set the losses' weights for an epoch, counted from 0: some warm up."""
        weights = [weight_at(term.loss, term.weight, epoch) for term in self.terms]
        self.weights.copy_(torch.tensor(weights))

    def forward(
        self,
        images: Tensor,
        labels: Tensor,
        index: Tensor | None = None,
        teacher_images: Tensor | None = None,
        teacher_logits: Tensor | None = None,
        teacher_pooled: Tensor | None = None,
    ) -> tuple[dict[str, Tensor], Tensor]:
        """The losses of a batch before weighting, their weighted sum "total"; the student's logits.

        Args:
            images: (batch, 3, height, width), normalised.
            labels: (batch,); -1 for an image without one.
            index: (batch,), the images' positions in the training set, for losses that remember
                them.
            teacher_images: the images as the teacher sees them; None: as the student does.
            teacher_logits: the teacher's answers if they are known: then it is not run, and the
                losses get nothing else of it.
            teacher_pooled: its pooled features, likewise.
        """
        batch = Batch(images, labels, index, teacher_images, teacher_logits, teacher_pooled)
        student = self.student(images)
        teacher = None
        if teacher_logits is not None or teacher_pooled is not None:
            teacher = Output(teacher_logits, (), pooled=teacher_pooled)
        elif self.teacher is not None:
            with torch.no_grad():
                teacher = self.teacher(batch.for_teacher)
        terms = {name: loss(student, teacher, batch) for name, loss in self.losses.items()}
        total = sum(
            weight * term for weight, term in zip(self.weights, terms.values(), strict=True)
        )
        return {"total": total, **terms}, student.logits

    def trainable(self) -> nn.ModuleDict:
        """What is trained and saved in checkpoints: the student and the losses' parameters."""
        return nn.ModuleDict({"student": self.student, "losses": self.losses})

    @property
    def label_losses(self) -> tuple[str, ...]:
        """The names of the losses that need labels."""
        return tuple(name for name, loss in self.losses.items() if loss.needs_labels)

    def running_buffers(self) -> dict[str, Tensor]:
        """The buffers of the losses' running means, by "loss.buffer"."""
        return {
            f"{name}.{key}": buffer
            for name, loss in self.losses.items()
            for key, buffer in loss.running_buffers().items()
        }

    def means(self) -> dict[str, Tensor]:
        """The losses' running means, by "loss.name", such as "afd.links"."""
        return {
            f"{name}.{key}": mean
            for name, loss in self.losses.items()
            for key, mean in loss.means().items()
        }
