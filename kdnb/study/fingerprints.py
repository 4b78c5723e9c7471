"""What the tasks of a study share, and the check that a worker has the same code and folders."""

import hashlib
import platform
import uuid
from pathlib import Path
from typing import NamedTuple

from kdnb.data import DATASETS
from kdnb.paths import project_root
from kdnb.runs.files import write_atomically
from kdnb.runs.plugins import LOADED, load_plugins

NOTEBOOK = "train.ipynb"  # it trains one run
MARKER = ".study"  # a file in the folder of runs whose text is in no other such folder


class Study(NamedTuple):
    """What the tasks of one study share."""

    name: str  # of the Dask event that stops it, and of the topic for messages of its tasks
    per_gpu: int  # runs side by side on a GPU
    runs: Path  # folder of the runs
    data: dict[str, str]  # {data set: its folder}
    expected: dict[str, str]  # the fingerprints where the study was planned
    plugins: str = ""  # as in `Run.plugins`

    @classmethod
    def create(cls, per_gpu: int, runs: Path, data: dict[str, str], plugins: str = "") -> "Study":
        """A new study; its folder of runs gets a file by which workers recognise it."""
        study = cls(f"kdnb-{uuid.uuid4().hex[:8]}", per_gpu, runs, data, {}, plugins)
        marker = runs / MARKER
        if not marker.is_file():
            write_atomically(marker, study.name)
        return study._replace(expected=study.fingerprints())

    def fingerprints(self) -> dict[str, str]:
        """{subject: what has to be equal on all machines}; "" for what is missing here.

        Raises PluginError for a plug-in that cannot be imported here.
        """
        names = load_plugins(self.plugins)
        marker = self.runs / MARKER
        values = {
            "kdnb's code": code_hash(),
            f"the folder {self.runs}": marker.read_text() if marker.is_file() else "",
        }
        values |= {f"the plug-in {name}": LOADED[name] for name in names.split(",") if name}
        for name, root in self.data.items():
            values[f"the folder {root}"] = "there" if Path(root).is_dir() else ""
            values[f"the data of {name} in {root}"] = DATASETS[name].digest(Path(root))
        return values

    def mismatch(self) -> str:
        """The first difference to where the study was planned, as a sentence; "" for none."""
        values = self.fingerprints()
        for subject, expected in self.expected.items():
            if expected and values.get(subject) != expected:
                value = values.get(subject) or "not there"
                return f"{subject} is {value} on {platform.node()}, and {expected} here"
        return ""


def code_hash() -> str:
    """The first 12 hex digits of the SHA-256 of kdnb's modules and of the notebook of a run."""
    files = sorted(Path(__file__).parents[1].rglob("*.py"))
    files.append(project_root() / "notebooks" / NOTEBOOK)
    code = b"".join(path.read_bytes() for path in files)
    return hashlib.sha256(code).hexdigest()[:12]
