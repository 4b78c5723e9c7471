"""Augmented, normalised batches of Images, made on the device.

All random choices of an epoch are drawn before it starts, on the CPU, by a generator that is seeded
with (seed, epoch). So an epoch can be resumed at any batch, on any device, with the same images.
"""

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import KW_ONLY, dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

from kdnb.data.augment import augment
from kdnb.data.choices import Choices, views_of
from kdnb.data.crops import TEST_CROP
from kdnb.data.images import Batch, Images, concatenate
from kdnb.data.mixing import with_targets
from kdnb.data.normalise import Normalise
from kdnb.data.pixels import Pixels
from kdnb.data.ragged import Ragged
from kdnb.data.stream import stream, to_device
from kdnb.errors import InputError


@dataclass(eq=False, repr=False)
class Loader:
    """Batches of one split of a data set; `epoch` iterates over them.

    For training (`train=True`) the images are shuffled and augmented. The last batch may be
    smaller, as in the official code; a last batch of one image is left out, since batch norm cannot
    compute its variance. For testing the images come in order and are not augmented.

    Photographs (a Ragged) are cropped and resized: by random-resized crops for training, by a
    centre square for testing. Test crops that were cut on a CPU are cached for the next epoch.

    A teacher may see the same crops in another size and normalisation: then the batches have
    `teacher_images`, too. Photographs are cut anew from the stored pixels, other images and those
    that are strongly augmented are resized.

    With two views, a batch has a weakly augmented version of each image, by crop and flip, and then
    a strongly augmented one, with a crop and flip of its own.

    Args:
        images: the split.
        batch_size: images in a batch.
        size: side in pixels of the images in a batch.
        train: whether the batches are for training.
        seed: seed of all random choices.
        padding: black pixels around a training image before it is cropped at random; 0: no such
            crops. Not used for photographs.
        flip: whether training images are flipped left to right with probability 1/2.
        augment: "trivialaugment" or "randaugment", which follows crop and flip in training; "none":
            training images are neither cropped at random nor flipped; "": they are.
        mix: "mixup" or "cutmix": training images are mixed in pairs; "": they are not.
        label_smoothing: share of each label that is spread over all classes in training.
        views: number of versions of each image, 1 or 2. Of two, the second alone is strongly
            augmented, by RandAugment unless `augment` says otherwise.
        device: where the batches are made.
        on_device: whether the device holds all images of the split; on a CPU, a memory map stays
            one. If not, a thread reads the pixels of each batch and sends them to the device, two
            batches ahead. The batches are the same.
        dtype: type of the batches' pixels.
        test_crop: side of the centre square for testing, as a share of the shorter side.
        teacher_stats: mean and std of each channel that a teacher's images are normalised with;
            None: those of `images`.
        teacher_size: side in pixels of a teacher's images; 0: size.

    Raises InputError if there are fewer training images than batch_size, and if size differs from
    that of images of one size.
    """

    images: Images
    batch_size: int
    size: int
    _: KW_ONLY
    train: bool = False
    seed: int = 0
    padding: int = 0
    flip: bool = False
    augment: str = ""
    mix: str = ""
    label_smoothing: float = 0.0
    views: int = 1
    device: str | torch.device = "cpu"
    on_device: bool = True
    dtype: torch.dtype = torch.float32
    test_crop: float = TEST_CROP
    teacher_stats: tuple[Sequence[float], Sequence[float]] | None = None
    teacher_size: int = 0

    def __post_init__(self):
        images = self.images
        if self.train and len(images) < self.batch_size:
            raise InputError(
                f"batch_size {self.batch_size}: there are only {len(images)} training images"
            )
        self.has_photographs = isinstance(images.images, Ragged)
        if not self.has_photographs and self.size != images.size:
            raise InputError(
                f"image_size is {self.size}: the stored images are of {images.size} x "
                f"{images.size} pixels"
            )
        self.device = torch.device(self.device)
        self.choices = Choices(**{f.name: getattr(self, f.name) for f in fields(Choices)})
        # Whether all batches of one size are made by the same kernels, without waiting for the
        # device: the windows of photographs differ in size, and strong augmentation in its kernels.
        self.has_fixed_kernels = (
            self.on_device and not self.has_photographs and not self.choices.policy
        )
        cached_size = 0 if self.train else self.size
        self.pixels = Pixels(images.images, self.device, self.on_device, self.padding, cached_size)
        self.labels = images.labels.to(self.device)
        own_stats = images.mean, images.std
        teacher_stats = self.teacher_stats or own_stats
        self.teacher_size = self.teacher_size or self.size
        self.teacher_differs = (teacher_stats, self.teacher_size) != (own_stats, self.size)
        self.normalise = Normalise(*own_stats, self.device, self.dtype)
        self.normalise_for_teacher = Normalise(*teacher_stats, self.device, self.dtype)

    def __len__(self) -> int:
        """The number of batches in an epoch."""
        full, rest = divmod(len(self.images), self.batch_size)
        smallest = 2 if self.train else 1
        return full + (rest >= smallest)

    @property
    def full_length(self) -> int:
        """The number of rows of a full batch: one for each view of an image."""
        return self.batch_size * (self.views if self.train else 1)

    @property
    def key(self) -> tuple:
        """What the batches follow from: two loaders with equal keys have the same ones."""
        values = (getattr(self, f.name) for f in fields(self))
        return tuple(id(each) if isinstance(each, Images) else each for each in values)

    def plan(self, epoch: int) -> dict[str, Tensor]:
        """Draws all choices of an epoch; see `Choices.draw`."""
        return self.choices.draw(epoch)

    def epoch(self, epoch: int = 0, start: int = 0) -> Iterator[Batch]:
        """Yields the batches of an epoch.

        Args:
            epoch: number of the epoch. For testing all epochs are the same.
            start: the batch to start with.
        """
        with closing(self.inputs(epoch, start)) as inputs:
            yield from map(self.batch_of, inputs)

    def batch_of(self, inputs: dict[str, Tensor]) -> Batch:
        """Returns the batch of what `inputs` yields.

        A captured training step may call this for inputs of one shape.
        """
        if "images" in inputs:
            return Batch(**inputs)
        return self.finish(self.pixels.read(inputs))

    def inputs(self, epoch: int = 0, start: int = 0) -> Iterator[dict[str, Tensor]]:
        """Yields tensors on the device for each batch of an epoch, which `batch_of` makes it of.

        With `has_fixed_kernels` they are the rows of the plan, otherwise the batch's own tensors.
        Args: as of `epoch`.
        """
        plan = self.plan(epoch)
        if self.on_device and not self.has_photographs:  # at once: each copy costs a launch
            plan = to_device(plan, self.device)
        steps = range(start * self.batch_size, len(self) * self.batch_size, self.batch_size)
        parts = (
            {name: values[i : i + self.batch_size] for name, values in plan.items()} for i in steps
        )
        if self.has_fixed_kernels:
            yield from parts
        elif self.on_device:
            for part in parts:
                yield self.make(part).tensors()
        else:
            with closing(stream(self.pixels.read, parts, self.device)) as sent:
                for part in sent:
                    yield self.finish(part).tensors()

    def take(self, index) -> Batch:
        """Returns a batch of some rows of the plan of epoch 0.

        For testing these are the images at `index`; for training the plan is shuffled.
        """
        rows = torch.as_tensor(index)
        return self.make({name: values[rows] for name, values in self.plan(0).items()})

    def make(self, plan: dict[str, Tensor]) -> Batch:
        """Returns the batch of some rows of a `plan`, in the memory format channels_last."""
        return self.finish(to_device(self.pixels.read(plan), self.device))

    def finish(self, part: dict[str, Tensor]) -> Batch:
        """Returns the batch of what `Pixels.read` returns, which is on the device."""
        if not self.train or self.views == 1:
            return self.view(part)
        return concatenate([self.view(part) for part in views_of(part)])

    def view(self, part: dict[str, Tensor]) -> Batch:
        """Returns the batch of one view; part: of what `Pixels.read` returns, see `views_of`."""
        index = part["index"]
        flip = part.get("flip")
        pixels = self.pixels.crop(part, self.size)
        is_strong = "operation" in part
        if is_strong:
            if flip is not None:
                pixels, flip = torch.where(flip[:, None, None, None], pixels.flip(3), pixels), None
            pixels = augment(pixels, part["operation"], part["magnitude"])
        images = self.normalise(pixels, flip)
        teacher_images = None
        if self.teacher_differs:
            for_teacher = self.teacher_pixels(part, pixels, is_strong)
            teacher_images = self.normalise_for_teacher(for_teacher, flip)
        batch = Batch(images, self.labels[index], index, teacher_images)
        if self.train and (self.mix or self.label_smoothing):
            classes = len(self.images.classes)
            batch = with_targets(batch, classes, self.label_smoothing, self.mix, part)
        return batch

    def teacher_pixels(
        self, part: dict[str, Tensor], pixels: Tensor, is_strong: bool = False
    ) -> Tensor:
        """Returns the pixels 0..255 of the crops in the teacher's size.

        Args:
            part: of what `Pixels.read` returns.
            pixels: the student's.
            is_strong: whether these are strongly augmented; then they are resized.
        """
        if self.teacher_size == self.size:
            return pixels
        if self.has_photographs and not is_strong:
            return self.pixels.crop(part, self.teacher_size)
        size = self.teacher_size, self.teacher_size
        return F.interpolate(pixels.float(), size=size, mode="bilinear", antialias=True)
