"""Students whose method changes how they predict, such as SimKD's: in training, and as a file.

The weights file of such a student has the loss's weights under `predictor.`, the teacher's
classifier under `predictor.classifier.`, and in its metadata "predictor": the loss, its options,
and the shapes of a teacher's Output, from which the loss is built again.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from kdnb.errors import InputError
from kdnb.losses.base import LOSSES, Classifiers, Loss
from kdnb.losses.mix import Term
from kdnb.models import Output, example_output, load_weights, read_metadata, read_state_dict

PREFIX = "predictor."
CLASSIFIER = f"{PREFIX}classifier."


class Predicting(nn.Module):
    """A student that predicts by what a loss makes of its Output.

    Args:
        network: the student.
        loss: has a method `predict`.

    Attributes:
        classifier_name: name of the layer that its logits come from: the teacher's classifier, if
            the loss reads classifiers, or else the student's own.
    """

    def __init__(self, network: nn.Module, loss: Loss):
        super().__init__()
        self.network = network
        self.loss = loss
        self.block_names = network.block_names
        self.classifier_name = f"network.{network.classifier_name}"
        if loss.classifiers:
            self.classifier = loss.classifiers.teacher
            self.classifier_name = "classifier"

    def forward(self, images: Tensor) -> Output:
        return self.loss.predict(self.network(images))


def output_shapes(output: Output) -> dict[str, list]:
    """The shapes of an Output without the batch, as JSON can hold them."""
    return {
        "logits": [*output.logits.shape[1:]],
        "pooled": None if output.pooled is None else [*output.pooled.shape[1:]],
    } | {
        name: [[*each.shape[1:]] for each in getattr(output, name)]
        for name in ("feats", "stages", "preacts")
    }


def zeros(shapes: dict[str, list]) -> Output:
    """An Output of two images of these shapes."""
    logits = torch.zeros(2, *shapes["logits"])
    pooled = None if shapes["pooled"] is None else torch.zeros(2, *shapes["pooled"])
    maps = {
        name: tuple(torch.zeros(2, *each) for each in shapes[name])
        for name in ("feats", "stages", "preacts")
    }
    return Output(logits, pooled=pooled, **maps)


def student_state(student: nn.Module) -> dict[str, Tensor]:
    """The tensors of a student's weights file; student: a network or a Predicting."""
    if not isinstance(student, Predicting):
        return student.state_dict()
    state = student.network.state_dict()
    state |= {PREFIX + key: value for key, value in student.loss.state_dict().items()}
    if student.loss.classifiers:
        classifier = student.classifier.state_dict()
        state |= {CLASSIFIER + key: value for key, value in classifier.items()}
    return state


def describe_predictor(term: Term, teacher: Output) -> dict:
    """The entry "predictor" of a weights file's metadata; teacher: an Output of the teacher."""
    return {"loss": term.loss, "options": term.options, "teacher": output_shapes(teacher)}


def load_network(name: str, path: str | Path, image_size: int = 0, role: str = "") -> nn.Module:
    """Returns a network with the weights of a checkpoint, so that it predicts as it was trained to.

    The arguments and errors are those of `kdnb.models.load_weights`.
    """
    metadata = read_metadata(path)
    about = metadata.get("predictor")
    network = load_weights(name, path, image_size, role, network_alone=True)
    if not about:
        return network
    try:
        size = image_size or metadata["image_size"]
        example = example_output(network, torch.zeros(2, 3, size, size))
        teacher = zeros(about["teacher"])
        with torch.random.fork_rng([]):  # initial weights are drawn, and replaced
            loss = LOSSES[about["loss"]](example, teacher, **about["options"])
            state = read_state_dict(path)
            if loss.needs_classifiers:
                layer = nn.Linear(teacher.pooled.shape[1], teacher.logits.shape[1])
                student = network.get_submodule(network.classifier_name)
                loss.classifiers = Classifiers(student, layer)
                layer.load_state_dict(part(state, CLASSIFIER))
        own = part(state, PREFIX)
        loss.load_state_dict({key: own[key] for key in own if not key.startswith("classifier.")})
    except (KeyError, TypeError, AttributeError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"{path} does not describe how its network predicts ({type(error).__name__}: {reason})"
        ) from None
    return Predicting(network, loss)


def part(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The entries of a state dict whose keys begin with a prefix, without it."""
    return {
        key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)
    }
