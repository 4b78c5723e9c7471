"""Attention-based feature distillation (Ji, Heo, Park, Show, Attend and Distill, AAAI 2021), redone to be rerun.

run = kdnb.train(kdnb.Run(dataset="digits", method="afd")); run.result["top1"]
"""

import contextlib
import os

# Threads that spin while they wait for each other are twice as fast on a quiet machine, and up to fifty times slower
# beside another process (NOTES.md). OpenMP wants to know before torch is imported. A run does without psutil; the load
# average is no substitute: it is high for a minute after the run before.
with contextlib.suppress(ImportError):
    import psutil

    if psutil.cpu_percent(0.1) > 20:
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from kdnb.data import DATASETS, load_data
from kdnb.data.stanford40 import Stanford40
from kdnb.errors import InputError
from kdnb.losses import LOSSES, METHODS, Loss
from kdnb.models import Output, create_model, load_weights, tapped
from kdnb.runs.grid import grid
from kdnb.runs.run import Run
from kdnb.training.distiller import Distiller
from kdnb.training.loop import train
from kdnb.training.setup import check, load_images, loaders, photographs
