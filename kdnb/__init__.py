"""Attention-based feature distillation (Ji, Heo, Park, Show, Attend and Distill, AAAI 2021).

run = kdnb.train(kdnb.Run(dataset="digits", method="afd")); run.result["top1"]
"""

from kdnb.progress import wait_passively_if_busy

wait_passively_if_busy()  # before torch is imported

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
