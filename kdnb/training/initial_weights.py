"""The weights that a student begins with, where they are not random."""

from pathlib import Path

from torch import nn

from kdnb.errors import InputError
from kdnb.models import imagenet_model, load_weights, read_metadata, timm_model
from kdnb.runs.run import Run
from kdnb.runs.weights import file_hash
from kdnb.training.teacher import Teacher


def load_initial_weights(student: nn.Module, run: Run, classes: tuple[str, ...]) -> str:
    """Load a run's `student_weights` into a student; returns where its classifier comes from.

    The classifier's are loaded if the file names the same classes, or names none and has as many,
    unless `student_head` is "new".

    Raises InputError for a file that changed since the run was described.
    """
    if run.student_weights_hash == "imagenet":
        model, known_classes = imagenet_model(run.student)
    elif run.student_weights_hash == "pretrained":
        # Their names are not known, but they are not those of another data set of as many classes.
        model, known_classes = timm_model(run.student, run.image_size), ("timm's",)
    else:
        path = Path(run.student_weights)
        if not path.is_file() or file_hash(path) != run.student_weights_hash:
            raise InputError(
                f"student_weights {run.student_weights!r} does not hold the initial weights of "
                f"{run.name}: set it to their file"
            )
        model = load_weights(run.student, path, run.image_size, "student", network_alone=True)
        metadata = read_metadata(path)
        # The classifier of a student that predicts by another one is not trained.
        is_trained = "predictor" not in metadata
        known_classes = (metadata.get("classes") or ()) if is_trained else ("none",)
    state = model.state_dict()
    same_classes, is_assumed = Teacher(model, tuple(known_classes)).same_classes(classes)
    is_new = run.student_head == "new" or not same_classes
    if is_new:
        for key, value in student.state_dict().items():
            if key.rpartition(".")[0] == student.classifier_name:
                state[key] = value
    student.load_state_dict(state)
    if is_new:
        why = "student_head is new" if same_classes else "its weights are of other classes"
        return f"its classifier begins with random weights: {why}"
    if is_assumed:
        return (
            "its initial weights do not name their classes: since there are as many as in the data "
            "set, they are assumed to be the same; student_head new gives it a random classifier"
        )
    return "its classifier is that of student_weights"
