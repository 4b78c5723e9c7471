"""One training step, eager, compiled or as a CUDA graph; and the evaluation of a network."""

import copy
import math
import warnings
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from kdnb.data import Batch
from kdnb.data.loader import Loader
from kdnb.runs.run import Run
from kdnb.training.cuda_graph import CUDAGraphStep, on_side_stream
from kdnb.training.distiller import Distiller

GRAPH_DEVICES = ("cuda",)  # where full steps are replayed as a graph, unless compile is off


class Engine:
    """The training step of a run, SGD: call it with a batch.

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
        self.batch_size = batch_size or run.batch_size
        self.precision = run.precision
        self.distiller = distiller.to(device, memory_format=torch.channels_last).train()
        self.trainable = distiller.trainable()
        self.lr = run.lr
        use_graph = device.type in GRAPH_DEVICES and run.compile != "off"
        self.optimizer = torch.optim.SGD(
            self.trainable.parameters(),
            # A tensor in a captured step, which would keep a Python number for ever.
            lr=torch.tensor(run.lr, device=device) if use_graph else run.lr,
            momentum=run.preset.momentum,
            weight_decay=run.preset.weight_decay,
            fused=device.type in ("cpu", "cuda"),
        )
        self.eager_step = partial(self._step, self._forward)
        self.full_step = self.eager_step
        self.compiled_forward: Callable | None = None  # made in the first step
        self.fell_back = False  # whether compiling failed
        self.inputs: tuple[str, ...] = ()  # the fields of the current batch that are not None
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
            # A captured step takes tensors only. All full batches have the same ones.
            given = {name: value for name, value in batch._asdict().items() if value is not None}
            self.inputs = tuple(given)
            (self.full_step if is_full else self.eager_step)(*given.values())

    def _forward(self, images: Tensor, labels: Tensor, *others: Tensor) -> tuple[Tensor, Tensor]:
        """The loss of a batch; its terms times the images, correct predictions, labelled images.

        others: what else the batch has, named in `inputs`.
        """
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            others = dict(zip(self.inputs[2:], others, strict=True))
            terms, logits = self.distiller(images, labels, **others)
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

    def _step(self, forward: Callable, images: Tensor, labels: Tensor, *others: Tensor) -> None:
        """One step. Its results stay on the device, in tensors that are always the same."""
        self.optimizer.zero_grad(set_to_none=True)
        loss, sums = forward(images, labels, *others)
        loss.backward()
        self.optimizer.step()
        self.sums[:-2] += sums[:-1]
        self.sums[-2] += len(labels)
        self.labelled += sums[-1]
        is_first_nonfinite = (self.sums[-1] == 0) & ~torch.isfinite(sums[0])
        self.sums[-1] += is_first_nonfinite * self.sums[-2]

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
        torch.set_rng_state(state["rng"])
        if self.stream and "device_rng" in state:
            torch.cuda.set_rng_state(state["device_rng"], self.device)


@torch.no_grad()
def evaluate(
    model: nn.Module,
    loader: Loader,
    precision: str = "float32",
    is_teacher: bool = False,
    after_batch: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Accuracies "top1" and "top5" (%) and cross-entropy "loss" of all images, in eval mode.

    Args:
        model: the network; its mode is restored at the end, also after an error.
        loader: the batches.
        precision: float32 or bfloat16.
        is_teacher: whether the network gets the teacher's images of each batch.
        after_batch: called after each batch; it may raise to stop.
    """
    was_training = model.training
    model.eval()
    sums = torch.zeros(3, device=loader.device)
    try:
        for batch in loader.epoch():
            images = batch.for_teacher if is_teacher else batch.images
            labels = batch.labels
            with torch.autocast(loader.device.type, torch.bfloat16, precision == "bfloat16"):
                logits = model(images).logits.float()
            correct = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]
            loss = nn.functional.cross_entropy(logits, labels, reduction="sum")
            sums += torch.stack([correct[:, 0].sum(), correct.sum(), loss])
            after_batch()
    finally:
        model.train(was_training)
    top1, top5, loss = (value / len(loader.images) for value in sums.tolist())
    return {"top1": 100 * top1, "top5": 100 * top5, "loss": loss}
