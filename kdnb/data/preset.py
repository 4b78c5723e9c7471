"""How a data set is trained by default."""

import math
from dataclasses import dataclass, field

from kdnb.errors import InputError, choose

MIN_SIZE = 8  # pixels: the networks need at least that


def one_cycle(done: float) -> float:
    """Smith, 2018: it rises linearly from 1/25 to 1 over 30 % of the epochs, then falls to 0."""
    if done < 0.3:
        return (1 + 24 * done / 0.3) / 25
    return (1 - done) / 0.7


def cosine(done: float) -> float:
    """Loshchilov and Hutter, ICLR 2017, without restarts: half a cosine, from 1 to 0."""
    return (1 + math.cos(math.pi * done)) / 2


# The learning rate as a share of lr, given the share of the epochs that is done.
SCHEDULES = {"one cycle": one_cycle, "cosine": cosine}
STEPS = "steps"  # the schedule of a preset with milestones
OPTIMIZERS = ("sgd", "nesterov", "adamw")
WARMUP_START = 0.01  # share of lr with which a warm-up begins


@dataclass(frozen=True, kw_only=True)
class Preset:
    """The default training recipe of a data set; a run's own settings override it.

    Attributes:
        student: name of the student network.
        teacher: name of the teacher network.
        teacher_weights: "none": the teacher is trained here first; "imagenet": it has
            torchvision's ImageNet weights.
        student_weights: "none": a network starts from random weights; "imagenet": from
            torchvision's ImageNet weights if there are any for it.
        image_size: side in pixels of the square images that the networks get.
        stored_size: side in pixels of the images as they are stored, of photographs the shorter
            one; 0: image_size.
        fixed_size: whether the data set has no other image_size.
        padding: black pixels around a training image before it is cropped at random; 0: no such
            crops. Photographs of all sizes get random-resized crops instead.
        flip: whether training images are flipped left to right with probability 1/2.
        epochs: number of epochs.
        batch_size: images in a batch.
        lr: the highest learning rate.
        milestones: fractions of the epochs after which the learning rate is multiplied by gamma.
            Empty: the learning rate follows `schedule` instead.
        schedule: a name in SCHEDULES. It has no effect with milestones.
        gamma: what the learning rate is multiplied by at a milestone.
        optimizer: a name in OPTIMIZERS.
        momentum: momentum of SGD, or the first beta of AdamW.
        weight_decay: weight decay of the optimiser; AdamW's is decoupled.
        train_limit: number of training images that the student gets, taken evenly from all
            classes; -1: all.
        for_teacher: settings of a teacher's training that differ, such as {"epochs": 6}.
        lrs: learning rates of networks that differ from lr, {network: lr}.
        methods: mixes of methods that differ from METHODS, such as {"afd": "ce + kd:0.9 + afd:20"}.
    """

    student: str
    teacher: str
    teacher_weights: str = "none"
    student_weights: str = "none"
    image_size: int
    stored_size: int = 0
    fixed_size: bool = False
    padding: int = 0
    flip: bool = False
    epochs: int
    batch_size: int
    lr: float
    milestones: tuple[float, ...] = ()
    schedule: str = "one cycle"
    gamma: float = 0.1
    optimizer: str = "sgd"
    momentum: float = 0.9
    weight_decay: float = 5e-4
    train_limit: int = -1
    for_teacher: dict[str, float] = field(default_factory=dict)
    lrs: dict[str, float] = field(default_factory=dict)
    methods: dict[str, str] = field(default_factory=dict)

    def __post_init__(self):
        choose("schedule", self.schedule, SCHEDULES)
        choose("optimizer", self.optimizer, OPTIMIZERS)

    def defaults(self, network: str, teacher: bool) -> dict[str, float]:
        """Returns the settings of a run that it does not give itself.

        Args:
            network: name of the network that is trained.
            teacher: whether it is trained as a teacher. A teacher gets all training images.
        """
        names = ("epochs", "batch_size", "lr", "image_size", "train_limit")
        names += ("optimizer", "momentum", "weight_decay")
        settings = {name: getattr(self, name) for name in names}
        settings["lr"] = self.lrs.get(network, self.lr)
        settings["schedule"] = STEPS if self.milestones else self.schedule
        if teacher:
            settings |= {"train_limit": -1, **self.for_teacher}
        return settings

    def stored(self, image_size: int = 0) -> int:
        """Returns the (shorter) side in pixels at which images are stored for an image_size.

        Photographs are stored larger than the networks see them, always in the same proportion.

        Args:
            image_size: side in pixels of the images that the networks get; 0: the preset's.

        Raises InputError for a size that the data set does not come in.
        """
        image_size = image_size or self.image_size
        if image_size < MIN_SIZE or (self.fixed_size and image_size != self.image_size):
            allowed = self.image_size if self.fixed_size else f"at least {MIN_SIZE}"
            raise InputError(f"image_size is {image_size}: for these images it has to be {allowed}")
        return round(image_size * (self.stored_size or self.image_size) / self.image_size)

    def lr_at(
        self, epoch: float, epochs: int, lr: float, schedule: str = "", warmup_epochs: int = 0
    ) -> float:
        """Returns the learning rate at a point of the training.

        With "steps" it is lr times gamma for each milestone that has passed; each takes effect
        after a whole number of epochs, the first after one epoch at the earliest. Other schedules
        begin after the warm-up, in which the learning rate rises linearly from 1 % of lr.

        Args:
            epoch: the point: epochs that are done, with the fraction of the current one.
            epochs: number of epochs of the run.
            lr: learning rate of the run.
            schedule: "steps" or a name in SCHEDULES; "": the preset's.
            warmup_epochs: number of epochs of the warm-up.
        """
        if epoch < warmup_epochs:
            return lr * (WARMUP_START + (1 - WARMUP_START) * epoch / warmup_epochs)
        schedule = schedule or (STEPS if self.milestones else self.schedule)
        if schedule == STEPS:
            passed = sum(epoch >= max(1, int(m * epochs)) for m in self.milestones)
            return lr * self.gamma**passed
        return lr * SCHEDULES[schedule]((epoch - warmup_epochs) / (epochs - warmup_epochs))
