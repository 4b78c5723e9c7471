"""What distilling is for: teacher, baseline and student as they would be used, for deploy.ipynb."""

import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from kdnb.analysis.measure import time_alternately
from kdnb.data import Images
from kdnb.deploy import Classifier, export, load
from kdnb.deploy.formats import Exported, check_exported, open_exported
from kdnb.deploy.images import plain_loader, run_loaders
from kdnb.deploy.photographs import list_photographs, read_photographs
from kdnb.deploy.quantisation import quantise
from kdnb.device import pick_device, set_threads
from kdnb.errors import InputError
from kdnb.models import Preprocessing, class_count, parameter_count
from kdnb.runs.run import Run
from kdnb.training.teacher import load_teacher
from kdnb.training.teacher_images import teacher_images
from kdnb.training.train import train

BATCHES = (1, 32)  # images in the batches that are timed
MOST_EXAMPLES = 8  # images of one figure
SAME, OTHER = "float32", "int8"


class Deployed(NamedTuple):
    """The networks of a distillation as classifiers, and images for them.

    Attributes:
        classifiers: {teacher, baseline, distilled: network}, on the CPU.
        calibration: some training images.
        test: the test images.
    """

    classifiers: dict[str, Classifier]
    calibration: Images
    test: Images


def load_deployed(run: Run) -> Deployed:
    """The networks of a run with a teacher; the run and its baseline are trained if necessary.

    Raises InputError for a run without a teacher, and for one without weights.
    """
    if len(run.teachers) != 1:
        count = "several teachers" if run.teacher else "no teacher"
        raise InputError(f"{run.name} has {count}: choose a run with one")
    run, baseline = train(run), train(run.baseline)
    set_threads(run.threads)
    distilled = load(run.weights)
    teacher = load_teacher(run)
    classes = teacher.classes
    if not classes:
        is_same = teacher.same_classes(tuple(distilled.classes))[0]
        count = class_count(teacher.model)
        classes = distilled.classes if is_same else [str(label) for label in range(count)]
    calibration, test = run_loaders(run.weights, distilled, run.data_root)
    seen = teacher_images(run, test.images)
    preprocessing = Preprocessing(
        seen.mean, seen.std, seen.image_size, distilled.preprocessing.crop
    )
    about = {"network": run.teacher} | preprocessing._asdict() | {"classes": classes}
    classifiers = {
        "teacher": Classifier(teacher.model, classes, preprocessing, about).eval(),
        "baseline": load(baseline.weights),
        "distilled": distilled,
    }
    return Deployed(classifiers, calibration.images, test.images)


class Examples(NamedTuple):
    """Images, and what each network says of them.

    Attributes:
        names: (n,), file names, or the true classes of test images.
        pixels: n arrays (size, size, 3), uint8, as the students see them.
        predictions: a row per image and a column per network: "cat (98 %)".
    """

    names: list[str]
    pixels: list[np.ndarray]
    predictions: pd.DataFrame


def examples(deployed: Deployed, photographs: str = "") -> Examples:
    """The most probable class of some images by each network.

    photographs: an image file or a folder of images; "": the first test image of some classes.
    Files that cannot be decoded are left out, with a printed line.
    """
    classifiers = deployed.classifiers
    if photographs:
        read = read_photographs(list_photographs([photographs]), skip_damaged=True)
        names = [path.name for path in read]
        images = {
            role: torch.stack([classifier.transform(image) for image in read.values()])
            for role, classifier in classifiers.items()
        }
    else:
        labels, first = np.unique(deployed.test.labels, return_index=True)
        shown = np.linspace(0, len(labels) - 1, min(MOST_EXAMPLES, len(labels))).round().astype(int)
        names = [deployed.test.classes[label] for label in labels[shown]]
        chosen = deployed.test.take(first[shown].tolist())
        images = {
            role: next(plain_loader(chosen, classifier).epoch()).images
            for role, classifier in classifiers.items()
        }
    columns = {}
    for role, classifier in classifiers.items():
        best = classifier.probabilities(images[role]).max(1)
        columns[role] = [
            f"{classifier.classes[label]} ({100 * p:.0f} %)"
            for p, label in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]
    mean, std = torch.tensor(classifiers["distilled"].preprocessing[:2])[..., None, None]
    pixels = (
        ((images["distilled"] * std + mean) * 255).round().clamp(0, 255).byte().permute(0, 2, 3, 1)
    )
    return Examples(names, list(pixels.numpy()), pd.DataFrame(columns, index=names))


def cost_table(deployed: Deployed, device: str = "auto") -> pd.DataFrame:
    """Accuracy, size and latency of each network, in float32 and in int8: two rows each.

    Columns: network, precision; top-1 (%), on the test images, NaN for a network of other classes;
    parameters; MACs (M), multiplications of one image, in millions; file (MB), as ONNX; and
    milliseconds of a batch of 1 and 32 images, on one CPU thread by ONNX Runtime and, in float32,
    on the device by PyTorch.
    """
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        files = {}
        for role, classifier in deployed.classifiers.items():
            path = Path(folder, f"{role}.onnx")
            exported = export(classifier, path)
            batches = plain_loader(deployed.calibration, classifier).epoch()
            int8 = quantise(exported, path.with_suffix(".int8.onnx"), batches)
            files |= {(role, SAME): exported, (role, OTHER): int8}
        sessions = {key: open_exported(file.path, threads=1) for key, file in files.items()}
        one_thread = latencies(sessions, deployed.classifiers, "cpu")
        on_device = device_latencies(deployed.classifiers, device)
        for (role, precision), exported in files.items():
            classifier = deployed.classifiers[role]
            rows.append(
                {
                    "network": role,
                    "precision": precision,
                    "top-1 (%)": accuracy(exported, classifier, deployed.test),
                    "parameters": parameter_count(classifier),
                    "MACs (M)": macs(classifier) / 1e6,
                    "file (MB)": exported.path.stat().st_size / 1e6,
                }
                | {
                    f"ms, batch {n}, 1 thread": 1000 * one_thread[role, precision, n]
                    for n in BATCHES
                }
                | {
                    f"ms, batch {n}, {pick_device(device)}": 1000
                    * on_device.get((role, precision, n), np.nan)
                    for n in BATCHES
                }
            )
    return pd.DataFrame(rows)


def accuracy(exported: Exported, classifier: Classifier, test: Images) -> float:
    """The top-1 accuracy in percent; NaN if the network knows other classes."""
    if list(test.classes) != list(classifier.classes):
        return float("nan")
    return check_exported(exported, classifier, plain_loader(test, classifier).epoch()).top1


def example_images(classifier: Classifier, n: int, device="cpu") -> Tensor:
    size = classifier.preprocessing.image_size
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(0)).to(device)


def latencies(
    networks: Mapping[tuple, Callable], classifiers: Mapping[str, Classifier], device: str
) -> dict:
    """The median seconds of a call: {(role, precision, batch size): seconds}.

    networks: {(role, precision): network}, each called with images of its classifier's size.
    """
    seconds = {}
    for n in BATCHES:
        calls = {
            key: partial(network, example_images(classifiers[key[0]], n, device))
            for key, network in networks.items()
        }
        measured = time_alternately(calls, torch.device(device))
        seconds |= {(*key, n): value for key, value in measured.items()}
    return seconds


@torch.inference_mode()
def device_latencies(classifiers: Mapping[str, Classifier], device: str) -> dict:
    """`latencies` of PyTorch in float32 on a device; the classifiers are left on the CPU."""
    place = str(pick_device(device))
    networks = {(role, SAME): classifier.to(place) for role, classifier in classifiers.items()}
    try:
        return latencies(networks, classifiers, place)
    finally:
        for classifier in classifiers.values():
            classifier.cpu()


@torch.no_grad()
def macs(classifier: Classifier) -> int:
    """Multiply-accumulate operations of one image: those of convolutions and matrix products."""
    with FlopCounterMode(display=False) as counter:
        classifier(example_images(classifier, 1))
    return counter.get_total_flops() // 2
