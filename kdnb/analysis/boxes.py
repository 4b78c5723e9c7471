"""Whether networks look at the person who acts: the energy of maps inside Stanford40's boxes."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from kdnb.analysis.networks import Networks
from kdnb.analysis.survey import Survey, blocks_with_places, concatenate
from kdnb.losses.afd import energy
from kdnb.progress import with_progress


class BoxEnergy(NamedTuple):
    """Share of each map's energy inside the box around the person, for n test images.

    Attributes:
        excess: {role: (n, blocks)}, the share minus the mean share of other images' maps in the
            same box. That corrects for boxes that are large or central.
        depth: {role: (blocks,)}, relative depth from 0, the first block, to 1, the last.
        correct: {role: (n,)}, whether the prediction is correct; without a teacher of other
            classes.
    """

    excess: dict[str, np.ndarray]
    depth: dict[str, np.ndarray]
    correct: dict[str, np.ndarray]


@torch.no_grad()
def box_energy(
    networks: Networks, survey: Survey, photographs, max_images: int = 1000
) -> BoxEnergy | None:
    """The energy of every network's maps inside the boxes, for blocks whose maps are large enough.

    Images whose box lies outside the centre crop that the networks see are left out.

    Args:
        photographs: the test images as a Stanford40 with boxes. For None, a data set without boxes,
            None is returned.
        max_images: of more, evenly spaced images are used.
    """
    if photographs is None:
        return None
    loader = networks.loader
    # The loader may lack some of the photographs: damaged ones can be left out.
    photograph_index = {name: i for i, name in enumerate(photographs.names)}
    n = len(loader.images.files)
    chosen = np.linspace(0, n - 1, min(max_images, n)).round().astype(int)
    # In random order: the maps of a batch are compared, and neighbours are of one class.
    chosen = np.random.default_rng(0).permutation(chosen)
    network_blocks = {role: networks.blocks[role != "teacher"] for role in networks.models}
    indices = {role: blocks_with_places(blocks) for role, blocks in network_blocks.items()}
    sizes = loader.images.images.sizes.flip(1).tile(2)  # n 4: width, height, width, height
    crops = (loader.plan(0)["box"] / sizes).numpy()
    n_batches = -(-len(chosen) // loader.batch_size)
    batches = np.array_split(chosen, n_batches)  # of nearly equal sizes: none is a single image
    parts = []
    for index in with_progress(batches, len(batches), "boxes"):
        files = [loader.images.files[i] for i in index]
        boxes = np.stack(
            [box_fractions(*photographs[photograph_index[file.name]]) for file in files]
        )
        boxes = box_in_crop(boxes, crops[index])
        boxes = torch.from_numpy(boxes).float().to(loader.device)
        excess = {}
        for role, output in networks.outputs(loader.take(index)).items():
            feats = [output.feats[i] for i in indices[role]]
            excess[role] = excess_energy(feats, boxes)
        parts.append({"boxes": boxes, "excess": excess})
    arrays = concatenate(parts)
    boxes = arrays["boxes"]
    is_visible = (boxes[:, 2:] > boxes[:, :2]).all(1)
    predictions = survey.predictions
    return BoxEnergy(
        {role: values[is_visible] for role, values in arrays["excess"].items()},
        {
            role: np.array(indices[role]) / max(len(blocks) - 1, 1)
            for role, blocks in network_blocks.items()
        },
        {role: predictions.correct(role)[chosen][is_visible] for role in predictions.logits},
    )


def box_fractions(image, target) -> np.ndarray:
    """A box (left, top, right, bottom) in pixels, as fractions of its photograph.

    target: (label, box), as Stanford40 returns it.
    """
    return np.asarray(target[1]) / np.array([image.width, image.height] * 2)


def box_in_crop(boxes: np.ndarray, crops: np.ndarray) -> np.ndarray:
    """Boxes (n, 4) as fractions of crops (n, 4) of their photographs, clipped to these.

    boxes: left, top, right, bottom; crops: left, top, width, height; as fractions of photographs.
    """
    corner = np.tile(crops[:, :2], 2)
    size = np.tile(crops[:, 2:], 2)
    return ((boxes - corner) / size).clip(0, 1)


def excess_energy(feats: Sequence[Tensor], boxes: Tensor) -> Tensor:
    """The share of each map's energy in its box, minus the mean share of the others' maps in it.

    Args:
        feats: maps (batch, channels, height, width) of several blocks.
        boxes: (batch, 4), left, top, right, bottom, as fractions of the map. A cell counts by the
            part of it that lies inside.

    Returns (batch, blocks).
    """
    excess = []
    for feat in feats:
        e = energy(feat)  # b h w
        share = e / e.sum((1, 2), keepdim=True).clamp(min=1e-12)
        mean_of_others = (share.sum(0) - share) / max(len(share) - 1, 1)
        rows = cell_cover(boxes[:, 1], boxes[:, 3], e.shape[1])[:, :, None]  # b h 1
        columns = cell_cover(boxes[:, 0], boxes[:, 2], e.shape[2])[:, None]  # b 1 w
        excess.append(((share - mean_of_others) * rows * columns).sum((1, 2)))
    return torch.stack(excess, 1)


def cell_cover(low: Tensor, high: Tensor, cells: int) -> Tensor:
    """The part of each of some equal cells of [0, 1] that lies in [low, high]: (batch, cells)."""
    starts = torch.arange(cells, device=low.device) / cells
    overlap = torch.minimum(high[:, None], starts + 1 / cells) - torch.maximum(low[:, None], starts)
    return overlap.clamp(min=0) * cells
