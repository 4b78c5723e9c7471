"""Controls of links, and their correlation with the similarity of blocks."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import quiet, tiny, tiny_run
from test_survey import networks

from kdnb import analysis, train
from kdnb.analysis.links import (
    link_controls,
    link_correlations,
    links_of_methods,
    similarity_panels,
)
from kdnb.losses.afd import energy


def test_controls_are_links_whose_rows_sum_to_one(networks):
    survey = analysis.survey_images(networks)
    controls = link_controls(networks, survey, [])
    assert all(links.sum(1) == pytest.approx(np.ones(6), rel=1e-4) for links in controls.values())
    difference = controls["the teacher sees another image"] - controls["this run"]
    assert np.abs(difference).max() > 1e-4


def test_the_nearness_of_maps_is_relative_to_a_uniform_map(networks):
    survey = analysis.survey_images(networks)
    nearness = similarity_panels(survey, {})["nearness of maps, distilled"]
    with torch.no_grad():
        feats = networks.models["teacher"](networks.loader.take(range(22)).images).feats
    maps = [F.normalize(energy(feat).flatten(1), dim=1) for feat in feats]
    uniform = np.array([float((1 - m.mean(1) * m.shape[1] ** 0.5).mean()) for m in maps])
    expected = 1 - survey.distances["distilled"].mean(0) / uniform[:, None]
    assert nearness == pytest.approx(expected.clip(0, 1), abs=1e-3) and nearness.shape == (6, 3)


def test_links_of_several_seeds_are_correlated_and_averaged(tmp_path):
    runs = [train(tiny_run(tmp_path, seed=seed), log=quiet) for seed in range(2)]
    train(runs[0].baseline, log=quiet)
    # The other run has no baseline, and none is trained for it.
    assert link_correlations(runs).index.tolist() == ["seed 0"]
    train(runs[1].baseline, log=quiet)
    table = link_correlations(runs)
    assert table.index.tolist() == ["seed 0", "seed 1", "mean, 95 %"]
    assert table.iloc[2].str.contains(", ").all()
    networks = analysis.load_run(runs[0])
    survey = analysis.survey_images(networks)
    controls = link_controls(networks, survey, runs)
    links = np.stack([run.links_by_epoch[0][-1] for run in runs])
    np.testing.assert_allclose(controls["mean of 2 seeds"], links.mean(0))
    np.testing.assert_allclose(controls["their standard deviation"], links.std(0, ddof=1))
    (runs[1].folder / "history.npz").write_bytes(b"damaged")
    with pytest.warns(UserWarning, match="left out of the controls: .*history.npz is damaged"):
        assert next(iter(link_controls(networks, survey, runs))) == "this run"


def test_links_of_another_method_are_means_over_its_seeds(tmp_path):
    """Of runs that differ in method and seed alone: not in the number of epochs."""
    run = train(tiny_run(tmp_path, method="ce + semckd:1", epochs=1), log=quiet)
    others = [train(tiny_run(tmp_path, epochs=1, seed=seed), log=quiet) for seed in (0, 1)]
    train(tiny_run(tmp_path, epochs=2), log=quiet)
    train(tiny_run(tmp_path, epochs=1, method="kd"), log=quiet)  # it has no links
    networks = analysis.load_run(run)
    panels = links_of_methods(networks, run)
    assert list(panels) == ["ce + semckd", "afd"]
    links = run.history["semckd.links"][-1]
    assert np.array_equal(panels["ce + semckd"], links)
    assert links.sum(0) == pytest.approx(np.ones(3), abs=1e-5)
    expected = np.mean([other.history["afd.links"][-1] for other in others], axis=0)
    np.testing.assert_allclose(panels["afd"], expected)
    controls = link_controls(networks, analysis.survey_images(networks), [run])
    assert all(c.sum(0) == pytest.approx(np.ones(3), abs=1e-4) for c in controls.values())


def test_correlations_of_links_train_nothing(tmp_path, monkeypatch):
    run = train(tiny_run(tmp_path, epochs=1), log=quiet)
    train(run.baseline, log=quiet)
    (run.baseline.folder / "result.json").unlink()  # as if its weights were written just now
    monkeypatch.setattr("kdnb.analysis.networks.train", None)
    assert link_correlations([run]).empty
