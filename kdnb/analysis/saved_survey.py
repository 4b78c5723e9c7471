"""The survey of a run's test images, saved in the run's folder and read the second time."""

import contextlib
import hashlib
import io
import json

import numpy as np

from kdnb.analysis.compare import Predictions
from kdnb.analysis.networks import Networks
from kdnb.analysis.survey import Survey, survey_images
from kdnb.errors import InputError
from kdnb.models import fingerprint
from kdnb.runs.files import read_arrays, write_atomically
from kdnb.runs.run import Run

FILE = "survey.npz"
VERSION = 1  # of what is computed: a survey of another one is made anew


def survey_of_run(run: Run, networks: Networks) -> Survey:
    """The survey of `survey_images`. It is read if it was made of the same weights and images.

    A folder that cannot be written costs the time of the survey, no more.
    """
    key = survey_key(run, networks)
    path = run.folder / FILE
    with contextlib.suppress(InputError, KeyError):  # missing, damaged, or of another version
        arrays = read_arrays(path)
        if str(arrays["key"]) == key:
            print(f"read from {path}: the survey of the same weights and images")
            return from_arrays(arrays, networks)
    survey = survey_images(networks)
    data = io.BytesIO()
    np.savez(data, key=np.array(key), **as_arrays(survey))
    with contextlib.suppress(InputError):
        write_atomically(path, data.getvalue())
    return survey


def survey_key(run: Run, networks: Networks) -> str:
    """A hash of the weights of all networks, and of the images that they see."""
    loader = networks.loader
    models = {**networks.models, "links": networks.link_loss}
    facts = {name: fingerprint(model) for name, model in models.items()}
    facts |= {"version": VERSION, "dataset": run.dataset, "data": run.data_hash}
    facts |= {"size": loader.size, "crop": loader.test_crop}
    facts |= {"mean": loader.images.mean, "std": loader.images.std}
    facts |= {"teacher": [loader.teacher_size, loader.teacher_stats]}
    facts |= {"labels": loader.images.labels.tolist()}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def as_arrays(survey: Survey) -> dict[str, np.ndarray]:
    """The arrays of a survey by name, such as "distances.baseline"."""
    arrays = {"links": survey.links, "uniform_map_distance": survey.uniform_map_distance}
    arrays |= {f"distances.{name}": array for name, array in survey.distances.items()}
    return arrays | {f"logits.{name}": array for name, array in survey.predictions.logits.items()}


def from_arrays(arrays: dict[str, np.ndarray], networks: Networks) -> Survey:
    """The survey of `as_arrays`. Raises KeyError for an array that is missing."""
    images = networks.loader.images
    distances, logits = (
        {name.removeprefix(kind): array for name, array in arrays.items() if name.startswith(kind)}
        for kind in ("distances.", "logits.")
    )
    predictions = Predictions(images.classes, images.labels.numpy(), logits)
    return Survey(arrays["links"], distances, arrays["uniform_map_distance"], predictions)
