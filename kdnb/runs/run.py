"""One description of a training: which run is this? Everything that tells runs apart follows from its fields."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path

from kdnb.data import DATASETS, Preset
from kdnb.device import pick_device, pick_precision
from kdnb.errors import InputError, choose
from kdnb.losses.mix import Term, applicable_terms, canonical, label, needs_teacher, parse
from kdnb.models import model_name
from kdnb.paths import data_folder, output_folder, run_folder
from kdnb.runs import folder as store
from kdnb.runs import parameters
from kdnb.runs.parameters import checked
from kdnb.runs.weights import student_source, teacher_source

FOUND = {
    "found": True
}  # metadata of fields that are no parameters: they are found out on construction
ALWAYS = (
    "dataset",
    "student",
    "method",
    "teacher",
    "teacher_id",
    "seed",
    "precision",
    "data_id",
)  # no preset has them


@dataclass(frozen=True)
class Run(store.RunFolder):
    """One training of one network. Its fields are the notebooks' parameters; "" and 0 mean the data set's preset.

    Values are resolved and made canonical on construction, so that two spellings of one training are equal. What is
    compared is what is trained; `field(compare=False)` marks where and how. Equality, the folder's name, config.json,
    the check before going on, and a row of the results follow from that. Raises InputError for a value that cannot be.
    """

    dataset: str = "digits"  # digits, cifar100, stanford40, or folder: your own train/CLASS/*.jpg
    student: str = ""  # the network that is trained: wrn_16_2, resnet18 ...; "": the preset's
    student_weights: str = field(
        default="", compare=False
    )  # what it begins with: imagenet, a file; "": from scratch
    method: str = "afd"  # none, kd, afd, or a mix of weighted losses: ce:0.1 + kd:0.9 + afd:200
    teacher: str = ""  # wrn_40_2, resnet34 ...; "": the preset's
    teacher_weights: str = field(
        default="", compare=False
    )  # imagenet, a file, none: train it first; "": the preset's
    teacher_seed: int = 0  # of a teacher that is trained first
    teacher_epochs: int = 0  # of a teacher that is trained first; 0: the preset's
    seed: int = 0  # of the initial weights and the batches
    epochs: int = 0  # 0: the preset's
    batch_size: int = 0  # 0: the preset's
    lr: float = 0.0  # the highest learning rate; 0: the preset's
    image_size: int = 0  # side in pixels of what the networks see; 0: the preset's
    train_limit: int = 0  # so many training images, of every class alike; -1: all; 0: the preset's
    validation: float = (
        0.0  # share of the training images that is tested on in place of the test images; 0: none
    )
    skip_damaged: bool = False  # leave out photographs that cannot be decoded
    precision: str = "auto"  # float32, bfloat16, or auto: what the device multiplies fastest
    device: str = field(default="auto", compare=False)  # auto, cpu, cuda, cuda:1, mps
    compile: str = field(
        default="auto", compare=False
    )  # on; auto: where it repays itself; off: no CUDA graph either
    threads: int = field(default=0, compare=False)  # of the CPU; 0: as torch has it
    data_root: str = field(
        default="", compare=False
    )  # folder of the data; "": $KDNB_DATA, or data/ in the project
    outputs: str = field(
        default="", compare=False
    )  # folder under which runs are kept; "": outputs/ in the project
    teacher_id: str = field(
        default="", metadata=FOUND
    )  # "trained", "imagenet", or the start of a file's SHA-256
    pretrained: str = field(
        default="", metadata=FOUND
    )  # the student: "imagenet", or the start of a file's SHA-256
    data_id: str = field(
        default="", metadata=FOUND
    )  # digest of the names, sizes and classes of photographs
    opened: str = field(
        default="", compare=False, metadata=FOUND
    )  # the folder, if it is not to follow from the rest

    def __post_init__(self):
        self._set(
            **{f.name: checked(f.name, getattr(self, f.name), f.default) for f in fields(self)}
        )
        preset = self.preset
        terms = parse(self.method, preset.methods)
        self._set(method=canonical(terms), student=model_name(self.student or preset.student))
        self._set(
            teacher=model_name(self.teacher or preset.teacher)
        )  # misspelt is misspelt, also where nobody teaches
        self._set(**{name: getattr(self, name) or value for name, value in self.usual.items()})
        if not self.pretrained:
            source, found = student_source(self.student_weights, self.student)
            self._set(student_weights=source, pretrained=found)
        preset.stored(self.image_size)  # raises for a size that the data set does not come in
        self._set(precision=pick_precision(self.precision, pick_device(self.device)))
        choose("compile", self.compile, ["auto", "on", "off"])
        if self.batch_size == 1:
            raise InputError("batch_size is 1: batch norm needs at least 2 images")
        if self.validation >= 1:
            raise InputError(f"validation is {self.validation}: it must be a share below 1")
        self._set(
            data_id=self.data_id or DATASETS[self.dataset].digest(data_folder(self.data_root))
        )
        if not needs_teacher(terms):
            self._set(
                teacher="", teacher_weights="", teacher_seed=0, teacher_epochs=0, teacher_id=""
            )
            return
        if (
            not self.teacher_id
        ):  # else it is known from the start: the run is opened, or beside another
            source, found = teacher_source(
                self.teacher_weights, self.teacher, preset.teacher_weights, self.short_teacher
            )
            self._set(teacher_weights=source, teacher_id=found)
        if self.teacher_id == "trained":
            self._set(
                teacher_epochs=self.teacher_epochs
                or preset.defaults(self.teacher, teacher=True)["epochs"]
            )
        elif self.teacher_seed or self.teacher_epochs:
            raise InputError(
                "teacher_seed and teacher_epochs are of a teacher that is trained first (weights 'none')"
            )
        if self.teacher_id == "imagenet":  # whose classes are known without looking
            applicable_terms(terms, same_classes=False, allow_partial=self.named)

    def _set(self, **values) -> None:
        for name, value in values.items():
            object.__setattr__(
                self, name, value
            )  # as dataclasses themselves do while they are frozen

    @classmethod
    def parameters(cls) -> dict[str, object]:
        """The names and defaults of what a notebook may set."""
        return {f.name: f.default for f in fields(cls) if not f.metadata}

    @classmethod
    def from_notebook(cls, namespace: Mapping) -> "Run":
        """The run that a notebook's `globals()` describe. Raises InputError for a misspelt parameter."""
        return cls(**parameters.from_notebook(namespace, cls.parameters()))

    @classmethod
    def open(cls, folder: str | Path, outputs: str = "", **where) -> "Run":
        """The run that a folder holds, by its path or its name under the outputs folder. Raises InputError.

        Neither data nor networks are looked at, wherever it was trained. where: fields such as data_root or device.
        """
        path = run_folder(folder, outputs)
        if path is None:
            raise InputError(
                f"run {str(folder)!r}: no folder with config.json, nor in {output_folder(outputs)}/runs"
            )
        config = store.read_json(path / "config.json")
        kept, place, known = (
            config.get("run"),
            config.get("where", {}),
            {f.name for f in fields(cls)},
        )
        if not (isinstance(kept, dict) and isinstance(place, dict)):
            raise store.damaged(path / "config.json", "it describes no run")
        if unknown := set(kept) - known:
            raise InputError(
                f"{path} comes from another version of kdnb: unknown are {', '.join(sorted(unknown))}"
            )
        outputs = str(path.parent.parent) if path.parent.name == "runs" else outputs
        place = {name: value for name, value in place.items() if name in known} | kept | where
        return cls(**place, outputs=outputs, opened=str(path))

    @property
    def preset(self) -> Preset:
        return DATASETS[choose("dataset", self.dataset, DATASETS)].preset

    @property
    def terms(self) -> tuple[Term, ...]:
        return parse(self.method)

    @property
    def label(self) -> str:
        """The method as legends and folders call it: its name, or the mix."""
        return label(self.method, self.preset.methods)

    @property
    def named(self) -> bool:
        """Whether the method has a name: then what of it this teacher cannot serve may be left out."""
        return self.label != self.method

    @property
    def usual(self) -> dict[str, object]:
        """What the preset gives this network: its own teacher, on its labels alone, is trained on all images."""
        p = self.preset
        return p.defaults(
            self.student, teacher=self.student == p.teacher != p.student and self.method == "ce"
        )

    @property
    def identity(self) -> dict[str, object]:
        """The compared fields: what is trained."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.compare}

    @property
    def changes(self) -> dict[str, list]:
        """{field: [value, the preset's]} of what is trained otherwise than the data set's preset has it."""
        return self.changes_from(self.usual)

    @property
    def departures(self) -> dict[str, list]:
        """`changes`; on labels alone from the nearer preset of two, of the preset's student only if it is followed."""
        alone = [
            self.changes_from(self.preset.defaults(self.student, teacher))
            for teacher in (False, True)
        ]
        baseline = self.student == self.preset.student and alone[1]
        return self.changes if self.teacher or baseline else min(alone, key=len)

    def changes_from(self, usual: Mapping[str, object]) -> dict[str, list]:
        usual = {
            f.name: f.default for f in fields(self) if f.compare and f.name not in ALWAYS
        } | usual
        if self.teacher_id == "trained":
            usual["teacher_epochs"] = self.preset.defaults(self.teacher, teacher=True)["epochs"]
        return {
            name: [getattr(self, name), value]
            for name, value in usual.items()
            if getattr(self, name) != value
        }

    @property
    def name(self) -> str:
        """Readable, plus six hex digits of all that is compared and is not the preset's.

        So a field that is added later, and left as it is, renames no run.
        """
        own = {name: getattr(self, name) for name in (*ALWAYS, *self.changes)}
        digest = hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()[:6]
        words = "-".join(self.words("=")).replace(" ", "").replace(":", "")
        return words[:220] + f"-{digest}"  # of 255 that file systems allow

    @property
    def title(self) -> str:
        """What a figure calls it; a finished one with what its teacher could not serve."""
        left_out = self.config.get("left_out", ()) if self.done else ()
        return ", ".join([*self.words(" "), *(f"without {name}" for name in left_out)])

    def words(self, sign: str) -> list[str]:
        """What it is, one thing after the other; sign: between a name and its value."""
        words = [
            self.dataset,
            self.student,
            self.label,
            *([f"from{sign}{self.teacher}"] if self.teacher else []),
        ]
        changed = {n: f"{v:g}" if type(v) is float else v for n, (v, _) in self.changes.items()}
        return [
            *words,
            *(f"{name}{sign}{value}" for name, value in changed.items()),
            f"seed{sign}{self.seed}",
        ]

    def summary(self):
        """The resolved parameters as a pandas table, for a notebook's reader."""
        shown = {
            n: v for n in self.parameters() if (v := getattr(self, n)) not in ("", 0) or n == "seed"
        }
        return parameters.listing("parameter", shown)

    def beside(self, **changes) -> "Run":
        """The run with other fields, in the same place."""
        other = replace(self, opened="", **changes)
        return replace(other, opened=str(self.folder.parent / other.name)) if self.opened else other

    @property
    def baseline(self) -> "Run":
        """The same student on its labels alone: what distilling has to beat."""
        return self.beside(method="none")

    @property
    def short_teacher(self) -> Path | None:
        """The file of the teacher that comes with the study; None for a run that asks for another one."""
        other = self.teacher_seed or self.teacher_epochs or self.validation
        if other or self.image_size != self.preset.image_size:
            return None
        return self.output_folder / "teachers" / f"{self.teacher}-{self.dataset}.safetensors"

    @cached_property
    def teacher_run(self) -> "Run | None":
        """The run that trains the teacher, on all images; None where its weights are given, or nobody teaches."""
        if self.teacher_id != "trained":
            return None
        own = self.preset.defaults(self.teacher, True) | {
            "epochs": self.teacher_epochs,
            "image_size": self.image_size,
        }
        scratch = {"student": self.teacher, "student_weights": "", "pretrained": ""}
        return self.beside(**scratch, method="none", seed=self.teacher_seed, **own)

    @property
    def output_folder(self) -> Path:
        return output_folder(self.outputs)

    @property
    def folder(self) -> Path:
        return Path(self.opened) if self.opened else self.output_folder / "runs" / self.name
