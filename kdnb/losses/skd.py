"""SKD (Jeong, Lee, Choi, CVPR 2026)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from kdnb.losses.base import Batch, Loss, Output, divergences


def similarities(z: Tensor) -> Tensor:
    """Cosines of the logits of all pairs of images: (batch, classes) -> (batch, batch)."""
    e = F.normalize(z)
    return e @ e.T


class SKD(Loss, name="skd", method="ce + skd"):
    """instance * KL(teacher || student) + direction * a Mahalanobis distance, batch means.

    The first part compares the predictions of each image at temperature T. The second compares the
    directions of the logits: D are the differences between student and teacher of the cosines of
    all pairs of images, and an image's distance is sqrt(D_i^T C^-1 D_i), where C is the covariance
    of D's columns plus tikhonov times the identity.

    The weights, temperature and tikhonov are those of torchdistill; the paper's for CIFAR-100 are
    not known here.

    Args:
        instance: weight of the first part, which is not multiplied by T^2.
        direction: weight of the second part.
        T: temperature of both networks' predictions in the first part.
        tikhonov: what is added to the variances, so that C can be inverted.
    """

    teacher_outputs = frozenset({"logits"})
    same_classes = True
    may_be_zero = frozenset({"instance", "direction"})

    def __init__(
        self,
        *examples: Output,
        instance: float = 1.0,
        direction: float = 1.0,
        T: float = 4.0,
        tikhonov: float = 0.1,
    ):
        super().__init__()
        self.instance = instance
        self.direction = direction
        self.T = T
        self.tikhonov = tikhonov

    def forward(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        instance = divergences(student.logits, teacher.logits, self.T).mean()
        with torch.autocast(student.logits.device.type, enabled=False):
            D = similarities(student.logits.float()) - similarities(teacher.logits.float())  # b b
            centred = D - D.mean(0)
            identity = torch.eye(len(D), device=D.device)
            C = centred.T @ centred / (len(D) - 1) + self.tikhonov * identity  # b b
            # `inv` would wait for the device to say whether C is singular, which it is not.
            inverse = torch.linalg.inv_ex(C).inverse
            squares = (D @ inverse * D).sum(1)  # b
            # The clamp gives the root a finite slope where student and teacher agree.
            direction = squares.clamp(min=1e-12).sqrt().mean()
        return self.instance * instance + self.direction * direction
