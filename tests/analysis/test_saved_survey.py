"""The survey of a run is saved, and read only for the same weights and images."""

import numpy as np
import torch
from helpers import quiet, tiny, tiny_run

from kdnb import analysis, train
from kdnb.analysis import saved_survey
from kdnb.analysis.saved_survey import FILE, survey_of_run


def test_a_survey_is_made_once_for_the_same_weights_and_images(tiny, tmp_path, monkeypatch):
    run = train(tiny_run(tmp_path, teacher_epochs=1, epochs=1), log=quiet)
    train(run.baseline, log=quiet)
    networks = analysis.load_run(run)
    first = survey_of_run(run, networks)
    with monkeypatch.context() as patch:
        patch.setattr(saved_survey, "survey_images", None)
        second = survey_of_run(run, networks)
        np.testing.assert_array_equal(second.links, first.links)
        for name in ("baseline", "distilled"):
            np.testing.assert_array_equal(second.distances[name], first.distances[name])
        for name, logits in first.predictions.logits.items():
            np.testing.assert_array_equal(second.predictions.logits[name], logits)
    with torch.no_grad():
        networks.models["baseline"].conv1.weight.mul_(2)
    changed = survey_of_run(run, networks)
    assert (changed.distances["baseline"] != first.distances["baseline"]).any()
    (run.folder / FILE).write_bytes(b"damaged")
    np.testing.assert_array_equal(survey_of_run(run, networks).links, changed.links)
