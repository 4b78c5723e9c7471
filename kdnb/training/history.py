"""The finished epochs of a run in training, as metrics.csv and history.npz have them."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kdnb.models import blocks
from kdnb.runs.folder import write_history
from kdnb.runs.run import Run
from kdnb.training.loss_terms import Teachers
from kdnb.training.setup import TrainingSetup


class History:
    """The rows of metrics.csv and the losses' running means, one of each per finished epoch."""

    def __init__(self, run: Run, setup: TrainingSetup):
        self.rows: list[dict] = []
        self.means: dict[str, list[Tensor]] = {}
        self.axes: dict[str, np.ndarray] = {}  # names and shapes of the blocks, the means' axes
        if setup.distiller.teacher is None:
            return
        sizes = {"teacher": setup.teacher_images.image_size, "student": run.image_size}
        for role, size in sizes.items():
            network = getattr(setup.distiller, role)
            if isinstance(network, Teachers):  # their blocks are no one axis
                continue
            network_blocks = blocks(network, size)
            self.axes[f"{role}.blocks"] = np.array([block.name for block in network_blocks])
            self.axes[f"{role}.shapes"] = np.array([block.shape for block in network_blocks])

    def add(self, row: dict, means: dict[str, Tensor]) -> None:
        """Add an epoch; means: by "loss.name"."""
        self.rows.append(row)
        for name, mean in means.items():
            self.means.setdefault(name, []).append(mean.cpu())

    def write(self, folder: Path) -> None:
        """Write metrics.csv and history.npz to the folder of the run."""
        arrays = {name: torch.stack(means).float().numpy() for name, means in self.means.items()}
        write_history(folder, self.rows, arrays | self.axes if arrays else {})

    def state(self) -> dict:
        """What a checkpoint keeps."""
        return {"rows": self.rows, "means": self.means}

    def load(self, state: dict) -> None:
        """Load what `state` returned."""
        self.rows, self.means = state["rows"], state["means"]


def check_history(state: dict, epochs: int) -> None:
    """Raises ValueError if a checkpoint lacks an epoch, or has more than the epochs of its run."""
    if state["epoch"] + (state["step"] > 0) > epochs:
        raise ValueError(f"it has more than {epochs} epochs")
    rows = [row["epoch"] for row in state["rows"]]
    lengths = {len(means) for means in state["means"].values()}
    if rows != [*range(1, state["epoch"] + 1)] or not lengths <= {len(rows)}:
        raise ValueError("its history does not have every epoch")
