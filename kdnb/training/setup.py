"""What a run starts from: its images, batches, networks and teacher."""

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import nn

from kdnb.data import Images, load_data
from kdnb.data.loader import Loader
from kdnb.data.stanford40 import Stanford40
from kdnb.device import PRECISIONS, fits, pick_device
from kdnb.errors import InputError
from kdnb.losses import LOSSES
from kdnb.models import create_model
from kdnb.paths import data_folder
from kdnb.runs.run import Run
from kdnb.training.distiller import Distiller
from kdnb.training.initial_weights import load_initial_weights
from kdnb.training.teacher import Teacher, load_teacher
from kdnb.training.teacher_cache import obstacle
from kdnb.training.teacher_images import TeacherImages, teacher_image_size, teacher_images

TEST_PIXELS = 2**21, 2**19  # of a test batch on an accelerator: the first that fits in its memory
# All maps that a network returns in float32, per pixel of an image, with room to compute them. The
# most of CIFAR's networks is 2,689 bytes, of resnet32x4.
MAP_BYTES = 4096


class TrainingSetup(NamedTuple):
    """A run before its first step: initialised networks, and the batches of both splits."""

    distiller: Distiller
    train: Loader
    test: Loader
    teacher: Teacher | None = None
    teacher_images: TeacherImages | None = None
    same_classes_assumed: bool = (
        False  # the teacher's weights name no classes, and there are as many
    )
    student_head: str = ""  # where the classifier of student_weights comes from, as a sentence


def load_splits(
    dataset: str,
    data_root: str,
    size: int,
    skip_damaged: bool,
    validation: float,
    only_labelled: bool,
    train_limit: int,
    test_limit: int,
) -> tuple[Images, Images]:
    """The training and test images of runs with these parameters; see `load_images`."""
    train, test = load_data(dataset, data_root, size, skip_damaged)
    if validation:
        train, test = train.split(validation)
    if only_labelled:
        train = train.labelled()
    return train.limit(train_limit), test.limit(test_limit, "test")


def load_images(run: Run, load: Callable = load_splits) -> tuple[Images, Images]:
    """The images that a run is trained on, and those that it is tested on.

    Images without a label are left out if all of its losses need labels, as a baseline's do.
    Photographs are stored for the larger of both networks' images.

    load: `load_splits`, or a cache of it. Raises InputError if they are missing.
    """
    preset = run.preset
    is_resized = bool(preset.stored_size)
    size = preset.stored(max(run.image_size, teacher_image_size(run) if is_resized else 0))
    only_labelled = all(LOSSES[term.loss].needs_labels for term in run.terms)
    fixed = run.dataset, run.data_root, size, run.skip_damaged, run.validation, only_labelled
    return load(*fixed, run.train_limit, run.test_limit)


def loaders(
    run: Run, images: tuple[Images, Images], teacher_sees: TeacherImages | None = None
) -> tuple[Loader, Loader]:
    """The augmented training batches of a run, and its test batches, on its device.

    teacher_sees: how the training batches show their images to a teacher; None: as to the student.
    """
    train_images, test_images = images
    device = pick_device(run.device)
    common = {"device": device, "dtype": PRECISIONS[run.precision]}
    common["on_device"] = holds_data(run, device, *images)
    preset = run.preset
    train = Loader(
        train_images,
        batch_size(run, len(train_images)),
        run.image_size,
        train=True,
        seed=run.seed,
        padding=preset.padding,
        flip=preset.flip,
        augment=run.augment,
        mix=run.mix,
        label_smoothing=run.label_smoothing,
        views=run.view_count,
        **common,
        **(teacher_sees.loader_options if teacher_sees else {}),
    )
    return train, Loader(test_images, evaluation_batch_size(run, device), run.image_size, **common)


def evaluation_batch_size(run: Run, device: torch.device) -> int:
    """Images in a test batch: on an accelerator many, since it takes long to launch a kernel."""
    size = max(run.batch_size, 250)
    if device.type == "cpu":
        return size
    pixels = next(n for n in TEST_PIXELS if n == TEST_PIXELS[-1] or fits(n * MAP_BYTES, device))
    return max(size, pixels // run.image_size**2)


def batch_size(run: Run, images: int) -> int:
    """The batch size of a run on so many training images.

    A preset's gives way to the largest power of two that does not exceed the number of images. A
    batch size that was asked for does not: the Loader refuses it.
    """
    if run.batch_size <= images or run.batch_size != run.defaults["batch_size"]:
        return run.batch_size
    return max(2, 1 << (images.bit_length() - 1))


def holds_data(run: Run, device: torch.device, *images: Images) -> bool:
    """Whether the device holds all of these images; on a CPU, a memory map stays one."""
    if device.type == "cpu":
        return True
    if run.data_on_device != "auto":
        return run.data_on_device == "yes"
    return fits(sum(split.images.nbytes for split in images), device)


def photographs(run: Run, split: str = "train") -> Stanford40 | None:
    """The photographs of a run as they are on disk, with boxes around the people.

    None for a data set without boxes, and if the annotations are missing. With a validation split,
    the run is tested on
    training images: then `split` is "train" in any case.
    """
    if run.dataset != "stanford40":
        return None
    split = "train" if run.validation else split
    dataset = Stanford40(data_folder(run.data_root), split)
    if not (dataset.folder / "XMLAnnotations").is_dir():
        return None
    return Stanford40(dataset.root, split, boxes=True)


def build_setup(
    run: Run, images: tuple[Images, Images] | None = None, teacher: Teacher | None = None
) -> TrainingSetup:
    """Build what a run starts from, on its device.

    Initial weights follow from the seed alone. images: if they are loaded already. teacher: in
    place of the run's own, which has to be trained. Raises InputError for what is missing or does
    not fit together.
    """
    images = images or load_images(run)
    teacher_sees = teacher_images(run, images[0]) if run.teacher else None
    train, test = loaders(run, images, teacher_sees)
    classes = images[0].classes
    if teacher is None and run.teacher:
        teacher = load_teacher(run)
    same_classes, is_assumed = teacher.same_classes(classes) if teacher else (None, False)
    # Losses look at the shapes alone; batch norm needs two images.
    example = test.take([0, 0]).images.float()
    teacher_example = None
    if teacher_sees and teacher_sees.image_size != run.image_size:
        teacher_example = example.new_zeros(2, 3, *2 * [teacher_sees.image_size])
    head = ""
    with torch.random.fork_rng([]):  # networks and losses draw their weights on the CPU
        torch.default_generator.manual_seed(run.seed)
        student = create_model(run.student, len(classes), run.image_size)
        if run.student_weights_hash:
            head = load_initial_weights(student, run, classes)
        student = student.to(train.device)
        distiller = Distiller(
            student,
            teacher.model.to(train.device) if teacher else None,
            run.terms,
            example,
            teacher_example=teacher_example,
            same_classes=same_classes,
            labels=images[0].labels,
            batch_size=train.batch_size * run.view_count,
            views=run.view_count,
            allow_partial=run.has_named_method,
        )
    check_tensors_are_separate(distiller.trainable())
    if run.teacher_cache == "on" and (reason := obstacle(distiller, train)):
        raise InputError(f"teacher_cache is on, but {reason}")
    return TrainingSetup(distiller, train, test, teacher, teacher_sees, is_assumed, head)


def check_tensors_are_separate(module: nn.Module) -> None:
    """Raises InputError for tied parameters, which a safetensors file cannot hold."""
    ranges = []  # of memory: start, end and name of each tensor
    for name, tensor in module.state_dict().items():
        if tensor.numel():
            steps = zip(tensor.shape, tensor.stride(), strict=True)
            extent = 1 + sum((length - 1) * stride for length, stride in steps)
            start = tensor.data_ptr()
            ranges.append((start, start + extent * tensor.element_size(), name))
    for (_, end, name), (start, _, other_name) in pairwise(sorted(ranges)):
        if start < end:
            raise InputError(
                f"{name} and {other_name} share memory (tied parameters), which a weights file "
                "cannot hold: give each a tensor of its own"
            )


def check(run: Run, images: tuple[Images, Images] | None = None) -> None:
    """Raises InputError for a run that cannot be trained, before its teacher is trained.

    Such as a pair of networks that its method cannot serve, or images that are too small for a
    network.
    """
    images = images or load_images(run)
    teacher_run = run.teacher_run
    teacher = None
    with torch.random.fork_rng([]):
        if teacher_run:
            size = teacher_image_size(run)
            teacher = Teacher(create_model(run.teacher, len(images[0].classes), size))
        build_setup(run, images, teacher)
    if teacher_run is None or teacher_run.done:
        return
    try:
        check(teacher_run)
    except InputError as error:
        raise InputError(
            f"its teacher cannot be trained by the preset ({error}): train it by itself "
            f"(student {teacher_run.student}, method none), then set teacher_weights to its folder"
        ) from None
