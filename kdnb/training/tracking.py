"""A run's epochs in TensorBoard, Weights & Biases or MLflow, as `-p log` says.

Each gets the rows of metrics.csv, AFD's attention as an image per epoch, and the run's fields as
hyper-parameters. What they write lies in the run's folder; a run that continues goes on there.
"""

import hashlib
import io
import math
import os
from importlib import import_module
from importlib.util import find_spec

import numpy as np
from PIL import Image

from kdnb.errors import InputError
from kdnb.runs.run import Run


def draw_links(links: tuple, title: str) -> np.ndarray:
    """The figure of `plots.run_links` as uint8 (height, width, 3)."""
    import matplotlib.pyplot as plt

    from kdnb import plots

    figure = plots.run_links(links, title)
    data = io.BytesIO()
    figure.savefig(data, dpi=100)
    plt.close(figure)
    return np.array(Image.open(data).convert("RGB"))


class Tracker:
    """Receives the finished epochs of a run; this one ignores them.

    A subclass opens its log when the first epoch arrives, so that it knows where a run continues.
    """

    package = ""  # what has to be installed; the extra of kdnb has the same name

    def __init__(self, run: Run):
        self.run = run
        self.is_open = False
        if self.package and find_spec(self.package) is None:
            raise InputError(
                f"log is {run.log!r}: {self.package} is not installed; "
                f'pip install "kdnb[{self.package}]" does it'
            )

    def epoch(self, row: dict[str, float]) -> None:
        """Logs an epoch, a row of metrics.csv, and the links that the run's folder holds of it."""
        if not self.package:
            return
        if not self.is_open:
            self.open(row["epoch"])
            self.is_open = True
        values = {name: row[name] for name in row if name != "epoch"}
        measured = {name: value for name, value in values.items() if not math.isnan(value)}
        self.write(row["epoch"], measured)
        if links := self.run.links_by_epoch:
            self.write_image(row["epoch"], draw_links(links, f"epoch {row['epoch']}"))

    def close(self) -> None:
        if self.is_open:
            self.finish()

    def open(self, epoch: int) -> None:
        """Opens the log; epoch: the first that will be written."""

    def write(self, epoch: int, values: dict[str, float]) -> None:
        """Logs numbers by name."""

    def write_image(self, epoch: int, pixels: np.ndarray) -> None:
        """Logs an image of the links, uint8 (height, width, 3)."""

    def finish(self) -> None:
        """Closes the log."""


class TensorBoard(Tracker):
    """In RUN/tensorboard. After an interruption, events of later epochs than its are hidden."""

    package = "tensorboard"

    def open(self, epoch: int) -> None:
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams

        folder = self.run.folder / "tensorboard"
        self.writer = SummaryWriter(str(folder), purge_step=epoch)
        # Not add_hparams, which would write them into another folder.
        for summary in hparams(self.run.identity, {"test_top1": 0}):
            self.writer.file_writer.add_summary(summary)

    def write(self, epoch: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, epoch)

    def write_image(self, epoch: int, pixels: np.ndarray) -> None:
        self.writer.add_image("links", pixels, epoch, dataformats="HWC")

    def finish(self) -> None:
        self.writer.close()


class WeightsAndBiases(Tracker):
    """In RUN/wandb, and on the server unless WANDB_MODE is offline; the project is kdnb."""

    package = "wandb"

    def open(self, epoch: int) -> None:
        wandb = import_module("wandb")
        self.session = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "kdnb"),
            id=hashlib.sha256(self.run.name.encode()).hexdigest()[:16],
            name=self.run.name,
            dir=str(self.run.folder),
            config=self.run.identity,
            resume="allow",
        )

    def write(self, epoch: int, values: dict[str, float]) -> None:
        self.session.log(values, step=epoch)

    def write_image(self, epoch: int, pixels: np.ndarray) -> None:
        image = import_module("wandb").Image(pixels)
        self.session.log({"links": image}, step=epoch)

    def finish(self) -> None:
        self.session.finish()


class MLflow(Tracker):
    """In RUN/mlflow, or where MLFLOW_TRACKING_URI says; the experiment is kdnb."""

    package = "mlflow"

    def open(self, epoch: int) -> None:
        folder = self.run.folder / "mlflow"
        folder.mkdir(exist_ok=True)
        uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder}/mlflow.db"
        self.client = import_module("mlflow").MlflowClient(uri)
        experiment = self.client.get_experiment_by_name("kdnb")
        experiment_id = experiment.experiment_id if experiment else None
        if experiment_id is None:
            experiment_id = self.client.create_experiment("kdnb", (folder / "files").as_uri())
        same = f"attributes.run_name = '{self.run.name}'"
        if found := self.client.search_runs([experiment_id], same, max_results=1):
            self.run_id = found[0].info.run_id
            return
        created = self.client.create_run(experiment_id, run_name=self.run.name)
        self.run_id = created.info.run_id
        for name, value in self.run.identity.items():
            self.client.log_param(self.run_id, name, value)

    def write(self, epoch: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self.client.log_metric(self.run_id, name, value, step=epoch)

    def write_image(self, epoch: int, pixels: np.ndarray) -> None:
        self.client.log_image(self.run_id, pixels, f"links/epoch-{epoch:03}.png")

    def finish(self) -> None:
        self.client.set_terminated(self.run_id)


TRACKERS = {"": Tracker, "tensorboard": TensorBoard, "wandb": WeightsAndBiases, "mlflow": MLflow}
