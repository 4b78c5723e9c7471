"""One training step, eager, compiled or as a CUDA graph."""

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from kdnb.data import Batch
from kdnb.data.loader import Loader
from kdnb.models import Output
from kdnb.runs.run import Run
from kdnb.training.compiling import compile_and_call, forget_other_runs
from kdnb.training.cuda_graph import CUDAGraphStep, graph_pool, on_side_stream
from kdnb.training.distiller import Distiller
from kdnb.training.recipe import Average, make_optimizer
from kdnb.training.teacher_cache import TeacherCache

GRAPH_DEVICES = ("cuda",)  # where steps are replayed as a graph, unless compile is off


class Engine:
    """The training step of a run: call it with the inputs of a batch.

    It sums up losses and accuracy on the device; nothing in a step waits for the device. The step
    of a full batch may be compiled. On a GPU it is captured with the making of the batch, and so is
    that of the last, smaller batch of an epoch, which is not compiled.

    Args:
        distiller: is moved to the device.
        run: gives the recipe and the precision.
        device: where to compute.
        compiled: whether to compile the forward pass.
        batches: the source of the inputs.

    Attributes:
        captures: whether steps are captured as CUDA graphs.
        fell_back: whether compiling failed.
    """

    def __init__(
        self,
        distiller: Distiller,
        run: Run,
        device: torch.device,
        compiled: bool,
        batches: Loader | TeacherCache,
    ):
        self.device = device
        self.batch_of = batches.batch_of
        self.full_length = batches.full_length
        self.precision = run.precision
        self.clip = run.clip
        self.distiller = distiller.to(device, memory_format=torch.channels_last).train()
        self.trainable = distiller.trainable()
        self.lr = run.lr
        self.captures = device.type in GRAPH_DEVICES and run.compile != "off"
        self.optimizer = make_optimizer(
            run,
            self.trainable.parameters(),
            # A tensor in a captured step, which would keep a Python number for ever.
            lr=torch.tensor(run.lr, device=device) if self.captures else run.lr,
            fused=device.type in ("cpu", "cuda"),
        )
        self.average = Average(distiller.model, run.ema) if run.ema else None
        self.compiled = compiled
        self.fell_back = False
        self.forward: Callable | None = None if compiled else self._forward  # of a full batch
        if compiled:
            forget_other_runs(run)
        self.full_step = self.last_step = lambda inputs: self.step(self.batch_of(inputs))
        if self.captures:
            pool = graph_pool(device)  # one for both: no tensor of it outlives a step
            self.full_step = CUDAGraphStep(self.last_step, pool)
            self.last_step = CUDAGraphStep(self.last_step, pool)
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        torch.backends.cudnn.benchmark = True  # all steps have the same shapes
        self.names = ["total", *(term.loss for term in distiller.terms)]
        # The losses that are means over the labelled images of a batch, not over all.
        self.of_labelled = set(distiller.label_losses)
        # Losses summed over images, correct predictions, images, and how many of these had been
        # seen when the loss was first not finite (0: it always was).
        dtype = torch.float64 if device.type != "mps" else None
        self.sums = torch.zeros(len(self.names) + 3, device=device, dtype=dtype)
        self.labelled = torch.zeros((), device=device, dtype=dtype)  # images with a label
        self.rng = torch.get_rng_state()
        self.threads = torch.get_num_threads()

    @contextmanager
    def turn(self) -> Iterator[None]:
        """A context with the CPU threads and random numbers of this run, also of its next steps.

        Other runs of this process may train between two contexts. The random numbers of a GPU are
        those of all.
        """
        rng, threads = torch.get_rng_state(), torch.get_num_threads()
        torch.set_rng_state(self.rng)
        if threads != self.threads:
            torch.set_num_threads(self.threads)
        try:
            yield
        finally:
            self.rng = torch.get_rng_state()
            torch.set_rng_state(rng)
            if threads != self.threads:
                torch.set_num_threads(threads)

    def is_full(self, inputs: dict[str, Tensor]) -> bool:
        """Whether these are the inputs of a full batch."""
        return len(inputs["index"]) == self.full_length

    def __call__(self, inputs: dict[str, Tensor]) -> None:
        """Make a step; inputs: what the source of the batches yields for it."""
        with on_side_stream(self.stream):
            (self.full_step if self.is_full(inputs) else self.last_step)(inputs)

    def step(self, batch: Batch, teacher: Output | tuple[Output, ...] | None = None) -> None:
        """Make a step that is not captured; teacher: what `Distiller.teach` returns, if known."""
        if len(batch.labels) < self.full_length:
            self._update(self._forward, batch, teacher)
        elif self.forward is not None:
            self._update(self.forward, batch, teacher)
        else:
            before = copy.deepcopy(self.state())
            self.forward, _ = compile_and_call(
                self._forward,
                self.device,
                lambda forward: self._update(forward, batch, teacher),
                lambda: self.load(before),
            )
            self.fell_back = self.forward == self._forward

    def _forward(self, batch: Batch, teacher: Output | tuple[Output, ...] | None) -> Tensor:
        """The loss of a batch. It and its terms, times the images, are added to the sums.

        All is in tensors that are always the same.
        """
        labels = batch.labels
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            terms, logits = self.distiller(*batch, teacher)
        correct = (logits.detach().argmax(1) == labels).sum()  # never without a label, -1
        labelled = (labels >= 0).sum()
        counts = [labelled if name in self.of_labelled else len(labels) for name in self.names]
        losses = [terms[name].detach() * n for name, n in zip(self.names, counts, strict=True)]
        self.sums[:-2] += torch.stack([*losses, correct])
        self.sums[-2] += len(labels)
        self.labelled += labelled
        is_first_nonfinite = (self.sums[-1] == 0) & ~torch.isfinite(losses[0])
        self.sums[-1] += is_first_nonfinite * self.sums[-2]
        return terms["total"]

    def _update(self, forward: Callable, *arguments) -> None:
        """Compute the gradients and change the weights; arguments: of `_forward`."""
        self.optimizer.zero_grad(set_to_none=True)
        forward(*arguments).backward()
        if self.clip:
            nn.utils.clip_grad_norm_(self.trainable.parameters(), self.clip)
        self.optimizer.step()
        if self.average:
            self.average.update()

    @property
    def tested(self) -> nn.Module:
        """The network that is tested: the average of the student's weights if there is one."""
        return self.average.model if self.average else self.distiller.model

    def set_lr(self, lr: float) -> None:
        """Set the learning rate, in place: a captured step reads it from a tensor."""
        if lr == self.lr:  # filling a tensor launches a kernel
            return
        for group in self.optimizer.param_groups:
            group["lr"] = group["lr"].fill_(lr) if isinstance(group["lr"], Tensor) else lr
        self.lr = lr

    def start_epoch(self, epoch: int) -> None:
        """Zero the sums and running means, and set the losses' weights; epoch: counted from 0."""
        for value in (self.sums, self.labelled, *self.distiller.running_buffers().values()):
            value.zero_()
        self.distiller.start_epoch(epoch)

    def epoch_means(self) -> dict[str, float]:
        """Means over the images of the epoch so far: the loss and its terms; "top1" in percent.

        The accuracy, and losses that need labels, are means over the images with a label: nan if
        there are none.
        """
        *losses, correct, images, _ = self.sums.tolist()
        labelled = self.labelled.item() or math.nan
        counts = [labelled if name in self.of_labelled else images for name in self.names]
        means = {name: loss / n for name, loss, n in zip(self.names, losses, counts, strict=True)}
        return {"top1": 100 * correct / labelled} | means

    def first_nonfinite_step(self) -> int:
        """The first step of this epoch, from 1, whose loss is not finite; 0 if all are finite.

        It is the last step if its loss is finite and the weights after it are not. Waits for the
        device.
        """
        images = int(self.sums[-1])
        parameters = [p.isfinite().all() for p in self.trainable.parameters()]
        if not images and not torch.stack(parameters).all():
            images = int(self.sums[-2])
        return -(-images // self.full_length)

    def close(self) -> None:
        """Drop the steps: they refer to this object, a cycle that would keep a graph's memory."""
        self.full_step = self.last_step = self.forward = None

    def state(self) -> dict:
        """What a checkpoint keeps, states of the random number generators included."""
        state = {
            "trained": self.trainable.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "sums": self.sums,
            "labelled": self.labelled,
            "running": self.distiller.running_buffers(),
            "rng": torch.get_rng_state(),
        }
        if self.average:
            state["average"] = self.average.state()
        if self.stream:
            state["device_rng"] = torch.cuda.get_rng_state(self.device)
        return state

    def restore(self, state: dict) -> None:
        """Load the state in a checkpoint, or nothing of one that cannot be loaded completely."""
        before = copy.deepcopy(self.state())
        try:
            self.load(state)
        except Exception:
            self.load(before)
            raise

    def load(self, state: dict) -> None:
        """Load what `state` returned."""
        self.trainable.load_state_dict(state["trained"])
        # The parameter groups stay: a captured step reads the learning rate from a tensor in them.
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict(state["optimizer"] | {"param_groups": groups})
        self.sums.copy_(state["sums"])
        self.labelled.copy_(state.get("labelled", self.sums[-2]))  # before 0.2 all images had one
        for name, buffer in self.distiller.running_buffers().items():
            buffer.copy_(state["running"][name])
        if self.average:
            self.average.load(state["average"])
        torch.set_rng_state(state["rng"])
        if self.stream and "device_rng" in state:
            torch.cuda.set_rng_state(state["device_rng"], self.device)
