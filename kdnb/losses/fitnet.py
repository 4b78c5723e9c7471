"""FitNets (Romero, Ballas, Ebrahimi Kahou, Chassang, Gatta, Bengio, Hints for Thin Deep Nets, ICLR 2015)."""

import torch.nn.functional as F
from torch import Tensor, nn

from kdnb.errors import InputError
from kdnb.losses.base import Batch, Loss, Output, align_from_deepest


def hint(student: Output, teacher: Output) -> tuple[Tensor, Tensor]:
    """The second stage of both networks; of one with more stages the one that is as far from its last."""
    pairs = align_from_deepest(student.stages, teacher.stages)
    return pairs[min(1, len(pairs) - 1)]


def regressor(h_s: Tensor, h_t: Tensor) -> nn.Conv2d | nn.ConvTranspose2d:
    """A convolution between two maps' shapes. Raises InputError for a teacher's map that is larger, but not twice."""
    (c_s, *size_s), (c_t, *size_t) = h_s.shape[1:], h_t.shape[1:]
    if size_s == [2 * side for side in size_t]:
        return nn.Conv2d(c_s, c_t, 3, stride=2, padding=1)
    if size_t == [2 * side for side in size_s]:
        return nn.ConvTranspose2d(c_s, c_t, 4, stride=2, padding=1)
    kernel = [1 + s - t for s, t in zip(size_s, size_t, strict=True)]
    if min(kernel) < 1:
        sizes = ["{} x {}".format(*size) for size in (size_s, size_t)]
        raise InputError(
            f"fitnet has no convolution from maps of {sizes[0]} to {sizes[1]} pixels, only to smaller ones or to twice "
            "the size: at, nst, vid and reviewkd compare maps of any sizes"
        )
    return nn.Conv2d(c_s, c_t, kernel)


class FitNet(Loss, name="fitnet", method="ce + fitnet:100"):
    """Mean squared error of the teacher's hint and the student's, through a regressor that is trained (section 2.2).

    The student learns from it and the labels at once, as in RepDistiller's benchmark, not in two stages.
    """

    def __init__(self, student: Output, teacher: Output):
        super().__init__()
        h_s, h_t = hint(student, teacher)
        self.conv, self.bn = regressor(h_s, h_t), nn.BatchNorm2d(h_t.shape[1])

    def forward(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        h_s, h_t = hint(student, teacher)
        return F.mse_loss(F.relu(self.bn(self.conv(h_s))).float(), h_t.float())
