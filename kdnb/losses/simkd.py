"""SimKD (Chen, Mei, Zhang, Wang, Feng, Chen, Knowledge Distillation with the Reused Teacher
Classifier, CVPR 2022)."""

import torch.nn.functional as F
from torch import Tensor, nn

from kdnb.errors import InputError
from kdnb.losses.base import Batch, Loss, Output, average_pool


def layer(c_in: int, c_out: int, kernel: int) -> list[nn.Module]:
    """A convolution without bias that keeps the size of the map, batch norm and ReLU."""
    conv = nn.Conv2d(c_in, c_out, kernel, padding=kernel // 2, bias=False)
    return [conv, nn.BatchNorm2d(c_out), nn.ReLU(inplace=True)]


class SimKD(Loss, name="simkd", method="simkd:1"):
    """Mean squared error between the teacher's last map and a projection of the student's.

    The student predicts by the projection and the teacher's classifier (section 3). Its own
    classifier is not used, and not trained unless another loss of the mix does it.

    Args:
        factor: the projection's middle layer has 1 / factor of the teacher's channels.

    Raises InputError for a teacher with layers between its last map and its classifier that change
    the number of channels.
    """

    same_classes = True
    needs_classifiers = True

    def __init__(self, student: Output, teacher: Output, *, factor: int = 2):
        super().__init__()
        channels = teacher.feats[-1].shape[1] if teacher.feats else 0
        if not student.feats or channels != teacher.pooled.shape[1]:
            raise InputError(
                "simkd needs a student with feature maps, and a teacher whose classifier averages "
                f"its last map: this one has {channels} channels there, and "
                f"{teacher.pooled.shape[1]} before its classifier; choose another loss or network"
            )
        self.size = tuple(teacher.feats[-1].shape[2:])
        c_mid = max(1, channels // factor)
        self.transfer = nn.Sequential(
            *layer(student.feats[-1].shape[1], c_mid, 1),
            *layer(c_mid, c_mid, 3),
            *layer(c_mid, channels, 1),
        )

    def forward(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        # A Distiller has applied `predict` already.
        (h_s,) = student.adapted or self.predict(student).adapted
        return F.mse_loss(h_s.float(), average_pool(teacher.feats[-1].float(), h_s.shape[2:]))

    def predict(self, student: Output) -> Output:
        """The student's Output with the logits that the teacher's classifier gives the projection.

        The projected map is `adapted`. Its size is the smaller one of both networks' last maps.
        """
        h_s = student.feats[-1].float()
        projected = self.transfer(average_pool(h_s, [*map(min, h_s.shape[2:], self.size)]))
        logits = self.classifiers.teacher(projected.mean((2, 3)))
        return student._replace(logits=logits, adapted=(projected,))
