"""The objective: a student, a frozen teacher, and the weighted losses between them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdnb.errors import InputError, choose
from kdnb.losses import LOSSES
from kdnb.models import Output

__all__ = ["Distiller"]


class Distiller(nn.Module):
    """Computes CE + sum of weight * loss (for AFD: CE + alpha * KD + beta * AFD).

    student, teacher: models returning Output; `teacher=None` trains the student on its labels alone.
    weights: {name in LOSSES: weight}; weight 0 leaves that loss out.
    example: images (2+, 3, height, width) from which the losses learn the shapes of both networks' maps.
    options: {name: keyword arguments}, such as {"afd": {"qk_dim": 128}}.

    A loss that this teacher cannot serve is left out; `left_out` says which and why, in sentences.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | None = None,
        weights: dict[str, float] | None = None,
        example: Tensor | None = None,
        options: dict[str, dict] | None = None,
    ):
        super().__init__()
        self.student, self.teacher = student, teacher
        self.losses, self.weights, self.left_out = nn.ModuleDict(), {}, []
        wanted = {choose("loss", name, LOSSES): float(w) for name, w in (weights or {}).items() if w}
        if not wanted:
            self.teacher = None  # a teacher that nobody listens to is not worth its forward pass
            return
        if teacher is None or example is None:
            raise InputError(f"the losses {', '.join(wanted)} need a teacher and an example batch")
        teacher.requires_grad_(False).eval()
        examples = [model_output(model, example) for model in (student, teacher)]
        classes = [len(o.logits[0]) for o in examples]
        for name, weight in wanted.items():
            if LOSSES[name].needs_same_classes and classes[0] != classes[1]:
                self.left_out.append(
                    f"{name} is left out: the teacher knows {classes[1]} classes, the data set has {classes[0]}"
                )
                continue
            self.losses[name] = LOSSES[name](*examples, **(options or {}).get(name, {}))
            self.weights[name] = weight

    def train(self, mode: bool = True) -> Distiller:
        super().train(mode)
        if self.teacher is not None:
            self.teacher.eval()  # its statistics are what it was trained with, always
        return self

    def forward(self, images: Tensor, labels: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Images (batch, 3, height, width), labels (batch,) -> scalar losses by name, "total" among them; logits."""
        output = self.student(images)
        terms = {"ce": F.cross_entropy(output.logits.float(), labels)}
        total = terms["ce"]
        if self.losses:
            with torch.no_grad():
                guide = self.teacher(images)
            for name, loss in self.losses.items():
                terms[name] = loss(output, guide)
                total = total + self.weights[name] * terms[name]
        return {"total": total, **terms}, output.logits

    def trained(self) -> nn.ModuleDict:
        """What the optimiser trains and a checkpoint keeps: the student and the losses' own parameters."""
        return nn.ModuleDict({"student": self.student, "losses": self.losses})


@torch.no_grad()
def model_output(model: nn.Module, images: Tensor) -> Output:
    """One forward pass in eval mode that leaves the model as it was."""
    was_training = model.training
    output = model.eval()(images)
    model.train(was_training)
    return output
