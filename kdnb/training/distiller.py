"""The objective: a student, a frozen teacher, and the weighted losses between them."""

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from kdnb.data import Batch
from kdnb.errors import InputError
from kdnb.losses import LOSSES
from kdnb.losses.mix import (
    Term,
    applicable_terms,
    canonical,
    needs_teacher,
    parse,
    views_needed,
    weight_at,
)
from kdnb.losses.predicting import Predicting, describe_predictor
from kdnb.models import Output, class_count, example_output
from kdnb.training.loss_terms import OverTeachers, Teachers, build_loss


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


def run_views(network: nn.Module, images: Tensor, views: int) -> Output:
    """The Output of all images; batch norm has the statistics of one view, as in published code."""
    if views == 1:
        return network(images)
    outputs = [network(view) for view in images.chunk(views)]
    return Output(*map(concatenate, zip(*outputs, strict=True)))


def concatenate(parts: Sequence) -> Tensor | tuple | None:
    """The batches of a field of Output: tensors, tuples of tensors, or None."""
    if isinstance(parts[0], tuple):
        return tuple(map(torch.cat, zip(*parts, strict=True)))
    return None if parts[0] is None else torch.cat(parts)


class Distiller(nn.Module):
    """The weighted sum of a method's losses, such as ce + 0.9 kd + 200 afd.

    Args:
        student: a network that returns `Output`.
        teacher: another one, or `Teachers`; the weights are frozen, and it stays in eval mode. A
            method without a teacher's losses needs none.
        method: the name of a method, a mix, or parsed terms.
        example: images (2 or more, 3, height, width), from which the losses learn the shapes of
            both networks' maps.
        teacher_example: as many images in the teacher's size, if it differs.
        same_classes: whether the teacher predicts the student's classes; None: if it predicts as
            many.
        labels: (n,) of the whole training set, for losses that remember its images, such as CRD.
        batch_size: images in a full batch, for losses whose layers depend on it, such as SemCKD; 0:
            as many as in `example`.
        views: number of views of each image in a batch, see `Batch`; the networks see one after the
            other. 0: as many as the losses need.
        allow_partial: leave out losses that this teacher cannot serve, and name them in `left_out`.

    Raises InputError for a missing teacher or example, for images that are too small for a network,
    for losses that the teacher cannot serve, unless they may be left out, for losses on features of
    a network without feature maps, and for two losses that change how the student predicts.
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
        batch_size: int = 0,
        views: int = 0,
        allow_partial: bool = False,
    ):
        super().__init__()
        self.student = student
        self.teacher: nn.Module | None = None
        self.left_out: tuple[str, ...] = ()
        self.losses = nn.ModuleDict()
        self.terms = parse(method) if isinstance(method, str) else tuple(method)
        self.views = views or views_needed(self.terms)
        student_example = None if example is None else example_output(student, example)
        teachers: list[nn.Module] = []
        teacher_examples: list[Output] = []
        if needs_teacher(self.terms):
            if teacher is None or example is None:
                raise InputError(
                    f"the method {canonical(self.terms)} needs a teacher and an example batch"
                )
            teachers = [*teacher] if isinstance(teacher, Teachers) else [teacher]
            if same_classes is None:
                same_classes = {class_count(student)} == {*map(class_count, teachers)}
            self.terms, self.left_out = applicable_terms(self.terms, same_classes, allow_partial)
            self.teacher = teacher.requires_grad_(False).eval()
            if teacher_example is None:
                teacher_example = example
            teacher_examples = [example_output(each, teacher_example) for each in teachers]
            for each in teacher_examples:
                check_maps(self.terms, student_example, each)
        size = batch_size or (0 if example is None else len(example))
        for term in self.terms:
            self.losses[term.loss] = build_loss(
                term, student, teachers, student_example, teacher_examples, labels, size
            )
        predictors = [name for name, loss in self.losses.items() if getattr(loss, "predict", None)]
        if len(predictors) > 1:
            raise InputError(
                f"{' and '.join(predictors)} both change how the student predicts: choose one"
            )
        self.predictor = predictors[0] if predictors else ""
        self.predictor_metadata = next(
            (
                describe_predictor(term, teacher_examples[0])
                for term in self.terms
                if term.loss == self.predictor
            ),
            None,
        )
        self.teacher_grad = any(LOSSES[term.loss].teacher_grad for term in self.terms)
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
        targets: Tensor | None = None,
        teacher_logits: Tensor | None = None,
        teacher_pooled: Tensor | None = None,
        teacher_output: Output | tuple[Output, ...] | None = None,
    ) -> tuple[dict[str, Tensor], Tensor]:
        """The losses of a batch before weighting, their weighted sum "total"; the student's logits.

        Args:
            images: (batch, 3, height, width), normalised.
            labels: (batch,); -1 for an image without one.
            index: (batch,), the images' positions in the training set, for losses that remember
                them.
            teacher_images: the images as the teacher sees them; None: as the student does.
            targets: (batch, classes), what cross-entropy compares with; None: the labels.
            teacher_logits: the teacher's answers if they are known: then it is not run, and the
                losses get nothing else of it.
            teacher_pooled: its pooled features, likewise.
            teacher_output: what `teach` returns, if it was called before.
        """
        batch = Batch(
            images, labels, index, teacher_images, targets, teacher_logits, teacher_pooled
        )
        student = run_views(self.model, images, self.views)
        teacher = self.teach(batch) if teacher_output is None else teacher_output
        terms = {
            name: loss(student, self.teacher_output(loss, teacher), batch)
            for name, loss in self.losses.items()
        }
        total = sum(
            weight * term for weight, term in zip(self.weights, terms.values(), strict=True)
        )
        return {"total": total, **terms}, student.logits

    @property
    def model(self) -> nn.Module:
        """The student as it predicts: the network itself, unless a loss changes its logits."""
        if not self.predictor:
            return self.student
        return Predicting(self.student, self.losses[self.predictor])

    def teach(self, batch: Batch) -> Output | tuple[Output, ...] | None:
        """The teacher's Output of a batch, or the Outputs of all teachers; None without one."""
        if batch.teacher_logits is not None or batch.teacher_pooled is not None:
            return Output(batch.teacher_logits, (), pooled=batch.teacher_pooled)
        return None if self.teacher is None else self.run_teacher(batch.for_teacher)

    def run_teacher(self, images: Tensor) -> Output | tuple[Output, ...]:
        """The Output of the teacher, or those of all teachers, of images in its normalisation."""
        if self.teacher_grad:
            images = images.detach().requires_grad_()
        with nullcontext() if self.teacher_grad else torch.no_grad():
            if isinstance(self.teacher, Teachers):
                return tuple(run_views(each, images, self.views) for each in self.teacher)
            return run_views(self.teacher, images, self.views)

    @staticmethod
    def teacher_output(loss: nn.Module, teacher: Output | tuple[Output, ...] | None):
        """What a loss gets of the teacher or teachers: all Outputs, or that of the first one."""
        takes_all = isinstance(loss, OverTeachers) or loss.takes_all_teachers
        if teacher is None or takes_all == (type(teacher) is tuple):
            return teacher
        return (teacher,) if takes_all else teacher[0]

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
