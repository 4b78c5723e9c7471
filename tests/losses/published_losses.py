"""Which losses are published, so that their numbers are known and more is asked of them."""

import pytest
import torch

from kdnb import LOSSES
from kdnb.losses.base import Classifiers

PUBLISHED = {"afd", "at", "cat", "crd", "crld", "dist", "dkd", "fitnet", "kd", "lskd", "mlkd"}
PUBLISHED |= {"nkd", "nst", "ofd", "pkt", "reviewkd", "rkd", "rld", "semckd", "simkd", "skd", "sp"}
PUBLISHED |= {"srd", "srrl", "ttm", "vid", "wttm"}


def skip_unless_published(name):
    if name not in PUBLISHED:
        pytest.skip(f"no reference case for {name!r}: see docs/own-data-networks-losses.md")


def build_loss(name, pair, **options):
    """A loss between two networks, with what its class asks for: classifiers, the batch size.

    pair: the student's and the teacher's Output of a batch.
    """
    cls = LOSSES[name]
    batch_size = (len(pair[0].logits),) if cls.needs_batch_size else ()
    loss = cls(*pair, *batch_size, **options)
    if cls.needs_classifiers:
        layers = (torch.nn.Linear(each.pooled.shape[1], each.logits.shape[1]) for each in pair)
        loss.classifiers = Classifiers(*layers)
        loss.classifiers.teacher.requires_grad_(False)
    return loss
