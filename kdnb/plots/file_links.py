"""Links to files of runs and figures, which JupyterLab opens if it was started above them."""

import os
from pathlib import Path
from urllib.parse import quote

OPENED = {".csv", ".ipynb", ".json", ".md", ".png"}  # suffixes of files that JupyterLab shows


class FileLinks:
    """Folders, each with links to those of its files that JupyterLab shows; elsewhere, the paths.

    The links are relative to the current folder, which is the notebook's in JupyterLab.
    """

    def __init__(self, *folders: str | Path):
        self.folders = [Path(folder) for folder in folders]

    def __repr__(self) -> str:
        return "\n".join(map(str, self.folders))

    def _repr_markdown_(self) -> str:
        lines = []
        for folder in self.folders:
            files = sorted(path for path in folder.glob("*") if path.suffix in OPENED)
            links = (f"[{path.name}]({quote(os.path.relpath(path))})" for path in files)
            lines.append(f"- `{folder}`: {', '.join(links)}".rstrip(": "))
        return "\n".join(lines)
