"""One training step, eager, compiled or as a CUDA graph."""

import copy
import math
import warnings
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from kdnb.data import Batch
from kdnb.runs.run import Run
from kdnb.training.cuda_graph import CUDAGraphStep, on_side_stream
from kdnb.training.distiller import Distiller
from kdnb.training.recipe import Average, make_optimizer

GRAPH_DEVICES = ("cuda",)  # where full steps are replayed as a graph, unless compile is off


class Engine:
    """The training step of a run: call it with a batch.

    It sums up losses and accuracy on the device; nothing in a step waits for the device. The step
    of a full batch may be compiled and captured; the last, smaller batch of an epoch runs eagerly.

    Args:
        distiller: is moved to the device.
        run: gives the recipe and the precision.
        device: where to compute.
        compiled: whether to compile the forward pass.
        batch_size: images in a full batch; 0: the run's.
    """

    def __init__(
        self,
        distiller: Distiller,
        run: Run,
        device: torch.device,
        compiled: bool,
        batch_size: int = 0,
    ):
        self.device = device
        # Rows of a full batch: there is one for each view of an image.
        self.batch_size = (batch_size or run.batch_size) * run.view_count
        self.precision = run.precision
        self.clip = run.clip
        self.distiller = distiller.to(device, memory_format=torch.channels_last).train()
        self.trainable = distiller.trainable()
        self.lr = run.lr
        use_graph = device.type in GRAPH_DEVICES and run.compile != "off"
        self.optimizer = make_optimizer(
            run,
            self.trainable.parameters(),
            # A tensor in a captured step, which would keep a Python number for ever.
            lr=torch.tensor(run.lr, device=device) if use_graph else run.lr,
            fused=device.type in ("cpu", "cuda"),
        )
        self.average = Average(distiller.model, run.ema) if run.ema else None
        self.fields: tuple[str, ...] = Batch._fields  # those that the batches have
        self.eager_step = partial(self._step, self._forward)
        self.full_step = self.eager_step
        self.compiled_forward: Callable | None = None  # made in the first step
        self.fell_back = False  # whether compiling failed
        if compiled:
            # A notebook trains many networks, and torch keeps few compiled versions of one
            # function.
            torch.compiler.reset()
            self.full_step = self._compiled_step
        if use_graph:
            self.full_step = CUDAGraphStep(self.full_step)
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

    def __call__(self, batch: Batch) -> None:
        is_full = len(batch.labels) == self.batch_size
        with on_side_stream(self.stream):
            # A captured step takes tensors only. The same fields are None in all batches of a run.
            given = {name: value for name, value in batch._asdict().items() if value is not None}
            self.fields = tuple(given)
            (self.full_step if is_full else self.eager_step)(*given.values())

    def _forward(self, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        """The loss of a batch; its terms times the images, correct predictions, labelled images.

        tensors: the fields of the batch, as `fields` names them.
        """
        batch = dict(zip(self.fields, tensors, strict=True))
        labels = batch["labels"]
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            terms, logits = self.distiller(**batch)
        correct = (logits.detach().argmax(1) == labels).sum()  # never without a label, -1
        labelled = (labels >= 0).sum()
        counts = [labelled if name in self.of_labelled else len(labels) for name in self.names]
        losses = [terms[name].detach() * n for name, n in zip(self.names, counts, strict=True)]
        return terms["total"], torch.stack([*losses, correct, labelled])

    def _compiled_step(self, *batch: Tensor) -> None:
        """One step, compiled. If compiling fails in the first step, all steps run eagerly."""
        if self.compiled_forward is None:
            self.compiled_forward = torch.compile(self._forward, dynamic=False)
            before = copy.deepcopy(self.state())
            try:
                self._step(self.compiled_forward, *batch)
                return
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # compilers fail in many ways; the step's own error recurs
                cause = getattr(error, "inner_exception", error)
                warnings.warn(
                    f"the step is not compiled, which costs time: {cause}".splitlines()[0],
                    stacklevel=2,
                )
                self.compiled_forward = self._forward
                self.fell_back = True
                self.load(before)
        self._step(self.compiled_forward, *batch)

    def _step(self, forward: Callable, *batch: Tensor) -> None:
        """One step. Its results stay on the device, in tensors that are always the same."""
        self.optimizer.zero_grad(set_to_none=True)
        loss, sums = forward(*batch)
        loss.backward()
        if self.clip:
            nn.utils.clip_grad_norm_(self.trainable.parameters(), self.clip)
        self.optimizer.step()
        if self.average:
            self.average.update()
        self.sums[:-2] += sums[:-1]
        self.sums[-2] += len(batch[0])
        self.labelled += sums[-1]
        is_first_nonfinite = (self.sums[-1] == 0) & ~torch.isfinite(sums[0])
        self.sums[-1] += is_first_nonfinite * self.sums[-2]

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
        return -(-images // self.batch_size)

    def close(self) -> None:
        """Drop the steps: they refer to this object, a cycle that would keep a graph's memory."""
        self.eager_step = self.full_step = self.compiled_forward = None

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
