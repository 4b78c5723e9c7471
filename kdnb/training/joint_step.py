"""A step of several runs at once, which share what they have in common."""

import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from kdnb.data import Batch
from kdnb.device import system_errors
from kdnb.models import Output
from kdnb.training.compiling import compile_and_call
from kdnb.training.cuda_graph import CUDAGraphStep, on_side_stream
from kdnb.training.step import Engine

Inputs = Mapping[str, Tensor]
Answer = Output | tuple[Output, ...]  # of a teacher, or of several


class JointStep:
    """A step of each of several runs. Call it with the inputs of their batches.

    Runs with the same batch, as those of one seed have, share it. Runs with the same teacher run it
    once: on a GPU on the images of all of their batches, otherwise on each batch. On a GPU the
    steps of full batches are parallel branches of one CUDA graph; on a CPU they are made one after
    the other, and each run computes the same bits as alone. A run whose step changes a batch or an
    answer in place shares them no longer.

    Args:
        engines: of the runs.
        sources: for each run, the first one with the same batch, by position.
    """

    def __init__(self, engines: Sequence[Engine], sources: Sequence[int]):
        self.engines = engines
        self.sources = sources
        device = engines[0].device
        self.is_joint = len(engines) > 1 and all(engine.device == device for engine in engines)
        self.is_cuda = device.type == "cuda"
        self.captures = self.is_joint and all(engine.captures for engine in engines)
        self.stream = torch.cuda.Stream(device) if self.captures and self.is_cuda else None
        self.captured = CUDAGraphStep(lambda tensors: self.make(by_source(tensors)))
        self.errors: dict[int, Exception] = {}
        self.apart: set[int] = set()  # the runs that share nothing, by position
        self.compiled_teachers: dict[int, Callable] = {}  # by the first run that it is shared by

    def __call__(self, inputs: Sequence[Inputs]) -> dict[int, Exception]:
        """Make a step of each run; returns what was raised by those that failed, by position."""
        self.errors = {}
        are_full = all(map(Engine.is_full, self.engines, inputs))
        if self.is_joint and (are_full or not self.captures):
            needed = {source: inputs[source] for source in self.sources}
            try:
                if self.captures:
                    with on_side_stream(self.stream):
                        self.captured(as_one(needed))
                    self.is_joint = not self.captured.fell_back  # it may be for one run alone
                else:
                    self.make(needed)
                return self.errors
            except Exception as error:  # not of a run's own step, which may raise it again
                reason = (str(error).splitlines() or [type(error).__name__])[0]
                warnings.warn(f"the runs share nothing any more: {reason}", stacklevel=2)
                self.is_joint = False
        for position, each in enumerate(inputs):
            self.attempt(position, lambda engine, each=each: engine(each))
        return self.errors

    def close(self) -> None:
        """Drop the captured step: it refers to this object, which would keep a graph's memory."""
        self.captured = None

    def attempt(self, position: int, step: Callable[[Engine], None]) -> None:
        """Let a run make a step, and record what it raises."""
        engine = self.engines[position]
        is_capturing = self.is_cuda and torch.cuda.is_current_stream_capturing()
        try:
            with nullcontext() if is_capturing else system_errors(), engine.turn():
                step(engine)
        except Exception as error:
            if is_capturing:
                raise
            self.errors[position] = error

    def make(self, inputs: Mapping[int, Inputs]) -> None:
        """Make the batches, then a step of each run; inputs: of each source."""
        here = torch.cuda.current_stream() if self.stream else None
        batches = {}
        for source, each in inputs.items():
            with self.engines[source].turn():
                batches[source] = self.engines[source].batch_of(copied(each))
        answers = self.run_teachers(batches)
        are_unchanged = True
        for position, (engine, source) in enumerate(zip(self.engines, self.sources, strict=True)):
            shared = batches[source], answers.get(position)
            given = inputs[source]
            if here:
                engine.stream.wait_stream(here)
            with torch.cuda.stream(engine.stream) if here else nullcontext():
                if position in self.apart or not are_unchanged:
                    self.attempt(position, lambda engine, x=given: step_alone(engine, x))
                    continue
                before = versions(shared)
                self.attempt(position, lambda engine, given=shared: engine.step(*given))
            if versions(shared) != before:
                are_unchanged = False  # for the runs that follow
                self.apart.add(position)
        if here:
            for engine in self.engines:
                here.wait_stream(engine.stream)

    def run_teachers(self, batches: Mapping[int, Batch]) -> dict[int, Answer]:
        """The answers of teachers that several runs share, by the position of a run."""
        answers = {}
        for members in self.groups(batches):
            sources = list(dict.fromkeys(self.sources[member] for member in members))
            if len(members) == 1:
                continue
            images = [batches[source].for_teacher for source in sources]
            images = images[0] if len(images) == 1 else torch.cat(images)
            with self.engines[members[0]].turn():
                parts = split(self.answer(members[0], images), len(sources))
            answers |= {member: parts[sources.index(self.sources[member])] for member in members}
        return answers

    def groups(self, batches: Mapping[int, Batch]) -> list[list[int]]:
        """The positions of the runs that share an answer."""
        groups = defaultdict(list)
        for position, engine in enumerate(self.engines):
            source = self.sources[position]
            distiller = engine.distiller
            is_stored = bool(
                {"teacher_logits", "teacher_pooled"} & batches[source].tensors().keys()
            )
            # A compiled step on a CPU has the teacher in it, and other bits without.
            is_fused = engine.compiled and not self.is_cuda
            is_apart = is_stored or is_fused or position in self.apart
            if distiller.teacher is None or distiller.teacher_grad or is_apart:
                continue
            key = id(distiller.teacher), engine.precision, batches[source].for_teacher.shape
            groups[key if self.is_cuda else (*key, source)].append(position)
        return list(groups.values())

    def answer(self, position: int, images: Tensor) -> Answer:
        """What the teacher of a run returns; on a GPU it is compiled if the run's step is."""
        engine = self.engines[position]
        function = engine.distiller.run_teacher

        def call(run_teacher) -> Answer:
            is_bfloat16 = engine.precision == "bfloat16"
            with torch.autocast(engine.device.type, torch.bfloat16, enabled=is_bfloat16):
                return run_teacher(images)

        if not engine.compiled:
            return call(function)
        if position in self.compiled_teachers:
            return call(self.compiled_teachers[position])
        self.compiled_teachers[position], answer = compile_and_call(function, engine.device, call)
        return answer


def step_alone(engine: Engine, inputs: Inputs) -> None:
    """Make a step of a run that shares nothing; inputs: also of others."""
    engine.step(engine.batch_of(copied(inputs)))


def copied(inputs: Inputs) -> dict[str, Tensor]:
    """Inputs whose batch a step may change in place: they may be the batch itself."""
    names = inputs if "images" in inputs else ["index"]  # of a plan, a batch has the index alone
    return {**inputs, **{name: inputs[name].clone() for name in names}}


def versions(shared: tuple[Batch, Answer | None]) -> list[int]:
    """How often each tensor of a batch and an answer was changed in place."""
    return [each._version for each in tree_leaves(shared) if isinstance(each, Tensor)]


def split(answer, count: int) -> list:
    """An answer to several batches of one size, as that to each of them."""
    if isinstance(answer, torch.Tensor):
        return list(answer.chunk(count))
    if answer is None:
        return [None] * count
    parts = zip(*(split(each, count) for each in answer), strict=True)
    if isinstance(answer, Output):
        return [Output(*part) for part in parts]
    return list(parts) if answer else [()] * count


def as_one(inputs: Mapping[int, Inputs]) -> dict[tuple[int, str], Tensor]:
    """The tensors of all inputs, by source and name."""
    return {(i, name): tensor for i, each in inputs.items() for name, tensor in each.items()}


def by_source(tensors: Mapping[tuple[int, str], Tensor]) -> dict[int, dict[str, Tensor]]:
    """The inputs of each source, of `as_one`."""
    inputs = defaultdict(dict)
    for (source, name), tensor in tensors.items():
        inputs[source][name] = tensor
    return inputs
