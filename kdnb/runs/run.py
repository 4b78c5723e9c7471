"""The description of a training. Everything that tells two runs apart follows from its fields."""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property, partial
from itertools import zip_longest
from pathlib import Path

from kdnb.data import DATASETS, Preset
from kdnb.device import system_errors
from kdnb.errors import InputError
from kdnb.losses.mix import Term, applicable_terms, canonical, label, parse, views_needed
from kdnb.losses.pair_weights import pair_methods
from kdnb.paths import file_name, output_folder, run_folder
from kdnb.runs import parameters
from kdnb.runs.folder import RunFolder
from kdnb.runs.identity import Identity
from kdnb.runs.plugins import PluginError
from kdnb.runs.resolve import resolve
from kdnb.runs.weights import know_other_classes

where = partial(field, compare=False)  # a field that says where or how, not what, is trained
derived = partial(field, default="", metadata={"derived": True})  # a field that is no parameter
# Parts of a recipe that no preset has, and so no teacher that is trained first.
NOT_OF_A_PRESET = ("warmup_epochs", "label_smoothing", "clip", "ema", "augment", "mix", "views")


@dataclass(frozen=True)
class Run(Identity):
    """One training of one network. Its fields are the notebooks' parameters.

    An empty string or 0 means the default of the data set's preset. Values are resolved when a run
    is constructed, so that two spellings of the same training are equal. Fields with
    `compare=False` say where and how it is trained. Equality, the name of the folder, config.json
    and a row of the results follow from the others.

    Raises InputError for an impossible value.
    """

    dataset: str = "digits"  # digits, cifar100, torch/food101 ..., folder: your train/CLASS/*.jpg
    student: str = ""  # the network to train: wrn_16_2, resnet18 ...; "": the preset's
    student_weights: str = where(default="")  # imagenet, a file, none: random; "": the preset's
    student_head: str = ""  # new: a random classifier; "": that of student_weights, if it fits
    method: str = "afd"  # none, kd, afd, or a mix of losses: ce:0.1 + kd:0.9 + afd:200
    teacher: str = ""  # wrn_40_2, resnet34 ...; several: a,b; "": the preset's
    teacher_weights: str = where(default="")  # imagenet, pretrained, a file; none: train it first
    teacher_seed: int = 0  # of a teacher that is trained first
    teacher_epochs: int = 0  # of a teacher that is trained first; 0: the preset's
    teacher_size: int = 0  # pixels of the teacher's input; 0: image_size, or its own if it is fixed
    seed: int = 0  # of the initial weights and the batches
    epochs: int = 0  # 0: the preset's
    batch_size: int = 0  # 0: the preset's
    lr: float = 0.0  # the highest learning rate; 0: the preset's
    optimizer: str = ""  # sgd, nesterov, adamw; "": the preset's
    momentum: float = -1.0  # of sgd and nesterov, the first beta of adamw; -1: the preset's
    weight_decay: float = -1.0  # 0: none; -1: the preset's
    schedule: str = ""  # of lr: steps (the preset's), cosine, onecycle; "": the preset's
    warmup_epochs: int = 0  # in which lr rises linearly, before steps or cosine
    label_smoothing: float = 0.0  # of ce: the share of the label spread over all classes
    clip: float = 0.0  # the largest norm of the gradients; 0: no limit
    ema: float = 0.0  # decay of an average of the weights, which is tested then; 0: no average
    augment: str = ""  # trivialaugment, randaugment: after crop and flip; none: not even these
    mix: str = ""  # mixup, cutmix: training images are mixed in pairs; "": they are not
    views: int = 0  # 2: each image weakly and strongly augmented; 0: as many as the method needs
    image_size: int = 0  # height and width of the networks' input in pixels; 0: the preset's
    train_limit: int = 0  # number of training images, balanced; -1: all; 0: the preset's
    test_limit: int = 0  # number of test images, balanced; 0: all
    test_every: int = where(default=1)  # epochs from one test to the next; the last has one
    validation: float = 0.0  # share of the training images to test on instead of the test images
    skip_damaged: bool = False  # leave out photographs that cannot be decoded
    precision: str = "auto"  # float32, bfloat16, or auto: what the device multiplies fastest
    device: str = where(default="auto")  # auto, cpu, cuda, cuda:1, mps
    compile: str = where(default="auto")  # on; auto: where it saves time; off: no CUDA graph either
    threads: int = where(default=0)  # CPU threads; 0: torch's default
    log: str = where(default="")  # tensorboard, wandb, mlflow: every epoch there, too; "": none
    data_root: str = where(default="")  # folder of the data; "": $KDNB_DATA or data/
    data_on_device: str = where(default="auto")  # yes; no: send each batch; auto: yes if it fits
    teacher_cache: str = where(default="auto")  # keep its answers: on; off; auto: on a CPU
    outputs: str = where(default="")  # folder of the runs, tables and figures; "": outputs/
    plugins: str = where(default="")  # own losses, networks, data sets: a.py,b_module
    rerun: bool = where(default=False)  # train a finished run anew, and move its folder away
    teacher_weights_hash: str = derived()  # trained, imagenet, pretrained, or a SHA-256's start
    student_weights_hash: str = derived()  # "", imagenet, pretrained, or a SHA-256's start
    data_hash: str = derived()  # digest of the names, sizes and classes of photographs
    folder_override: str = derived(compare=False)  # the folder, if it does not follow from the rest

    def __post_init__(self):
        resolve(self)

    def set_fields(self, **values) -> None:
        """Set fields of this frozen dataclass, while it is described."""
        for name, value in values.items():
            object.__setattr__(self, name, value)  # as frozen dataclasses themselves do

    @classmethod
    def parameters(cls) -> dict[str, object]:
        """The names and defaults of the notebooks' parameters."""
        return {f.name: f.default for f in fields(cls) if not f.metadata}

    @classmethod
    def from_notebook(cls, namespace: Mapping) -> "Run":
        """The run that a notebook's `globals()` describe.

        Raises InputError for an unknown or impossible parameter.
        """
        return cls(**parameters.from_notebook(namespace, cls.parameters()))

    @classmethod
    @system_errors()
    def open(cls, folder: str | Path, outputs: str = "", **fields_to_set) -> "Run":
        """The run in a folder, given by its path or its name under the outputs folder.

        Neither data nor networks are read, so that any machine can open a finished run.
        fields_to_set: such as data_root or device. Raises InputError for a folder that holds no
        run.
        """
        path = run_folder(folder, outputs)
        if path is None:
            raise InputError(
                f"run {str(folder)!r}: no folder with config.json, "
                f"nor in {output_folder(outputs)}/runs"
            )
        stored, places = RunFolder(path).stored_fields({f.name for f in fields(cls)})
        if stored.get("student_weights_hash") == "":
            places["student_weights"] = "none"  # whatever the preset of today starts from
        if path.parent.name == "runs":
            outputs = str(path.parent.parent)
        values = places | stored | fields_to_set | {"outputs": outputs}
        try:
            return cls(**values, folder_override=str(path))
        except PluginError:  # it may be one that this run does not use
            with contextlib.suppress(InputError):
                return cls(**values | {"plugins": ""}, folder_override=str(path))
            raise

    @property
    def preset(self) -> Preset:
        return DATASETS[self.dataset].preset

    @property
    def terms(self) -> tuple[Term, ...]:
        return parse(self.method)

    @property
    def label(self) -> str:
        """The method's name, or its mix if it has none."""
        return label(self.method, self.methods)

    @property
    def methods(self) -> dict[str, str]:
        """The mixes of named methods where they differ from METHODS: {name: mix}.

        A mix that was published for the pair of networks comes before one of the preset.
        """
        return self.preset.methods | pair_methods(self.dataset, self.teacher, self.student)

    @property
    def teacher_knows_other_classes(self) -> bool:
        """Whether a teacher is known, before images are loaded, to have other classes or none."""
        sources = [each.split(",") for each in (self.teacher_weights, self.teacher_weights_hash)]
        pairs = zip_longest(*sources, fillvalue="")  # an older run does not say where they were
        return any(know_other_classes(self.dataset, *pair) for pair in pairs)

    @property
    def view_count(self) -> int:
        """How many versions of each training image a step has."""
        return self.views or views_needed(self.terms)

    @property
    def has_named_method(self) -> bool:
        """Whether the method has a name; then losses that the teacher cannot serve are left out."""
        return self.label != self.method

    @property
    def defaults(self) -> dict[str, object]:
        """The preset's values for this network; its own teacher is trained on all images."""
        preset = self.preset
        is_teacher = self.student == preset.teacher != preset.student and self.method == "ce"
        return preset.defaults(self.student, teacher=is_teacher)

    def summary(self):
        """The resolved parameters as a pandas DataFrame."""
        values = {name: getattr(self, name) for name in self.parameters()}
        if self.teacher_knows_other_classes:  # without what it cannot teach
            trained, _ = applicable_terms(self.terms, same_classes=False, allow_partial=True)
            values["method"] = canonical(trained)
        zero_matters = ("seed", "momentum", "weight_decay")
        values = {
            name: value
            for name, value in values.items()
            if value not in ("", 0) or name in zero_matters
        }
        return parameters.as_table("parameter", values)

    def with_changes(self, **changes) -> "Run":
        """The run with other values for some fields, in the same place."""
        other = replace(self, folder_override="", **changes)
        if not self.folder_override:
            return other
        return replace(other, folder_override=str(self.folder.parent / other.name))

    @property
    def baseline(self) -> "Run":
        """The same student trained on labels alone."""
        return self.with_changes(method="none", rerun=False)

    @property
    def short_teacher(self) -> Path | None:
        """The file of the teacher that comes with the study; None if the run needs another one."""
        asks_for_another = self.teacher_seed or self.teacher_epochs or self.validation
        if asks_for_another or self.image_size != self.preset.image_size:
            return None
        name = file_name(f"{self.teacher}-{self.dataset}.safetensors")
        return self.output_folder / "teachers" / name

    @cached_property
    def teacher_run(self) -> "Run | None":
        """The run that trains the teacher, on all images; None unless it is trained first."""
        if self.teacher_weights_hash != "trained":
            return None
        recipe = self.preset.defaults(self.teacher, teacher=True)
        size = self.teacher_size or self.image_size
        recipe |= {"epochs": self.teacher_epochs, "image_size": size, "rerun": False}
        recipe |= {name: getattr(Run, name) for name in NOT_OF_A_PRESET}
        recipe |= {"test_limit": 0}  # so that a small trial and a full run share their teacher
        random_weights = {"student_weights": "", "student_weights_hash": ""}
        return self.with_changes(
            student=self.teacher, method="none", seed=self.teacher_seed, **random_weights, **recipe
        )

    @property
    def output_folder(self) -> Path:
        return output_folder(self.outputs)

    @property
    def folder(self) -> Path:
        if self.folder_override:
            return Path(self.folder_override)
        return self.output_folder / "runs" / self.name
