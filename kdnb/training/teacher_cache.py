"""The teacher's answers to training images, stored in files that all runs with this teacher share.

Flips and crops give a small image few variants: 162 for CIFAR's. A method that needs the teacher's
logits or pooled features alone need not run the teacher on a variant that it has seen before.

An answer may depend on the size of the batch that it was computed in, in its last bits. So answers
are always computed in full batches; the last, smaller batch of an epoch runs the teacher as without
a cache. Whether the place in a batch and the other images matter is tested when a cache is opened.
"""

import copy
import hashlib
import json
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from kdnb.data import Batch
from kdnb.data.digests import digest_of_images
from kdnb.data.loader import Loader
from kdnb.errors import InputError
from kdnb.losses import LOSSES
from kdnb.models import fingerprint
from kdnb.paths import answers_folder, file_name
from kdnb.runs import code
from kdnb.runs.run import Run
from kdnb.training.answer_file import open_files
from kdnb.training.distiller import Distiller
from kdnb.training.loss_terms import Teachers

LAYOUT = 1  # of the files
KINDS = {"logits": "logits", "pooled": "pooled features"}  # fields of an Output that can be stored
FEW = {"index", "corner", "flip"}  # the choices of a Loader's plan that have few values


def fields_read(distiller: Distiller) -> dict[str, frozenset[str]]:
    """The fields of the teacher's Output that each loss reads, for those that need a teacher."""
    classes = {term.loss: LOSSES[term.loss] for term in distiller.terms}
    return {name: loss.teacher_outputs for name, loss in classes.items() if loss.needs_teacher}


def obstacle(distiller: Distiller, loader: Loader) -> str:
    """Why the teacher's answers cannot be stored; "" if they can, or no loss needs a teacher.

    Every random choice of a batch has to be in the Loader's plan. One that is added there ends the
    use of the cache, until `TeacherCache.rows` numbers its values.
    """
    read = fields_read(distiller)
    if isinstance(distiller.teacher, Teachers):
        return "the answers of several teachers are not stored"
    if distiller.teacher_grad:
        return "a loss takes gradients of the teacher's answers"
    if names := [name for name, fields in read.items() if fields - KINDS.keys()]:
        return f"{', '.join(names)} needs more of a teacher than its logits and pooled features"
    if read and set(loader.plan(0)) - FEW:
        return "these training images are augmented in too many ways"
    return ""


def open_cache(
    run: Run, distiller: Distiller, loader: Loader, compiled: bool, log: Callable[[str], None]
) -> "TeacherCache | None":
    """The cache of a run's teacher; None if the run needs no teacher or uses no cache.

    "auto" uses it for steps on a CPU that are not compiled, where the weights are the same to the
    bit as without, and if the files are small enough.

    Args:
        run: gives teacher_cache, the precision, and names for the files.
        distiller: the networks and losses, on the device.
        loader: the training batches.
        compiled: whether training steps are compiled.
        log: called with a line per file, or why there are none.

    Raises InputError if teacher_cache is on and there can be none.
    """
    if not any(fields_read(distiller).values()) or run.teacher_cache == "off":
        return None
    reason = obstacle(distiller, loader)
    if run.teacher_cache == "auto":
        if reason or loader.device.type != "cpu":
            return None
        if compiled:
            reason = "it may change the last bits of compiled steps; teacher_cache on allows it"
    try:
        if not reason:
            return TeacherCache(run, distiller, loader, log)
    except (InputError, OSError) as error:
        reason = str(error)
    if run.teacher_cache == "on":
        raise InputError(f"teacher_cache is on, but {reason}")
    log(f"the teacher's answers are not stored: {reason}")
    return None


class TeacherCache:
    """Attaches the teacher's answers to training batches, and runs the teacher where one is new.

    Args: as of `open_cache`.

    Raises InputError if an answer depends on the other images of a batch, and if the files do not
    fit; OSError if they cannot be opened.
    """

    def __init__(self, run: Run, distiller: Distiller, loader: Loader, log: Callable[[str], None]):
        self.teacher = distiller.teacher
        self.precision = run.precision
        self.loader = loader
        self.log = log
        self.full_batches = copy.copy(loader)  # their answers come with them
        self.full_batches.teacher_differs = False
        read = frozenset().union(*fields_read(distiller).values())
        self.kinds = [kind for kind in KINDS if kind in read]
        self.fields = [f"teacher_{kind}" for kind in self.kinds]  # of a Batch
        examples = self.probe()
        keys = {kind: self.key(run, kind, examples[kind]) for kind in self.kinds}
        stems = {k: f"{run.teacher}-{run.dataset}-{k}-{key.hex()[:16]}" for k, key in keys.items()}
        paths = {k: answers_folder() / file_name(f"{stem}.answers") for k, stem in stems.items()}
        variants = (2 * loader.padding + 1) ** 2 * (1 + loader.flip)
        rows = variants * len(loader.images)
        self.files = open_files(paths, keys, rows, examples, run.teacher_cache == "on")
        for kind, file in self.files.items():
            size = f"{file.nbytes / 1e6:,.2f} MB when full"
            log(f"its teacher's {KINDS[kind]} are stored for other runs in {file.path}, {size}")
        self.can_write = True

    def probe(self) -> dict[str, Tensor]:
        """The answers to the first images, without a flip, as one full batch.

        Raises InputError if an answer depends on its place in the batch or on other images.
        """
        size = self.loader.batch_size
        plan = {name: torch.zeros_like(v[:size]) for name, v in self.loader.plan(0).items()}
        answers = self.compute(plan | {"index": torch.arange(size)})
        for image in (0, size - 1):
            repeated = self.compute(plan | {"index": torch.full((size,), image)})
            for kind, answer in answers.items():
                expected = answer[image].expand_as(answer).contiguous()
                if not torch.equal(expected.view(torch.uint8), repeated[kind].view(torch.uint8)):
                    raise InputError(
                        "in the last bits, its answer to an image depends on the other images, or "
                        f"on the place, in a batch of {size}; another batch_size may help"
                    )
        return answers

    def key(self, run: Run, kind: str, examples: Tensor) -> bytes:
        """The hash of all that the answers depend on; examples: of `probe`."""
        loader = self.loader
        facts = [LAYOUT, kind, fingerprint(self.teacher), digest_of_images([loader.images])]
        facts += [code.hashes(code.definitions((), [run.teacher], run.dataset))]
        facts += [loader.size, loader.padding, loader.flip, loader.teacher_size]
        facts += [loader.images.mean, loader.images.std, loader.teacher_stats]
        facts += [loader.batch_size, self.precision, loader.device.type, torch.__version__]
        if loader.device.type == "cpu":  # its instructions and threads, as far as they change bits
            facts += [hashlib.sha256(examples.view(torch.uint8).numpy()).hexdigest()]
        return hashlib.sha256(json.dumps(facts).encode()).digest()

    @torch.no_grad()
    def compute(self, plan: dict[str, Tensor]) -> dict[str, Tensor]:
        """The teacher's answers to some rows of a plan, on the CPU."""
        device = self.loader.device.type
        images = self.loader.make(plan).for_teacher
        with torch.autocast(device, torch.bfloat16, enabled=self.precision == "bfloat16"):
            output = self.teacher(images)
        return {kind: getattr(output, kind).cpu().contiguous() for kind in self.kinds}

    def rows(self, plan: dict[str, Tensor]) -> np.ndarray:
        """The row in the files of each row of a plan: its image, crop and flip, int64 (n,)."""
        rows, side = plan["index"], 2 * self.loader.padding + 1
        if "corner" in plan:
            rows = (rows * side + plan["corner"][:, 0]) * side + plan["corner"][:, 1]
        if "flip" in plan:
            rows = rows * 2 + plan["flip"]
        return rows.numpy()

    @property
    def full_length(self) -> int:
        """The number of rows of a full batch."""
        return self.loader.full_length

    def batch_of(self, inputs: dict[str, Tensor]) -> Batch:
        """Returns the batch of what `inputs` yields."""
        answers = {name: inputs[name] for name in self.fields if name in inputs}
        rest = {name: tensor for name, tensor in inputs.items() if name not in answers}
        loader = self.full_batches if answers else self.loader
        return loader.batch_of(rest)._replace(**answers)

    def inputs(self, epoch: int = 0, start: int = 0) -> Iterator[dict[str, Tensor]]:
        """Yields those of `Loader.inputs`, for full batches with the teacher's answers.

        A batch with unknown answers runs the teacher once, on a full batch: on its own unknown
        images, and on the next ones of the epoch.
        """
        size = self.loader.batch_size
        plan = self.loader.plan(epoch)
        rows = self.rows(plan)
        full = range(start * size, len(rows) // size * size, size)
        later = [first + self.read(rows[first : first + size])[1] for first in full]
        later = np.concatenate([*later, np.empty(0, int)])  # positions in the plan, in order
        for file in self.files.values():
            if file.damaged:
                self.log(f"{file.damaged:,} damaged answers in {file.path} are computed anew")
                file.damaged = 0
        for step, inputs in enumerate(self.loader.inputs(epoch, start), start):
            first, end = step * size, (step + 1) * size
            if end > len(rows):
                yield inputs
                continue
            answers, unknown = self.read(rows[first:end])
            later = later[later >= end]
            if len(unknown):
                chosen, later = np.split(np.concatenate([first + unknown, later]), [size])
                for kind, values in self.add(plan, rows, chosen).items():
                    answers[kind][unknown] = values[: len(unknown)]
            sent = {f"teacher_{kind}": self.send(answer) for kind, answer in answers.items()}
            yield inputs | sent

    def read(self, rows: np.ndarray) -> tuple[dict[str, Tensor], np.ndarray]:
        """The answers of some rows by kind, and the positions in `rows` of the unknown ones."""
        found = {kind: file.read(rows) for kind, file in self.files.items()}
        known = np.logical_and.reduce([known for _, known in found.values()])
        return {kind: answers for kind, (answers, _) in found.items()}, np.flatnonzero(~known)

    def add(
        self, plan: dict[str, Tensor], rows: np.ndarray, chosen: np.ndarray
    ) -> dict[str, Tensor]:
        """Compute the answers to some rows of a plan, in one full batch, and write them."""
        filled = torch.from_numpy(np.resize(chosen, self.loader.batch_size))  # some may come twice
        computed = self.compute({name: values[filled] for name, values in plan.items()})
        try:
            for kind, file in self.files.items() if self.can_write else ():
                file.write(rows[chosen], computed[kind][: len(chosen)])
        except OSError as error:  # such as a full disk
            self.can_write = False
            self.log(f"no more of the teacher's answers are stored: {error.strerror}")
        return computed

    def send(self, answers: Tensor) -> Tensor:
        """Answers on the device of the batches."""
        device = self.loader.device
        if device.type == "cuda":  # without waiting for the steps before
            return answers.pin_memory().to(device, non_blocking=True)
        return answers.to(device)
