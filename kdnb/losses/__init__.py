"""Distillation losses: a file each, after its public code. Adding one is adding a file; see kdnb.losses.base.Loss."""

import importlib
import pkgutil

from kdnb.losses.base import LOSSES, METHODS, Loss

for _module in pkgutil.iter_modules(__path__):  # each file registers its loss
    importlib.import_module(f"{__name__}.{_module.name}")
