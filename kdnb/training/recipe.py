"""The optimiser of a run, and the average of its weights."""

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from kdnb.runs.run import Run

BETA_2 = 0.999  # of AdamW


def make_optimizer(
    run: Run, parameters: Iterable[nn.Parameter], lr: float | Tensor, fused: bool = False
) -> torch.optim.Optimizer:
    """The optimiser of a run.

    Args:
        run: gives its name, momentum and weight decay.
        parameters: what it trains.
        lr: the learning rate; a tensor if a step is captured as a CUDA graph.
        fused: whether one kernel updates all parameters.
    """
    options = {"lr": lr, "weight_decay": run.weight_decay, "fused": fused}
    if run.optimizer == "adamw":
        options |= {"betas": (run.momentum, BETA_2), "capturable": isinstance(lr, Tensor)}
        return torch.optim.AdamW(parameters, **options)
    is_nesterov = run.optimizer == "nesterov"
    return torch.optim.SGD(parameters, momentum=run.momentum, nesterov=is_nesterov, **options)


class Average:
    """An exponential moving average of a network's weights, as a network in eval mode.

    Batch norm's running mean and variance are averaged as well; whole numbers are copied. After t
    steps the decay is at most (1 + t) / (10 + t), so that the random initial weights do not remain.
    A step changes tensors in place, and can be captured as a CUDA graph.

    Args:
        model: the network that is trained.
        decay: share of the average that remains in a step.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.source = model
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        device = next(model.parameters()).device
        self.decay = torch.tensor(decay, device=device)
        self.steps = torch.zeros((), device=device)

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the weights of the network."""
        self.steps += 1
        rest = 1 - torch.minimum(self.decay, (1 + self.steps) / (10 + self.steps))
        values = self.source.state_dict().values()
        for average, value in zip(self.model.state_dict().values(), values, strict=True):
            if average.is_floating_point():
                average.lerp_(value, rest.to(average.dtype))
            else:
                average.copy_(value)

    def state(self) -> dict[str, Tensor | dict]:
        """What a checkpoint keeps."""
        return {"steps": self.steps, "model": self.model.state_dict()}

    def load(self, state: dict) -> None:
        """Load what `state` returned."""
        self.steps.copy_(state["steps"])
        self.model.load_state_dict(state["model"])
