"""The folder of a run: what it holds, read when it is asked for."""

import io
import math
import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np

from kdnb.errors import InputError
from kdnb.runs.digests import check_file, check_files
from kdnb.runs.files import (
    damaged,
    is_finished,
    read_arrays,
    read_columns,
    read_json,
    require_file,
    write_atomically,
)
from kdnb.runs.stored_names import with_current_names

FORMAT = 2  # of config.json; 1 had other names for some fields
COUNTS = ("epoch_seconds", "total_seconds", "parameters", "teacher_parameters")
COUNTS += ("train_images", "unlabelled_images", "test_images")  # numbers in result.json

# The types of what config.json holds, as far as it has it. A teacher may be None.
TYPES = dict.fromkeys(("run", "where", "preset", "overrides", "options", "code", "plugins"), dict)
TYPES |= dict.fromkeys(("machines", "classes", "left_out"), list) | {"label": str}
TYPES |= {"teacher": dict | None}
OF_MACHINE = {"device": str, "commit": str, "started": str, "versions": dict}


class RunFolder:
    """The folder of a run.

    Every property reads a file and raises InputError if that is missing, damaged, or another run's.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

    @property
    def done(self) -> bool:
        """Whether the run is finished."""
        return is_finished(self.folder)

    @property
    def config(self) -> dict:
        """The run's parameters, preset and teacher, and the machines and versions that trained it.

        It is written when training starts. Files of format 1 are returned with the names of format
        2.
        """
        path = self.folder / "config.json"
        config = read_json(path)
        check_file(path)
        version = config.get("format", 1)
        if not isinstance(version, int):
            raise damaged(path, f"its format is {version!r}, not a number")
        if version > FORMAT:
            raise InputError(
                f"{path} has format {version}, and this version of kdnb reads formats up to "
                f"{FORMAT}: update kdnb"
            )
        if version != FORMAT:
            config = with_current_names(config) | {"format": FORMAT}
        check_types(path, config, TYPES)
        for machine in config.get("machines", ()):
            check_types(path, machine, OF_MACHINE)
        return config

    def stored_fields(self, known: Collection[str]) -> tuple[dict, dict]:
        """The fields of the run that config.json holds: what was trained, and where.

        Raises InputError for a field that is not known; places that are not known are left out.
        """
        config = self.config
        what, where = config.get("run"), config.get("where", {})
        if not (isinstance(what, dict) and isinstance(where, dict)):
            raise damaged(self.folder / "config.json", "it describes no run")
        if unknown := sorted(set(what) - set(known)):
            raise InputError(
                f"{self.folder} comes from another version of kdnb: "
                f"unknown are {', '.join(unknown)}"
            )
        return what, {name: value for name, value in where.items() if name in known}

    @property
    def result(self) -> dict:
        """Accuracies (%) after the last and the best epoch, seconds, parameter and image counts.

        The digests in it are those of the run's files: small ones are checked, and the sizes of the
        weights.
        """
        path = self.folder / "result.json"
        result = read_json(path)
        try:
            accuracies = [result["top1"], result["top5"], result["best"]["top1"]]
        except (KeyError, TypeError) as error:
            raise damaged(path, f"it lacks {error}") from None
        # Only that of a teacher may be None: there may be no teacher.
        counts = [result[name] for name in COUNTS if result.get(name, None) is not None]
        if not all(is_number(value) and 0 <= value <= 100.001 for value in accuracies):
            raise damaged(path, "an accuracy is not between 0 and 100 %")
        if not all(is_number(value) and 0 <= value < math.inf for value in counts):
            raise damaged(path, "a time or a count is no number")
        check_files(self.folder, result)
        return result

    def columns(self, required: Collection[str], all_columns: bool = False) -> dict:
        """Columns of metrics.csv: {name: array (epochs,)}, see `read_columns`.

        Raises InputError if those of a finished run do not end at its last epoch.
        """
        path = check_file(self.folder / "metrics.csv")
        columns = read_columns(path, required, all_columns)
        if self.done:
            fields = self.config.get("run")
            epochs = fields.get("epochs") if isinstance(fields, dict) else None
            if len(columns["epoch"]) != epochs:
                raise damaged(path, f"it has {len(columns['epoch'])} of {epochs} epochs")
        return columns

    @property
    def metrics(self):
        """A pandas DataFrame, a row per finished epoch."""
        import pandas as pd

        required = ("epoch", "train_top1", "test_top1", "seconds")
        return pd.DataFrame(self.columns(required, all_columns=True))

    @property
    def history(self) -> dict[str, np.ndarray]:
        """Means by epoch, such as "afd.links" (epochs, T, S), and the blocks of both networks."""
        return read_arrays(check_file(self.folder / "history.npz"))

    @property
    def links_by_epoch(self) -> tuple[np.ndarray, list, list] | None:
        """AFD's attention by epoch (epochs, T, S), and both networks' blocks; None without AFD.

        None also for a run with several teachers, whose means are numbered ("afd.0.links"). The
        attention is a mean over the training images; a block is its name and the shape of its map.
        """
        path = self.folder / "history.npz"
        history = self.history if os.path.isfile(path) else {}
        attention = next(
            (means for name, means in history.items() if re.fullmatch(r"\w+\.links", name)), None
        )
        if attention is None:
            return None
        try:
            teacher, student = (
                list(zip(history[f"{role}.blocks"], history[f"{role}.shapes"], strict=True))
                for role in ("teacher", "student")
            )
        except (KeyError, ValueError, TypeError) as error:
            raise damaged(path, error) from None
        if attention.dtype.kind != "f" or not np.isfinite(attention).all():
            raise damaged(path, "its links are not finite numbers")
        epochs = self.config["run"]["epochs"] if self.done else len(attention)
        if attention.shape != (epochs, len(teacher), len(student)):
            raise damaged(
                path,
                f"its links are of shape {attention.shape}, for {epochs} epochs, {len(teacher)} "
                f"blocks of the teacher and {len(student)} of the student",
            )
        return attention, teacher, student

    @property
    def weights(self) -> Path:
        """The file of the trained network, after the last epoch: the one that was tested."""
        return check_file(require_file(self.folder / "student.safetensors"))

    @property
    def last_weights(self) -> Path:
        """The file of the student's own weights, in a run that was tested by their average."""
        return check_file(require_file(self.folder / "student_last.safetensors"))

    @property
    def loss_weights(self) -> Path:
        """The file of the losses' own parameters after the last epoch, such as AFD's."""
        return check_file(require_file(self.folder / "losses.safetensors"))


def check_types(path: Path, content: object, types: Mapping[str, type]) -> None:
    """Raises InputError if a part of a dictionary in a file has another type than it should."""
    if not isinstance(content, dict):
        raise damaged(path, f"it has a {type(content).__name__} in place of a dictionary")
    for name, kind in types.items():
        if name in content and not isinstance(content[name], kind):
            raise damaged(path, f"{name} is a {type(content[name]).__name__}")


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def write_history(folder: Path, rows: list[dict], arrays: Mapping[str, np.ndarray]) -> None:
    """Write metrics.csv and history.npz, every epoch once; without any, delete them."""
    import pandas as pd

    if not rows:
        for name in ("metrics.csv", "history.npz"):
            (folder / name).unlink(missing_ok=True)
    else:
        table = pd.DataFrame(rows).to_csv(index=False, lineterminator="\n")
        write_atomically(folder / "metrics.csv", table)
    if arrays:
        data = io.BytesIO()
        np.savez_compressed(data, **arrays)
        write_atomically(folder / "history.npz", data.getvalue())
