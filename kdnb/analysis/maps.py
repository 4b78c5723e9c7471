"""Where the networks look: their maps of some images, of the test set or of one's own."""

from dataclasses import replace
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from kdnb.analysis.networks import Networks
from kdnb.analysis.survey import Survey
from kdnb.data.cache import centre_crop, read_image
from kdnb.data.loader import Loader
from kdnb.errors import InputError
from kdnb.losses.afd import energy
from kdnb.models import Block
from kdnb.paths import resolve_path


class Gallery(NamedTuple):
    """Some images, every network's maps of them and what it says, as arrays, so that pictures need no network."""

    names: list[str]  # of the classes of the n images
    pixels: list[
        np.ndarray
    ]  # uint8 (side, side, 3), cut as the networks saw them, of photographs from the file
    maps: dict[
        str, list[np.ndarray]
    ]  # by role, (n, h, w) per block: channel energy of length 1 (L2)
    distances: dict[str, np.ndarray]  # (n, T, S), as in Survey
    said: dict[str, list[str]]  # the classes that were predicted, by role
    blocks: tuple[list[Block], list[Block]]  # the teacher's and the student's
    quantity: str = "energy"  # of the maps

    def with_more(self, other: "Gallery") -> "Gallery":
        """Both, of the same networks, one after the other."""
        maps = {
            r: [*map(np.concatenate, zip(its, other.maps[r], strict=True))]
            for r, its in self.maps.items()
        }
        distances = {
            r: np.concatenate([its, other.distances[r]]) for r, its in self.distances.items()
        }
        said = {r: [*its, *other.said[r]] for r, its in self.said.items()}
        return Gallery(
            self.names + other.names, self.pixels + other.pixels, maps, distances, said, self.blocks
        )


def look(networks: Networks, survey: Survey, index: np.ndarray) -> Gallery | None:
    """The networks' maps of the test images at `index`; None of none."""
    if not len(index):
        return None
    told = survey.predictions
    return shown(networks, networks.loader, index, [told.classes[c] for c in told.labels[index]])


def look_at(
    networks: Networks, photograph: str | Path | BinaryIO, name: str = ""
) -> Gallery | None:
    """The networks' maps of a photograph of one's own, a path or an open file, cut as photographs are in testing.

    None for "", no photograph. Raises InputError for a file that is not there, or is no image.
    """
    if not photograph:
        return None
    file = resolve_path(photograph) if isinstance(photograph, str | Path) else photograph
    found = read_image(file, 2 * networks.loader.size)
    if found is None:
        what = "no such file, no image of 8 bits a channel, or one of too many pixels"
        raise InputError(f"photograph {name or str(file)!r}: {what}")
    pixels, aspect = torch.from_numpy(found[0])[None], torch.tensor([found[1]], dtype=torch.float32)
    one = {
        "images": pixels,
        "labels": torch.zeros(1, dtype=torch.int64),
        "aspect": aspect,
        "files": [file],
    }
    loader = Loader(
        replace(networks.loader.images, **one),
        1,
        networks.loader.size,
        device=networks.loader.device,
    )
    return shown(networks, loader, np.array([0]), [name or Path(file).stem])


@torch.no_grad()
def shown(networks: Networks, loader: Loader, index: np.ndarray, names: list[str]) -> Gallery:
    """The gallery of some images of a loader, under these names."""
    images, files, classes = loader.take(index).images, loader.images.files, loader.images.classes
    pixels = (
        ((images - loader.shift) / loader.scale)
        .round()
        .clamp(0, 255)
        .byte()
        .permute(0, 2, 3, 1)
        .cpu()
        .numpy()
    )
    outputs = {role: model(images) for role, model in networks.models.items()}
    maps = {
        role: [F.normalize(energy(h), dim=(1, 2)).cpu().numpy() for h in o.feats]
        for role, o in outputs.items()
    }
    distances = {role: values.cpu().numpy() for role, values in networks.distances(outputs).items()}
    said = {
        role: [classes[c] for c in values.argmax(1)]
        for role, values in networks.logits(outputs).items()
    }
    pixels = [centre_crop(files[i]) for i in index] if files else [*pixels]
    return Gallery(names, pixels, maps, distances, said, networks.blocks)
