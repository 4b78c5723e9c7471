"""One training step of a Distiller: eager, compiled, or a CUDA graph; nothing in it waits for the device."""

import copy
import warnings
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from kdnb.data import Batch
from kdnb.data.loader import Loader
from kdnb.runs.run import Run
from kdnb.training.cuda_graph import Replayed, aside
from kdnb.training.distiller import Distiller

REPLAYED = (
    "cuda",
)  # where full steps are replayed as a graph, unless compile is off: recording one takes a moment


class Engine:
    """Calling it with a batch is one step of a run, of SGD. It sums up what it measures on the device.

    A full batch's step is worth compiling; that of the last, smaller one of an epoch is not.
    """

    def __init__(self, distiller: Distiller, run: Run, device: torch.device, compiled: bool):
        self.device, self.batch_size, self.precision = device, run.batch_size, run.precision
        self.distiller = distiller.to(device, memory_format=torch.channels_last).train()
        self.trained, self.lr = distiller.trained(), run.lr
        replayed = device.type in REPLAYED and run.compile != "off"
        lr = (
            torch.tensor(run.lr, device=device) if replayed else run.lr
        )  # a number would be recorded
        how = {"momentum": run.preset.momentum, "weight_decay": run.preset.weight_decay}
        self.optimizer = torch.optim.SGD(
            self.trained.parameters(), lr, **how, fused=device.type in ("cpu", "cuda")
        )
        self.update = self.full_update = partial(self._update, self._forward)
        self.compiled, self.fell_back = (
            None,
            False,
        )  # the forward pass, from the first step on; whether that failed
        if compiled:
            torch.compiler.reset()  # a notebook trains many networks, and compiled steps of one function are few
            self.full_update = self._compiled_update
        if replayed:
            self.full_update = Replayed(self.full_update)
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        torch.backends.cudnn.benchmark = True  # every step has the same shapes
        self.names = ["total", *(term.loss for term in distiller.terms)]
        # Losses summed over images, right predictions, images, and how many of them had been seen when the loss was
        # first not finite (0: it always was).
        dtype = torch.float64 if device.type != "mps" else None
        self.sums = torch.zeros(len(self.names) + 3, device=device, dtype=dtype)

    def __call__(self, batch: Batch) -> None:
        with aside(self.stream):
            (self.full_update if len(batch.labels) == self.batch_size else self.update)(*batch)

    def _forward(self, images: Tensor, labels: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            terms, logits = self.distiller(images, labels, index)
        right = (logits.detach().argmax(1) == labels).sum()
        return terms["total"], torch.stack(
            [*(terms[n].detach() * len(labels) for n in self.names), right]
        )

    def _compiled_update(self, *batch: Tensor) -> None:
        """One step, compiled; if that fails, which shows in the first, this and the others are done as they are."""
        if self.compiled is None:
            self.compiled, before = (
                torch.compile(self._forward, dynamic=False),
                copy.deepcopy(self.state()),
            )
            try:
                return self._update(self.compiled, *batch)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # compilers fail in many ways; what is wrong with the step itself fails again
                why = getattr(error, "inner_exception", error)
                warnings.warn(
                    f"the step is not compiled, which costs time: {why}".splitlines()[0],
                    stacklevel=2,
                )
                self.compiled, self.fell_back = self._forward, True
                self.load(before)
        self._update(self.compiled, *batch)

    def _update(self, forward: Callable, images: Tensor, labels: Tensor, index: Tensor) -> None:
        """One step. Everything stays on the device, in tensors that are always the same: nothing waits for it."""
        self.optimizer.zero_grad(set_to_none=True)
        loss, measured = forward(images, labels, index)
        loss.backward()
        self.optimizer.step()
        self.sums[:-2] += measured
        self.sums[-2] += len(labels)
        bad = (self.sums[-1] == 0) & ~torch.isfinite(measured[0])
        self.sums[-1] += bad * self.sums[-2]

    def set_lr(self, lr: float) -> None:
        for group in (
            self.optimizer.param_groups if lr != self.lr else ()
        ):  # filling a tensor is a kernel to launch
            group["lr"] = group["lr"].fill_(lr) if isinstance(group["lr"], Tensor) else lr
        self.lr = lr

    def start_epoch(self, epoch: int) -> None:
        """Forget what was measured, and set the losses' weights for an epoch (from 0)."""
        for value in (self.sums, *self.distiller.running_buffers().values()):
            value.zero_()
        self.distiller.start_epoch(epoch)

    def measured(self) -> dict[str, float]:
        """Means over the images since the epoch started: the terms of the loss, and the accuracy "top1" in percent."""
        *losses, right, images, _ = self.sums.tolist()
        return {"top1": 100 * right / images} | {
            n: s / images for n, s in zip(self.names, losses, strict=True)
        }

    def first_bad_step(self) -> int:
        """The step of this epoch, from 1, in which the loss was first not finite; 0: it always was. Waits."""
        return -(-int(self.sums[-1]) // self.batch_size)

    def close(self) -> None:
        """Let go of the steps: each knows this object, a cycle that would keep a graph's memory."""
        self.update = self.full_update = self.compiled = None

    def state(self) -> dict:
        """What a checkpoint keeps of it, random numbers included."""
        state = {
            "trained": self.trained.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "sums": self.sums,
        }
        state |= {"running": self.distiller.running_buffers(), "rng": torch.get_rng_state()}
        return state | (
            {"device_rng": torch.cuda.get_rng_state(self.device)} if self.stream else {}
        )

    def load(self, state: dict) -> None:
        self.trained.load_state_dict(state["trained"])
        # The groups stay as the preset made them: a recorded step reads the learning rate from a tensor on the device.
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict(state["optimizer"] | {"param_groups": groups})
        self.sums.copy_(state["sums"])
        for name, value in self.distiller.running_buffers().items():
            value.copy_(state["running"][name])
        torch.set_rng_state(state["rng"])
        if self.stream and "device_rng" in state:
            torch.cuda.set_rng_state(state["device_rng"], self.device)


@torch.no_grad()
def evaluate(model: nn.Module, loader: Loader, precision: str = "float32") -> dict[str, float]:
    """Top-1 and top-5 accuracy in percent, and cross-entropy, over all images, in eval mode."""
    was_training = model.training
    model.eval()
    sums = torch.zeros(3, device=loader.device)
    for images, labels, _ in loader.epoch():
        with torch.autocast(loader.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            logits = model(images).logits.float()
        ranks = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]
        loss = nn.functional.cross_entropy(logits, labels, reduction="sum")
        sums += torch.stack([ranks[:, 0].sum(), ranks.sum(), loss])
    model.train(was_training)
    top1, top5, loss = (value / len(loader.images) for value in sums.tolist())
    return {"top1": 100 * top1, "top5": 100 * top5, "loss": loss}
