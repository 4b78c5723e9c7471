"""Distillation losses, a file each, after their published code; see kdnb.losses.base.Loss."""

from kdnb.losses.base import LOSSES, METHODS, Loss
from kdnb.paths import import_files

import_files(__name__, __path__)
