"""How a run's teacher sees images: normalised, sized and cropped as in its own training."""

from typing import NamedTuple

from kdnb.data import Images
from kdnb.data.crops import TEST_CROP
from kdnb.errors import InputError
from kdnb.models import (
    Preprocessing,
    imagenet_preprocessing,
    input_size,
    read_metadata,
    timm_name,
    timm_preprocessing,
)
from kdnb.runs.run import Run
from kdnb.runs.weights import weights_file


class TeacherImages(NamedTuple):
    """The images that a teacher gets.

    Attributes:
        mean: mean of each channel, of pixels scaled to 0..1, that they are normalised with.
        std: standard deviation of each channel, likewise.
        image_size: their side in pixels.
        crop: side of the square that photographs are cropped to for testing, as a share of their
            shorter side.
        source: where mean, std and crop are from: "torchvision", "timm", "its weights file" or
            "the data set".
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    image_size: int
    crop: float
    source: str

    def __str__(self) -> str:
        mean, std = (", ".join(f"{value:.4g}" for value in each) for each in (self.mean, self.std))
        size = self.image_size
        return f"images of {size} x {size} pixels, mean ({mean}), std ({std}) (from {self.source})"

    @property
    def loader_options(self) -> dict[str, object]:
        """The arguments of a Loader whose batches have these images for the teacher."""
        return {"teacher_stats": (self.mean, self.std), "teacher_size": self.image_size}


def own_preprocessing(run: Run) -> tuple[Preprocessing | None, str]:
    """What a run's teacher was trained with, and the source; None for what the data set has.

    A file whose metadata do not say it is taken to be trained on the data set's images. A file
    without any metadata has timm's preprocessing if the teacher is one of timm's.
    """
    if run.teacher_weights_hash == "imagenet":
        return imagenet_preprocessing(run.teacher), "torchvision"
    if run.teacher_weights_hash == "pretrained":
        return timm_preprocessing(run.teacher), "timm"
    if run.teacher_weights_hash != "trained":
        metadata = read_metadata(weights_file(run.teacher_weights, "teacher_weights"))
        if found := Preprocessing.from_metadata(metadata):
            return found, "its weights file"
        if timm_name(run.teacher) and not metadata:
            return timm_preprocessing(run.teacher), "timm"
    return None, "the data set"


def teacher_image_size(run: Run) -> int:
    """The side in pixels of the images that a run's teacher gets; the run's own without a teacher.

    A network that is built for one size gets that of its weights.
    """
    if run.teacher_size or not run.teacher or run.teacher_weights_hash == "trained":
        return run.teacher_size or run.image_size
    if len(run.teachers) > 1:
        return max(map(teacher_image_size, run.teachers))  # they are equal: see `teacher_images`
    fixed = input_size(run.teacher)
    if not fixed:
        return run.image_size
    preprocessing, _ = own_preprocessing(run)
    return preprocessing.image_size if preprocessing else fixed


def teacher_images(run: Run, images: Images) -> TeacherImages:
    """The images that a run's teacher gets; images: of the data set.

    Raises InputError for several teachers that were trained on images of different sizes, crops or
    normalisations.
    """
    if len(run.teachers) > 1:
        seen = [teacher_images(each, images) for each in run.teachers]
        if len({each[:-1] for each in seen}) > 1:
            raise InputError(
                "several teachers get the same images, and these were trained on different ones: "
                + "; ".join(
                    f"{each.teacher} on {what}"
                    for each, what in zip(run.teachers, seen, strict=True)
                )
            )
        return seen[0]
    preprocessing, source = own_preprocessing(run)
    size = teacher_image_size(run)
    if preprocessing is None:
        return TeacherImages(tuple(images.mean), tuple(images.std), size, TEST_CROP, source)
    mean, std, _, crop = preprocessing
    return TeacherImages(mean, std, size, crop, source)
