"""A trained network as a plain module: normalised images in, logits out."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import v2

from kdnb.deploy.metadata import PREPROCESSING_KEYS, describe_weights, find_weights
from kdnb.deploy.photographs import list_photographs, read_photographs
from kdnb.device import system_errors
from kdnb.errors import InputError
from kdnb.models import Preprocessing, class_count, load_weights, read_state_dict

BATCH_SIZE = 32


class Classifier(nn.Module):
    """A trained network, with all that is needed to use it. It can be pickled and copied.

    Attributes:
        network: the network, which returns an Output.
        classes: the names of the classes.
        preprocessing: what it expects of its images.
        metadata: what its weights file says, see `kdnb.deploy.metadata`.
    """

    def __init__(
        self,
        network: nn.Module,
        classes: Sequence[str],
        preprocessing: Preprocessing,
        metadata: Mapping[str, object] | None = None,
    ):
        super().__init__()
        self.network = network
        self.classes = list(classes)
        self.preprocessing = preprocessing
        self.metadata = dict(metadata or {})

    def forward(self, images: Tensor) -> Tensor:
        """Returns the logits (batch, classes) of normalised images (batch, 3, size, size)."""
        return self.network(images).logits

    @property
    def transform(self) -> v2.Compose:
        """From a PIL image or uint8 tensors (..., 3, height, width) to what `forward` expects.

        The shorter side is resized, the centre square cut out, and the pixels normalised.
        """
        mean, std, size, crop = self.preprocessing
        return v2.Compose(
            [
                v2.RGB(),
                v2.ToImage(),
                v2.Resize(round(size / crop), antialias=True),
                v2.CenterCrop(size),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(mean, std),
                v2.ToPureTensor(),
            ]
        )

    def predict(
        self,
        images: str | Path | Image.Image | Tensor | Sequence[str | Path | Image.Image],
        top: int = 5,
        skip_damaged: bool = False,
    ):
        """The most probable classes of images, a pandas DataFrame with a row per image and rank.

        The columns are image (its path, or its number), rank from 1, class and probability. The
        network is applied in eval mode, on its device.

        Args:
            images: paths of image files and of folders with images, PIL images, or a uint8 tensor
                (n, 3, height, width).
            top: number of classes per image.
            skip_damaged: whether files that cannot be decoded are left out, with a printed line. If
                not, they raise InputError.
        """
        import pandas as pd

        if top < 1:
            raise InputError(f"top is {top}: it must be 1 or more")
        rows = []
        for names, batch in self.batches(images, skip_damaged):
            best = self.probabilities(batch).topk(min(top, len(self.classes)))
            for name, values, labels in zip(
                names, best.values.tolist(), best.indices.tolist(), strict=True
            ):
                rows += [
                    (name, rank, self.classes[label], value)
                    for rank, (label, value) in enumerate(zip(labels, values, strict=True), 1)
                ]
        return pd.DataFrame(rows, columns=["image", "rank", "class", "probability"])

    @torch.no_grad()
    def probabilities(self, images: Tensor) -> Tensor:
        """The probabilities (batch, classes) of normalised images, in eval mode, on the CPU."""
        was_training = self.training
        device = next(self.parameters()).device
        try:
            return self.eval()(images.to(device)).float().softmax(1).cpu()
        finally:
            self.train(was_training)

    def batches(self, images, skip_damaged: bool) -> Iterator[tuple[list, Tensor]]:
        """Yields the names and the normalised pixels of a batch of images; see `predict`."""
        if isinstance(images, str | Path | Image.Image):
            images = [images]
        if not isinstance(images, Tensor) and all(isinstance(i, str | Path) for i in images):
            paths = list_photographs(images)
            for start in range(0, len(paths), BATCH_SIZE):
                read = read_photographs(paths[start : start + BATCH_SIZE], skip_damaged)
                yield [*map(str, read)], torch.stack([*map(self.transform, read.values())])
            return
        for start in range(0, len(images), BATCH_SIZE):
            batch = [self.transform(image) for image in images[start : start + BATCH_SIZE]]
            yield list(range(start, start + len(batch))), torch.stack(batch)


@system_errors()
def load(
    source: str | Path, outputs: str | Path = "", preprocessing: Preprocessing | None = None
) -> Classifier:
    """Returns the trained network of a run or a weights file, in eval mode on the CPU.

    Args:
        source: a run's folder, its name under the outputs folder, or a weights file of kdnb.
        outputs: the outputs folder; "": outputs/ in the project.
        preprocessing: in place of what the file says; needed if it says nothing and its data set is
            not one of kdnb's.

    Raises InputError if there is no such run or file, for a run that has no weights (yet), and for
    a file that does not say how to use its weights.
    """
    path = find_weights(source, outputs)
    metadata = describe_weights(path)
    if not isinstance(metadata.get("network"), str):
        read_state_dict(path)  # a file that cannot be read has a sentence of its own
        raise InputError(
            f"{path} does not name its network: it was not saved by kdnb; "
            "kdnb.load_weights(NAME, PATH) loads the weights of a network that you name"
        )
    preprocessing = preprocessing or Preprocessing.from_metadata(metadata)
    if preprocessing is None:
        raise InputError(
            f"{path} does not say how images are prepared for its network, and nothing is known of "
            f"the data set {metadata.get('dataset')!r}: give kdnb.load a kdnb.models.Preprocessing "
            f"({', '.join(PREPROCESSING_KEYS)})"
        )
    load_network = load_weights
    if "predictor" in metadata:
        # Here: the losses need the packages of the training code, which other files do not.
        from kdnb.losses.predicting import load_network
    network = load_network(metadata["network"], path)
    classes = metadata.get("classes") or [str(i) for i in range(class_count(network))]
    metadata |= preprocessing._asdict() | {"classes": classes}
    return Classifier(network, classes, preprocessing, metadata).eval()
