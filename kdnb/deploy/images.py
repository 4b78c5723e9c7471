"""The images that a deployed network is checked and calibrated on: those of its training run."""

from dataclasses import replace
from pathlib import Path

from torchvision.transforms.v2.functional import resize

from kdnb.data import DATASETS, Images, load_data
from kdnb.data.loader import Loader
from kdnb.deploy.classifier import Classifier
from kdnb.errors import InputError, choose
from kdnb.runs.run import Run
from kdnb.training.setup import load_images

CALIBRATION_IMAGES = 256  # taken evenly from all classes
BATCH_SIZE = 32


def run_loaders(
    weights: Path, classifier: Classifier, data_root: str = ""
) -> tuple[Loader, Loader]:
    """Loaders of some training images and of all test images, on the CPU, without augmentation.

    Args:
        weights: the weights file of the classifier. In a run's folder, the images are the run's;
            otherwise, they are those of the data set that the file names.
        classifier: whose classes and preprocessing the images get.
        data_root: folder of the data; "": as the run has it.

    Raises InputError for missing data, and for data of other classes.
    """
    if weights.name == "student.safetensors" and (weights.parent / "config.json").is_file():
        places = {"data_root": data_root} if data_root else {}
        train, test = load_images(Run.open(weights.parent, **places))
    else:
        dataset = choose("data set", str(classifier.metadata.get("dataset")), DATASETS)
        size = DATASETS[dataset].preset.stored(classifier.preprocessing.image_size)
        train, test = load_data(dataset, data_root, size)
    if list(train.classes) != classifier.classes:
        raise InputError(f"{weights} knows other classes than the images: give --data-root")
    calibration = train.limit(min(CALIBRATION_IMAGES, len(train)))
    return plain_loader(calibration, classifier), plain_loader(test, classifier)


def plain_loader(images: Images, classifier: Classifier, device: str = "cpu") -> Loader:
    """Batches of images in order, prepared as a classifier expects them."""
    mean, std, size, crop = classifier.preprocessing
    if images.aspect is None and images.size != size:
        pixels = resize(images.images, [size, size], antialias=True)
        images = replace(images, images=pixels)
    images = replace(images, mean=mean, std=std)
    return Loader(images, BATCH_SIZE, size, device=device, test_crop=crop)
