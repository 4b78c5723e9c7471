"""Attention-based feature distillation (Ji, Heo, Park, Show, Attend and Distill, AAAI 2021).

run = kdnb.train(kdnb.Run(dataset="digits", method="afd")); run.result["top1"]

Names are imported when they are first used: see `__init__.pyi`.
"""

import lazy_loader

from kdnb.progress import wait_passively_if_busy

wait_passively_if_busy()  # before torch is imported

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
