"""Galleries: images, the networks' spatial maps of them, and their predictions."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from kdnb.analysis.networks import Networks, seen_by
from kdnb.analysis.survey import Survey, blocks_with_places
from kdnb.data.crops import TEST_CROP
from kdnb.data.image_file import centre_crop, read_image
from kdnb.data.loader import Loader
from kdnb.data.ragged import Ragged
from kdnb.errors import InputError
from kdnb.losses.afd import energy
from kdnb.models import Block, class_count
from kdnb.paths import resolve_path

LIKELIEST = 5  # classes of an image


class Gallery(NamedTuple):
    """n images with every network's maps and predictions, as arrays: plots need no network.

    Attributes:
        names: (n,), the true classes, or the name of a photograph.
        pixels: n arrays (side, side, 3), uint8. Photographs are read from their files and cropped
            as the networks see them.
        maps: {role: one (n, h, w) per block}, channel energy with an L2 norm of 1.
        distances: {student: (n, T, S)}, as in Survey.
        likeliest: {role: n lists of (class, probability)}, the up to five likeliest classes of each
            image. A teacher of other classes has its own, if they have names.
        blocks: the teacher's and the student's.
        quantity: what the maps show.
    """

    names: list[str]
    pixels: list[np.ndarray]
    maps: dict[str, list[np.ndarray]]
    distances: dict[str, np.ndarray]
    likeliest: dict[str, list[list[tuple[str, float]]]]
    blocks: tuple[list[Block], list[Block]]
    quantity: str = "energy"

    @property
    def predicted(self) -> dict[str, list[str]]:
        """The predicted classes: {role: (n,)}."""
        return {role: [rows[0][0] for rows in images] for role, images in self.likeliest.items()}

    def extended(self, other: "Gallery") -> "Gallery":
        """The images of this gallery, then those of another of the same networks."""
        maps = {
            role: [np.concatenate(pair) for pair in zip(arrays, other.maps[role], strict=True)]
            for role, arrays in self.maps.items()
        }
        distances = {
            role: np.concatenate([array, other.distances[role]])
            for role, array in self.distances.items()
        }
        likeliest = {
            role: [*images, *other.likeliest[role]] for role, images in self.likeliest.items()
        }
        names = self.names + other.names
        pixels = self.pixels + other.pixels
        return Gallery(names, pixels, maps, distances, likeliest, self.blocks)


def make_gallery(networks: Networks, survey: Survey, index: Sequence[int]) -> Gallery | None:
    """The gallery of the test images at `index`; None for an empty index."""
    if not len(index):
        return None
    predictions = survey.predictions
    names = [predictions.classes[label] for label in predictions.labels[index]]
    return loader_gallery(networks, networks.loader, index, names)


def photograph_gallery(
    networks: Networks, photograph: str | Path | BinaryIO, name: str = ""
) -> Gallery | None:
    """The gallery of a photograph, which is cropped like test images; None for "".

    Args:
        photograph: a path or an open file.
        name: what the gallery calls it; "": its file name without the suffix.

    Raises InputError for a file that is missing or cannot be read as an image.
    """
    if not photograph:
        return None
    file = resolve_path(photograph) if isinstance(photograph, str | Path) else photograph
    loader = networks.loader
    pixels = read_image(file, round(max(loader.size, loader.teacher_size) / TEST_CROP))
    if pixels is None:
        reasons = "no such file, no image of 8 bits a channel, or one of too many pixels"
        raise InputError(f"photograph {name or str(file)!r}: {reasons}")
    images = replace(
        loader.images,
        images=Ragged.from_arrays([pixels]),
        labels=torch.zeros(1, dtype=torch.int64),
        files=[file],
    )
    loader = replace(loader, images=images, batch_size=1)
    return loader_gallery(networks, loader, [0], [name or Path(file).stem])


@torch.no_grad()
def loader_gallery(
    networks: Networks, loader: Loader, index: Sequence[int], names: list[str]
) -> Gallery:
    """The gallery of a loader's images at `index`, with these names."""
    batch = loader.take(index)
    if files := loader.images.files:
        pixels = [centre_crop(files[i]) for i in index]
    else:
        stored = loader.normalise.invert(batch.images).round().clamp(0, 255).byte()
        pixels = list(stored.permute(0, 2, 3, 1).cpu().numpy())
    outputs = networks.outputs(batch)
    maps = {
        role: [F.normalize(energy(feat), dim=(1, 2)).cpu().numpy() for feat in output.feats]
        for role, output in outputs.items()
    }
    distances = {role: values.cpu().numpy() for role, values in networks.distances(outputs).items()}
    likeliest = {
        role: likeliest_classes(outputs[role].logits, classes)
        for role, classes in networks.class_names.items()
    }
    return Gallery(names, pixels, maps, distances, likeliest, networks.blocks)


def likeliest_classes(
    logits: torch.Tensor, classes: Sequence[str]
) -> list[list[tuple[str, float]]]:
    """For each image, up to `LIKELIEST` (class, probability), the likeliest first.

    logits: (n, classes).
    """
    top = logits.float().softmax(1).topk(min(LIKELIEST, len(classes)), dim=1)
    return [
        [(classes[label], probability) for label, probability in zip(*image, strict=True)]
        for image in zip(top.indices.tolist(), top.values.tolist(), strict=True)
    ]


def grad_cam(networks: Networks, survey: Survey, index: Sequence[int]) -> Gallery | None:
    """`make_gallery` with Grad-CAM of each predicted class as maps (Selvaraju et al., ICCV 2017).

    There is one block per network: the last whose maps are large enough to show a place. A network
    whose prediction does not depend on its maps, such as a ViT with a class token, is left out, and
    so is one without a classifier. None if that leaves no network.
    """
    gallery = make_gallery(networks, survey, index)
    if gallery is None:
        return None
    batch = networks.loader.take(index)
    t, s = (blocks_with_places(blocks)[-1] for blocks in gallery.blocks)
    maps = {}
    for role, model in networks.models.items():
        # Gradients start at the images: the weights are frozen.
        output = model(seen_by(role, batch).requires_grad_())
        feat = output.feats[t if role == "teacher" else s]
        if not class_count(model):
            continue
        score = output.logits.max(1).values.sum()
        (gradient,) = torch.autograd.grad(score, feat, allow_unused=True)
        if gradient is None:
            continue
        cam = (gradient.mean((2, 3), keepdim=True) * feat).sum(1).relu()  # b h w
        maps[role] = [F.normalize(cam, dim=(1, 2)).detach().cpu().numpy()]
    if not maps:
        return None
    distances = {role: values[:, [[t]], [[s]]] for role, values in gallery.distances.items()}
    blocks = [gallery.blocks[0][t]], [gallery.blocks[1][s]]
    return gallery._replace(maps=maps, blocks=blocks, distances=distances, quantity="Grad-CAM")
