"""Class attention transfer, CAT-KD (Guo, Yan, Li, Lin, CVPR 2023)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from kdnb.errors import InputError
from kdnb.losses.base import Batch, Loss, Output


class CAT(Loss, name="cat", method="ce + cat:12"):
    """Mean squared difference of the class activation maps (CAMs) of both networks (section 3).

    The CAM of a class is the last feature map, weighted channel by channel by the classifier's
    weights of that class. Its mean over the pixels, plus the bias, is the logit.

    Args:
        resolution: height and width that the CAMs are averaged to.
        normalise: whether each CAM is L2-normalised over its pixels then.

    Raises InputError for a network with layers between its last map and its classifier that change
    the number of channels.
    """

    same_classes = True
    needs_classifiers = True

    def __init__(
        self, student: Output, teacher: Output, *, resolution: int = 2, normalise: bool = False
    ):
        super().__init__()
        self.resolution = resolution
        self.normalise = normalise
        for role, output in {"student": student, "teacher": teacher}.items():
            channels = output.feats[-1].shape[1] if output.feats else 0
            if channels != output.pooled.shape[1]:
                raise InputError(
                    f"cat needs the maps that the classifier averages, and the {role}'s last map "
                    f"has {channels} channels where its classifier reads {output.pooled.shape[1]}: "
                    "choose another loss or network"
                )

    def forward(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        weight_s = self.classifiers.student.weight  # c d
        weight_t = self.classifiers.teacher.weight.detach()  # c d
        with torch.autocast(student.logits.device.type, enabled=False):
            return self.compare(
                self.cams(student.feats[-1], weight_s), self.cams(teacher.feats[-1], weight_t)
            )

    def cams(self, feat: Tensor, weight: Tensor) -> Tensor:
        """The CAMs of a map (batch, d, height, width): (batch, classes, height, width).

        weight: of the classifier, (classes, d).
        """
        return F.conv2d(feat.float(), weight.float()[:, :, None, None])

    def compare(self, cams_s: Tensor, cams_t: Tensor) -> Tensor:
        """The loss of the student's and the teacher's CAMs, (batch, classes, height, width)."""
        cams_s, cams_t = (
            F.adaptive_avg_pool2d(cams, self.resolution).flatten(2) for cams in (cams_s, cams_t)
        )  # b c rr
        if self.normalise:
            cams_s, cams_t = F.normalize(cams_s, dim=2), F.normalize(cams_t, dim=2)
        return F.mse_loss(cams_s, cams_t)
