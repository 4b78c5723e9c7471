"""Networks in formats that run without kdnb: ONNX, torch.export's pt2, and TorchScript.

The batch size is free. The metadata of the weights file are part of the exported file, as JSON
under the name "kdnb"; their entry `input` says what the file expects: "normalised", float32 images
as `Classifier.transform` returns them, or "uint8", pixels 0..255 that it normalises itself.
"""

import io
import json
import logging
import warnings
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from kdnb.deploy.classifier import Classifier
from kdnb.errors import InputError, choose
from kdnb.runs.files import write_atomically

FORMATS = {"onnx": ".onnx", "pt2": ".pt2", "torchscript": ".pt"}  # and the suffixes of the files
PACKAGES = ("onnx", "onnxscript", "onnxruntime")  # the extra "deploy"
INPUTS = ("normalised", "uint8")
METADATA_NAME = "kdnb"


class FromPixels(nn.Module):
    """A classifier of uint8 pixels 0..255 (batch, 3, size, size), which it normalises itself."""

    def __init__(self, classifier: Classifier):
        super().__init__()
        self.classifier = classifier
        mean, std = torch.tensor(classifier.preprocessing[:2]).view(2, 1, 3, 1, 1)
        self.register_buffer("scale", 1 / (255 * std))
        self.register_buffer("shift", -mean / std)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(images.float() * self.scale + self.shift)


class Exported(NamedTuple):
    """An exported network that is ready to run on the CPU.

    Attributes:
        path: its file.
        run: function from a batch of images, as `metadata["input"]` says, to logits.
        metadata: of the weights file, and `input`.
    """

    path: Path
    run: Callable[[Tensor], Tensor]
    metadata: dict

    def __call__(self, images: Tensor) -> Tensor:
        """Returns the logits (batch, classes) of normalised images (batch, 3, size, size)."""
        return self.run(self.as_input(images))

    def as_input(self, images: Tensor) -> Tensor:
        """Returns normalised images as the file expects them."""
        if self.metadata["input"] == "normalised":
            return images.contiguous()
        mean, std = torch.tensor([self.metadata["mean"], self.metadata["std"]])[..., None, None]
        return ((images * std + mean) * 255).round().clamp(0, 255).byte().contiguous()


def export(
    classifier: Classifier, path: str | Path, to: str = "onnx", input: str = "normalised"
) -> Exported:
    """Writes a classifier to a file in another format, and opens the file.

    Args:
        classifier: of `kdnb.load`. It is put into eval mode, on the CPU.
        path: the file.
        to: the format, one of FORMATS.
        input: "normalised", or "uint8" to make the normalisation a part of the graph.

    Raises InputError for an unknown format, a missing package, a network that cannot be exported,
    and a file that cannot be written. Then nothing is written.
    """
    choose("format", to, FORMATS)
    choose("input", input, INPUTS)
    if to == "onnx":
        require_packages()
    classifier = classifier.eval().cpu()
    module = FromPixels(classifier).eval() if input == "uint8" else classifier
    size = classifier.preprocessing.image_size
    example = torch.zeros(2, 3, size, size, dtype=torch.uint8 if input == "uint8" else None)
    metadata = json.dumps(classifier.metadata | {"input": input})
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # TorchScript is deprecated; people still need it
            data = {"onnx": to_onnx, "pt2": to_pt2, "torchscript": to_torchscript}[to](
                module, example, metadata
            )
    except Exception as error:  # the exporters raise nearly any exception
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        name = classifier.metadata.get("network", type(classifier.network).__name__)
        raise InputError(f"{name} cannot be exported to {to}: {reason}") from error
    write_atomically(Path(path), data)
    return open_exported(path)


def require_packages() -> None:
    """Raises InputError if a package of the extra `deploy` is missing."""
    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        raise InputError(f'{", ".join(missing)} is not installed: pip install "kdnb[deploy]"')


def exported_program(module: nn.Module, example: Tensor) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch", min=1)
    return torch.export.export(module, (example,), dynamic_shapes=({0: batch},))


def to_onnx(module: nn.Module, example: Tensor, metadata: str) -> bytes:
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    program = torch.onnx.export(
        exported_program(module, example),
        (example,),
        input_names=["images"],
        output_names=["logits"],
        dynamo=True,
        verbose=False,
    )
    proto = program.model_proto
    entry = proto.metadata_props.add()
    entry.key, entry.value = METADATA_NAME, metadata
    return proto.SerializeToString()


def to_pt2(module: nn.Module, example: Tensor, metadata: str) -> bytes:
    data = io.BytesIO()
    torch.export.save(
        exported_program(module, example), data, extra_files={METADATA_NAME: metadata}
    )
    return data.getvalue()


def to_torchscript(module: nn.Module, example: Tensor, metadata: str) -> bytes:
    data = io.BytesIO()
    torch.jit.save(torch.jit.trace(module, example), data, {METADATA_NAME: metadata})
    return data.getvalue()


def open_exported(path: str | Path, threads: int = 0) -> Exported:
    """Opens an exported file on the CPU; the suffix says its format.

    threads: of ONNX Runtime; 0: its default. torch.set_num_threads sets those of the others.
    """
    path = Path(path)
    extra = {METADATA_NAME: ""}
    if path.suffix == ".onnx":
        return open_onnx(path, threads)
    if path.suffix == ".pt2":
        run = torch.export.load(path, extra_files=extra).module()
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            run = torch.jit.load(path, _extra_files=extra)
    return Exported(path, torch.no_grad()(run), json.loads(extra[METADATA_NAME]))


def open_onnx(path: Path, threads: int) -> Exported:
    require_packages()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> Tensor:
        (logits,) = session.run(None, {"images": images.numpy()})
        return torch.from_numpy(logits)

    metadata = session.get_modelmeta().custom_metadata_map
    return Exported(path, run, json.loads(metadata[METADATA_NAME]))


class Check(NamedTuple):
    """An exported network against the same network in PyTorch.

    Attributes:
        images: number of images.
        agreement: share of the images with the same prediction, in percent.
        difference: the largest absolute difference of a logit.
        top1: accuracy of the exported network in percent.
        eager_top1: accuracy in PyTorch in percent.
    """

    images: int
    agreement: float
    difference: float
    top1: float
    eager_top1: float


@torch.no_grad()
def check_exported(
    exported: Exported, classifier: Classifier, batches: Iterable[tuple[Tensor, Tensor]]
) -> Check:
    """Compares an exported network with the original on normalised images and their labels.

    batches: the first two elements of each are images (batch, 3, size, size) and labels (batch,).
    """
    images, same, difference, correct, eager_correct = 0, 0, 0.0, 0, 0
    for pixels, labels, *_ in batches:
        expected, logits = classifier(pixels), exported(pixels)
        images += len(labels)
        same += int((expected.argmax(1) == logits.argmax(1)).sum())
        difference = max(difference, float((expected - logits).abs().max()))
        correct += int((logits.argmax(1) == labels).sum())
        eager_correct += int((expected.argmax(1) == labels).sum())
    share = 100 / images
    return Check(images, share * same, difference, share * correct, share * eager_correct)
