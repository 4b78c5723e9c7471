"""FitNets (Romero, Ballas, Ebrahimi Kahou, Chassang, Gatta, Bengio, ICLR 2015)."""

import torch.nn.functional as F
from torch import Tensor, nn

from kdnb.errors import InputError
from kdnb.losses.base import Batch, Loss, Output, align_from_deepest


def hint(student: Output, teacher: Output) -> tuple[Tensor, Tensor]:
    """Returns the student's and the teacher's map to compare: the second of their paired stages.

    Stages are paired from the deepest on. If there is only one pair, it is that one.
    """
    pairs = align_from_deepest(student.stages, teacher.stages)
    return pairs[min(1, len(pairs) - 1)]


def regressor(h_s: Tensor, h_t: Tensor) -> nn.Conv2d | nn.ConvTranspose2d:
    """Returns a convolution from the shape of the student's map to that of the teacher's.

    Raises InputError if the teacher's map is larger than the student's, but not twice as large.
    """
    c_s, *size_s = h_s.shape[1:]
    c_t, *size_t = h_t.shape[1:]
    if size_s == [2 * length for length in size_t]:
        return nn.Conv2d(c_s, c_t, 3, stride=2, padding=1)
    if size_t == [2 * length for length in size_s]:
        return nn.ConvTranspose2d(c_s, c_t, 4, stride=2, padding=1)
    kernel = [1 + s - t for s, t in zip(size_s, size_t, strict=True)]
    if min(kernel) < 1:
        student_size, teacher_size = ("{} x {}".format(*size) for size in (size_s, size_t))
        raise InputError(
            f"fitnet has no convolution from maps of {student_size} to {teacher_size} pixels, only "
            "to smaller ones or to twice the size: at, nst, vid and reviewkd compare maps of any "
            "sizes"
        )
    return nn.Conv2d(c_s, c_t, kernel)


class FitNet(Loss, name="fitnet", method="ce + fitnet:100"):
    """Mean squared error between the teacher's hint and the student's regressed one (section 2.2).

    The student is trained with the hint and the labels at once, as in RepDistiller's benchmark; the
    paper trains in two stages.
    """

    def __init__(self, student: Output, teacher: Output):
        super().__init__()
        h_s, h_t = hint(student, teacher)
        self.conv = regressor(h_s, h_t)
        self.bn = nn.BatchNorm2d(h_t.shape[1])

    def forward(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        h_s, h_t = hint(student, teacher)
        return F.mse_loss(F.relu(self.bn(self.conv(h_s))).float(), h_t.float())
