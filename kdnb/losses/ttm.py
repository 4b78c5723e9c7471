"""Transformed teacher matching, TTM (Zheng, Yang, ICLR 2024)."""

import torch.nn.functional as F
from torch import Tensor

from kdnb.losses.base import Batch, Loss, Output


class TTM(Loss, name="ttm", method="ce + ttm:45"):
    """KL(p^gamma / U || student), batch mean.

    p are the teacher's probabilities of an image, U is the sum of p^gamma over the classes. So only
    the teacher's predictions are softened, by temperature 1 / gamma. WTTM weights the images by U.

    Args:
        gamma: the power of the teacher's probabilities. It and the weight of the method are those
            that the authors' code gives for VGG-13 and VGG-8.
    """

    teacher_outputs = frozenset({"logits"})
    same_classes = True

    def __init__(self, student: Output, teacher: Output, *, gamma: float = 0.1):
        super().__init__()
        self.gamma = gamma

    def forward(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        log_p_s = F.log_softmax(student.logits.float(), dim=1)  # b c
        log_p_t = F.log_softmax(self.gamma * teacher.logits.float(), dim=1)  # b c
        return F.kl_div(log_p_s, log_p_t, reduction="batchmean", log_target=True)
