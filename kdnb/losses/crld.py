"""CRLD (Zhang, Liu, Cai, Ma, Cross-View Consistency Regularisation for Knowledge Distillation,
ACM Multimedia 2024)."""

import torch.nn.functional as F
from torch import Tensor

from kdnb.losses.base import Batch, Loss, Output, divergences


def confidence(z: Tensor) -> Tensor:
    """The largest probability of each image: (batch, classes) -> (batch,)."""
    return F.softmax(z, dim=1).amax(1)


class CRLD(Loss, name="crld", method="ce:2 + crld"):
    """within * KL within the views + across * KL across the views, batch means times T^2.

    Within the views, the student learns from the teacher's predictions of the same view, weakly or
    strongly augmented; across, from those of the other view. An image counts in the first part if
    the teacher is confident of its weak view, in the second if it is of its strong view.

    The published cross-entropy is the sum over both views, `ce` the mean over all images: so it has
    twice the published weight. Weights and thresholds are those of DeepKD's configuration of CRLD.

    Args:
        within: weight of the part within the views.
        across: weight of the part across the views.
        T: temperature of both networks' predictions.
        tau_w: the least probability of the teacher's likeliest class in the weak view.
        tau_s: the same in the strong view.
    """

    same_classes = True
    views = 2
    may_be_zero = frozenset({"within", "across", "tau_w", "tau_s"})

    def __init__(
        self,
        *examples: Output,
        within: float = 2.0,
        across: float = 0.5,
        T: float = 4.0,
        tau_w: float = 0.9,
        tau_s: float = 0.2,
    ):
        super().__init__()
        self.within = within
        self.across = across
        self.T = T
        self.tau_w = tau_w
        self.tau_s = tau_s

    def forward(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        weak_s, strong_s = student.logits.float().chunk(2)  # b c
        weak_t, strong_t = teacher.logits.float().chunk(2)  # b c
        within = divergences(weak_s, weak_t, self.T) + divergences(strong_s, strong_t, self.T)  # b
        across = divergences(strong_s, weak_t, self.T) + divergences(weak_s, strong_t, self.T)  # b
        is_sure_w = confidence(weak_t) >= self.tau_w
        is_sure_s = confidence(strong_t) >= self.tau_s
        loss = self.within * (within * is_sure_w) + self.across * (across * is_sure_s)  # b
        return loss.mean() * self.T**2
