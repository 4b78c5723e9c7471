"""The objective: a student, a frozen teacher, and the weighted losses between them."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kdnb.data import Batch
from kdnb.errors import InputError
from kdnb.losses.mix import (
    LOSSES,
    Term,
    applicable_terms,
    canonical,
    needs_teacher,
    parse,
    weight_at,
)
from kdnb.models import class_count, example_output


class Distiller(nn.Module):
    """Computes the weighted sum of a method's losses, such as ce + 0.9 kd + 200 afd.

    student, teacher: models returning Output; a method without the teacher's losses needs none, and runs none.
    method: a name in METHODS, a mix, or parsed terms.
    example: images (2+, 3, height, width) from which the losses learn the shapes of both networks' maps.
    same_classes: whether the teacher's predictions are of the student's classes; None: as many classes count as such.
    labels: (n,) of the whole training set, for losses that remember its images; they raise InputError without.
    allow_partial: leave out losses that this teacher cannot serve (`left_out` names them); else they are an InputError.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | None = None,
        method: str | Sequence[Term] = "none",
        example: Tensor | None = None,
        *,
        same_classes: bool | None = None,
        labels: Tensor | None = None,
        allow_partial: bool = False,
    ):
        super().__init__()
        self.student, self.teacher, self.left_out = student, None, ()
        self.losses = nn.ModuleDict()
        self.terms = parse(method) if isinstance(method, str) else tuple(method)
        seen = (
            None if example is None else example_output(student, example)
        )  # raises for images that are too small
        examples = None, None
        if needs_teacher(self.terms):
            if teacher is None or example is None:
                raise InputError(
                    f"the method {canonical(self.terms)} needs a teacher and an example batch"
                )
            if same_classes is None:
                same_classes = class_count(student) == class_count(teacher)
            self.terms, self.left_out = applicable_terms(self.terms, same_classes, allow_partial)
            self.teacher = teacher.requires_grad_(False).eval()
            examples = seen, example_output(teacher, example)
        for term in self.terms:
            self.losses[term.loss] = LOSSES[term.loss](*examples, **term.options)
            if labels is not None:
                self.losses[term.loss].setup(labels)
        # On the device, since a recorded step would keep a number for ever.
        self.register_buffer(
            "weights", torch.tensor([term.weight for term in self.terms]), persistent=False
        )
        self.to(next(student.parameters()).device)

    def train(self, mode: bool = True) -> "Distiller":
        super().train(mode)
        if self.teacher is not None:
            self.teacher.eval()  # its statistics are what it was trained with, always
        return self

    def start_epoch(self, epoch: int) -> None:
        """Set the weights of an epoch, counted from 0."""
        self.weights.copy_(
            torch.tensor([weight_at(term.loss, term.weight, epoch) for term in self.terms])
        )

    def forward(
        self, images: Tensor, labels: Tensor, index: Tensor | None = None
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Images (batch, 3, height, width), labels (batch,), index (batch,) of the images in the training set, which
        some losses remember -> scalar losses by name before weighting, and their weighted sum "total"; logits."""
        student, teacher, batch = self.student(images), None, Batch(images, labels, index)
        if self.teacher is not None:
            with torch.no_grad():
                teacher = self.teacher(images)
        terms = {name: loss(student, teacher, batch) for name, loss in self.losses.items()}
        total = sum(
            weight * term for weight, term in zip(self.weights, terms.values(), strict=True)
        )
        return {"total": total, **terms}, student.logits

    def trained(self) -> nn.ModuleDict:
        """What the optimiser trains and a checkpoint keeps: the student and the losses' own parameters."""
        return nn.ModuleDict({"student": self.student, "losses": self.losses})

    def running_buffers(self) -> dict[str, Tensor]:
        """The buffers behind the losses' running means, by "loss.buffer"."""
        return {
            f"{n}.{k}": v
            for n, loss in self.losses.items()
            for k, v in loss.running_buffers().items()
        }

    def means(self) -> dict[str, Tensor]:
        """The losses' running means, by "loss.name", such as "afd.links"."""
        return {f"{n}.{k}": v for n, loss in self.losses.items() for k, v in loss.means().items()}
