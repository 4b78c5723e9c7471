"""What tells two trainings apart: overrides of a preset, names, and what is compared.

An override is a field whose value is not the preset's: {field: [value, the preset's]}.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import fields, replace

from kdnb.data.preset import STEPS
from kdnb.paths import file_name
from kdnb.runs.folder import RunFolder
from kdnb.runs.stored_names import STORED_NAMES
from kdnb.runs.weights import default_student_weights

# Fields in the name of every run; other fields only where they are not the preset's.
IN_EVERY_NAME = ("dataset", "student", "method", "teacher", "teacher_weights_hash", "seed")
IN_EVERY_NAME += ("precision", "data_hash")

# Entries of a preset that change no training step.
WITHOUT_EFFECT = (
    "teacher_weights",
    "student_weights",
    "for_teacher",
    "lrs",
    "methods",
    "fixed_size",
)

# How `describe_overrides` writes names and values that would say little to a reader.
DISPLAY_NAMES = {"student_weights_hash": "student_weights"}
DISPLAY_VALUES = {
    ("train_limit", "-1"): "all",
    ("test_limit", "0"): "all",
    ("teacher_size", "0"): "the student's",
    ("milestones", "[]"): "one cycle",
    ("student_weights_hash", ""): "none",
    ("augment", ""): "the preset's",
    ("clip", "0.0"): "none",
    ("ema", "0.0"): "none",
    ("label_smoothing", "0.0"): "none",
    ("mix", ""): "none",
    ("views", "0"): "1",
}


def describe_overrides(overrides: Mapping[str, list]) -> str:
    """Overrides in words: "epochs 24 instead of 240, train_limit 100 instead of all"."""
    parts = []
    for name, values in overrides.items():
        value, default = (DISPLAY_VALUES.get((name, str(each)), each) for each in values)
        parts.append(f"{DISPLAY_NAMES.get(name, name)} {value} instead of {default}")
    return ", ".join(parts)


def training_facts(config: Mapping) -> dict[str, object]:
    """What decides the weights of a run, by name: its fields, and what its preset adds.

    Of a training that was begun, "decoding" is the version by which its photographs were decoded.

    config: the contents of config.json. Raises KeyError, TypeError or AttributeError if it
    describes no run.
    """
    preset = {name: value for name, value in config["preset"].items() if name not in WITHOUT_EFFECT}
    if preset.get("milestones"):
        preset["schedule"] = STEPS  # as a run calls it; the preset's own has no effect
    decoding = {"decoding": config.get("decoding", 1)} if "classes" in config else {}
    return preset | config["run"] | decoding


class Identity(RunFolder):
    """What follows from the fields of a run, a dataclass, and from the defaults of its preset."""

    @property
    def identity(self) -> dict[str, object]:
        """The compared fields: what is trained."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.compare}

    @property
    def overrides(self) -> dict[str, list]:
        """{field: [value, the preset's]} for every value that is not the preset's."""
        return self.overrides_of(self.defaults)

    @property
    def reported_overrides(self) -> dict[str, list]:
        """`overrides`, as tables report them.

        A network that is trained on labels alone may be a student or a teacher, and a preset may
        train these differently. It is compared with the nearer of both, unless it is the preset's
        student and no teacher's equal.
        """
        as_student, as_teacher = (
            self.overrides_of(self.preset.defaults(self.student, teacher))
            for teacher in (False, True)
        )
        if self.teacher or (self.student == self.preset.student and as_teacher):
            return self.overrides
        return min(as_student, as_teacher, key=len)

    def overrides_of(self, defaults: Mapping[str, object]) -> dict[str, list]:
        """{field: [value, default]} for every value that is not the default.

        defaults: of some fields; the others have those of the dataclass.
        """
        expected = {
            f.name: f.default for f in fields(self) if f.compare and f.name not in IN_EVERY_NAME
        }
        expected |= {"student_weights_hash": default_student_weights(self.preset, self.student)}
        expected |= defaults
        if self.teacher_weights_hash == "trained":
            expected["teacher_epochs"] = self.preset.defaults(self.teacher, teacher=True)["epochs"]
        values = {name: [getattr(self, name), default] for name, default in expected.items()}
        return {name: pair for name, pair in values.items() if pair[0] != pair[1]}

    @property
    def teachers(self) -> tuple["Identity", ...]:
        """The run with each of its teachers alone, in the same folder; none without a teacher."""
        names = self.teacher.split(",")
        if len(names) == 1:
            return (self,) if self.teacher else ()
        parts = zip(
            names,
            self.teacher_weights.split(","),
            self.teacher_weights_hash.split(","),
            strict=True,
        )
        return tuple(
            replace(
                self,
                teacher=name,
                teacher_weights=weights,
                teacher_weights_hash=digest,
                folder_override=str(self.folder),
            )
            for name, weights, digest in parts
        )

    @property
    def readable_name(self) -> str:
        """The readable part of `name`; file systems allow names of 255 characters."""
        text = "-".join(self.name_parts("=")).replace(" ", "").replace(":", "")
        return file_name(text)[:220]

    @property
    def name(self) -> str:
        """The folder's name: readable, then a hash of everything compared that is not the preset's.

        A field that is added later, and left at its default, renames no run.
        """
        values = {name: getattr(self, name) for name in (*IN_EVERY_NAME, *self.overrides)}
        stored = {STORED_NAMES.get(name, name): value for name, value in values.items()}
        digest = hashlib.sha256(json.dumps(stored, sort_keys=True).encode()).hexdigest()[:6]
        return f"{self.readable_name}-{digest}"

    @property
    def title(self) -> str:
        """What figures call the run. A finished run names the losses that were left out."""
        left_out = self.config.get("left_out", ()) if self.done else ()
        return ", ".join([*self.name_parts(" "), *(f"without {name}" for name in left_out)])

    def name_parts(self, sign: str) -> list[str]:
        """The parts of a name, such as "epochs=24"; sign: between a field and its value."""
        parts = [self.dataset, self.student, self.label]
        if self.teacher:
            parts.append(f"from{sign}{self.teacher}")
        for name, (value, _) in self.overrides.items():
            text = f"{value:g}" if isinstance(value, float) else value
            parts.append(f"{STORED_NAMES.get(name, name)}{sign}{text}")
        return [*parts, f"seed{sign}{self.seed}"]
