"""Multi-level logit distillation, MLKD (Jin, Wang, Lin, CVPR 2023)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from kdnb.losses.base import Batch, Loss, Output, divergences
from kdnb.losses.lskd import standardise

OTHER_TEMPERATURES = (3.0, 5.0, 2.0, 6.0)  # after the first, T
OF_STRONG_VIEW = 3  # the first so many temperatures, at which the strong view is compared


def share_up_to_median(values: Tensor) -> Tensor:
    """The share of values (n,) that are at most their median: about half."""
    n = len(values)
    ordered = values.sort().values
    median = (ordered[(n - 1) // 2] + ordered[n // 2]) / 2
    return (values <= median).float().mean()


def kl(z_s: Tensor, z_t: Tensor, T: float) -> Tensor:
    """KL(teacher || student) of predictions at temperature T, batch mean times T^2."""
    return divergences(z_s, z_t, T).mean() * T**2


class MLKD(Loss, name="mlkd", method="ce:0.2 + mlkd:0.9"):
    """Alignment of predictions of images, of a batch and of classes, at five temperatures.

    The images are compared by KL divergence, the batch by the products of the images' probabilities
    (batch, batch), the classes by those of the classes' probabilities (classes, classes)
    (section 3). The parts on the weakly augmented view are multiplied by the share of images, or
    classes, of which the teacher's confidence is at most its median. As in the authors' code, the
    strongly augmented view is compared by KL alone, at T, 3 and 5; at 2 and 6 the weak view is
    taken again instead, in full.

    The published cross-entropy is the sum over both views, `ce` the mean over all images: so it has
    twice the published weight.

    Args:
        T: the first temperature; the others are 3, 5, 2 and 6.
        standardise: whether the logits of the KL divergences are standardised first, as in LSKD,
            whose authors use T = 2 and the mix "ce:0.2 + mlkd:9(T=2, standardise=True)".
    """

    same_classes = True
    views = 2

    def __init__(
        self, student: Output, teacher: Output, *, T: float = 4.0, standardise: bool = False
    ):
        super().__init__()
        self.temperatures = (T, *OTHER_TEMPERATURES)
        self.standardise = standardise

    def forward(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        with torch.autocast(student.logits.device.type, enabled=False):
            return self.images(student, teacher) + self.batch_and_classes(student, teacher)

    def images(self, student: Output, teacher: Output) -> Tensor:
        """The KL divergences of both views."""
        share = share_up_to_median(confidences(teacher).amax(1))
        if self.standardise:
            student, teacher = standardise(student), standardise(teacher)
        (weak_s, strong_s), (weak_t, strong_t) = student.logits.chunk(2), teacher.logits.chunk(2)
        loss = 0
        for number, T in enumerate(self.temperatures):
            weak = kl(weak_s, weak_t, T)
            second = kl(strong_s, strong_t, T) if number < OF_STRONG_VIEW else weak
            loss = loss + share * weak + second
        return loss

    def batch_and_classes(self, student: Output, teacher: Output) -> Tensor:
        """Squared differences of the products of probabilities, of the weak view."""
        p = confidences(teacher)  # b c
        share_of_images = share_up_to_median(p.amax(1))
        share_of_classes = share_up_to_median(p.sum(0))
        weak_s, weak_t = (output.logits.float().chunk(2)[0] for output in (student, teacher))
        loss = 0
        for T in self.temperatures:
            p_s, p_t = F.softmax(weak_s / T, dim=1), F.softmax(weak_t / T, dim=1)  # b c
            images = (p_s @ p_s.T - p_t @ p_t.T).square().sum() / len(p_s)
            classes = (p_s.T @ p_s - p_t.T @ p_t).square().sum() / p_s.shape[1]
            loss = loss + share_of_images * images + share_of_classes * classes
        return loss


def confidences(teacher: Output) -> Tensor:
    """The teacher's probabilities of the weak view at temperature 1: (batch, classes)."""
    return F.softmax(teacher.logits.float().chunk(2)[0], dim=1)
