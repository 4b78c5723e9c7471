"""The distillation losses, one per file; `kdnb.losses.base.Loss` says how to write another."""

from kdnb.losses.base import LOSSES, METHODS, Loss
from kdnb.paths import import_files

import_files(__name__, __path__)
