"""How networks differ: numbers that can be worked out by hand."""

import json
import re

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import image_set
from drawing import crowded
from helpers import quiet, tiny, tiny_run
from safetensors.torch import save_file

from kdnb import InputError, analysis, create_model, plots, train
from kdnb.analysis import compare, method_comparison
from kdnb.analysis.compare import Predictions
from kdnb.data.loader import Loader
from kdnb.results.intervals import interval


def predictions_of(**logits):
    labels = np.array([0, 0, 1, 1])
    return Predictions(
        ("a", "b"), labels, {name: np.array(rows, np.float32) for name, rows in logits.items()}
    )


SURE = [[9, 0], [9, 0], [0, 9], [0, 9]]
UNSURE = [[1, 0], [0, 1], [0, 1], [0, 1]]


def test_a_difference_has_an_interval_and_a_test():
    before, after = np.zeros(100, bool), np.zeros(100, bool)
    before[:12] = True
    after[10:30] = True  # ten are lost, eighteen are gained, two are correct in both
    d = compare.difference(before, after)
    assert d.gain == 8
    assert d.p == pytest.approx(0.18493, abs=1e-5)  # twice the binomial tail of 18 of 28
    assert d.low < 0 < d.gain < d.high and d.high - d.low == pytest.approx(20.47, abs=0.01)
    assert compare.difference(before, before)[::3] == (0, 1)
    assert compare.difference(np.zeros(100, bool), np.arange(100) < 12).p < 0.001


def test_the_interval_of_a_positive_quantity_is_positive():
    values = np.array([0.01, 0.02, 3.0])
    ends = re.search(r"\[(.+), (.+)\]", interval(values, positive=True)).groups()
    low, high = map(float, ends)
    assert 0 < low < values.mean() < high
    assert interval(values) == "1.0 [-3.3, 5.3]"  # as many decimals as its width has
    many = np.random.default_rng(0).uniform(0.5, 1, 10_000)  # then nothing changes
    assert interval(many, positive=True) == interval(many)


def test_the_interval_of_a_difference_adds_half_an_image_to_each_cell():
    """Agresti and Min (2005): Wald's interval of a two by two table with 0.5 in each cell."""
    before, after = np.arange(40) < 4, (np.arange(40) >= 2) & (np.arange(40) < 20)
    d = compare.difference(before, after)
    n, gained, lost = 42, 16.5 / 42, 2.5 / 42  # images: 16 gained, 2 lost
    half = 1.959964 * ((gained + lost - (gained - lost) ** 2) / n) ** 0.5
    ends = 100 * (gained - lost - half), 100 * (gained - lost + half)
    assert (d.low, d.high) == pytest.approx(ends, rel=1e-6)


def test_a_calibrated_network_has_no_calibration_error():
    predictions = predictions_of(sure=SURE, unsure=UNSURE)
    assert compare.calibration(predictions, "sure")[1] == pytest.approx(0, abs=1e-3)
    table, ece = compare.calibration(predictions, "unsure")
    sigmoid = 1 / (1 + np.exp(-1))
    assert table.to_dict("records") == [
        {"confidence": pytest.approx(sigmoid), "accuracy": 0.75, "images": 4}
    ]
    assert ece == pytest.approx(0.75 - sigmoid)


def test_fidelity_compares_with_the_teacher_if_it_knows_the_classes():
    table = compare.fidelity(predictions_of(teacher=SURE, same=SURE, unsure=UNSURE))
    assert (
        table.loc["same", "KL from the teacher"] == "0 [0, 0]"
        and table.loc["teacher"].iloc[-1] == ""
    )
    assert table["agreement with the teacher (%)"].tolist() == [
        "",
        "100 [51.0, 100.0]",
        "75 [30.1, 95.4]",
    ]
    assert "KL from the teacher" not in compare.fidelity(predictions_of(unsure=UNSURE))


def test_classes_and_their_correlations():
    predictions = predictions_of(teacher=SURE, unsure=UNSURE)
    rows = compare.class_accuracy(predictions, "unsure", "teacher").set_index("class")
    assert (
        rows["unsure"].tolist() == [50, 100]
        and rows["gain"].tolist() == [50, 0]
        and rows["images"].tolist() == [2, 2]
    )
    assert (
        np.abs(compare.class_correlations(predictions)["unsure"]).max() < 1e-6
    )  # of two classes both correlate with -1


def test_cka_is_one_for_the_same_blocks_and_small_for_unrelated_ones():
    loader = Loader(image_set(n=100), 50, 8)
    teacher = create_model("wrn_16_1", 4).eval()
    similarity = compare.cka({"teacher": teacher, "same": teacher}, loader)["same"]
    assert similarity.shape == (6, 6) and np.diag(similarity) == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(similarity, similarity.T, atol=1e-5)
    predictions = compare.predict({"teacher": teacher}, loader)
    images = loader.take(range(100)).images
    with torch.no_grad():
        np.testing.assert_allclose(
            predictions.logits["teacher"], teacher(images).logits, rtol=1e-4, atol=1e-5
        )
    rng = torch.Generator().manual_seed(0)
    noise = [compare.centred_grams((torch.randn(50, 3, 8, 8, generator=rng),)) for _ in range(2)]
    assert abs(float((noise[0] * noise[1]).sum() / (noise[0].norm() * noise[1].norm()))) < 0.1


def test_centred_grams_estimate_hsic_unbiased():
    """Against the estimator as it is written down (Song et al., JMLR 2012, eq. 4)."""
    x, y = (
        torch.randn(7, 3, 2, 2, dtype=torch.float64),
        torch.randn(7, 5, 1, 1, dtype=torch.float64),
    )
    K, L = ((v.flatten(1) @ v.flatten(1).T).fill_diagonal_(0) for v in (x, y))
    n, one = 7, torch.ones(7, dtype=torch.float64)
    trace, sums = (K * L).sum(), (one @ K @ one) * (one @ L @ one) / ((n - 1) * (n - 2))
    expected = (trace + sums - 2 / (n - 2) * (one @ K @ L @ one)) / (n * (n - 3))
    hsic = (compare.centred_grams((x,)) * compare.centred_grams((y,))).sum() / (n * (n - 3))
    assert float(hsic) == pytest.approx(float(expected), rel=1e-5)


def test_a_teacher_of_other_classes_is_compared_by_its_maps_alone(tmp_path):
    strangers = {"kdnb": json.dumps({"classes": ["cat", "dog", "c", "d", "e"]})}
    file = tmp_path / "teacher.safetensors"
    save_file(create_model("wrn_16_1", 5).state_dict(), file, strangers)
    runs = {}
    for method in ("none", "at"):
        of = {"teacher_weights": str(file)} if method == "at" else {}
        runs[method] = train(tiny_run(tmp_path, method=method, epochs=1, **of), quiet)
    networks = analysis.load_networks(runs)
    assert [*networks.models] == ["teacher", "none", "at"] and [*networks.classifiers] == [
        "none",
        "at",
    ]
    predictions = compare.predict(networks.classifiers, networks.loader)
    assert (
        "KL from the teacher" not in compare.fidelity(predictions)
        and compare.class_correlations(predictions) == {}
    )
    assert plots.correlation_changes({}) is None
    assert [m.shape for m in compare.cka(networks.models, networks.loader).values()] == [(6, 3)] * 2


def test_methods_that_cannot_be_compared_are_named_before_anything_is_trained(tmp_path):
    parameters = {"dataset": "tiny", "seeds": 1, "outputs": str(tmp_path)}
    with pytest.raises(
        InputError, match="methods is 'none': name one or more that its teacher can serve, of afd, "
    ):
        method_comparison.runs_from_notebook(parameters | {"methods": "none"})
    file = tmp_path / "teacher.safetensors"
    save_file(create_model("wrn_16_1", 5).state_dict(), file)
    with pytest.raises(
        InputError, match="kd compares predictions, and this teacher knows other classes"
    ):
        method_comparison.runs_from_notebook(
            parameters | {"methods": "at,kd", "teacher_weights": str(file)}
        )
    runs = method_comparison.runs_from_notebook(
        parameters | {"methods": "at,fitnet", "teacher_weights": str(file)}
    )
    assert [*runs] == ["none", "fitnet", "at"] and not (tmp_path / "runs").exists()


def test_nothing_sticks_out_of_the_figures_of_a_comparison():
    rng, title = (
        np.random.default_rng(0),
        "stanford40, resnet18, afd, from resnet18, epochs 30, image_size 64, seed 2",
    )
    terms = ["ce", "kd", "afd"]
    logits = {role: rng.normal(size=(600, 40)) for role in ("teacher", "baseline", "distilled")}
    classes = tuple(f"looking_through_a_{i}" for i in range(40))
    predictions = Predictions(classes, rng.integers(40, size=600), logits)
    methods = ["none", "at", "crd", "afd"]
    runs = pd.DataFrame(
        {
            "line": methods * 2,
            "order": [1, 5, 9, 2] * 2,
            "top1": rng.normal(70, 1, 8),
            "study": "this study",
        }
    )
    costs = pd.DataFrame({"method": methods, "times": [1.0, 1.5, 1.9, 2.0]})
    shares = pd.DataFrame([[0.3, 0.3, 0.4]] * 30, columns=terms)
    norms = pd.DataFrame([[1, 2, 3]] * 2, ["first step", "last step"], terms)
    figures = [
        plots.reliability({name: compare.calibration(predictions, name) for name in logits}, title),
        plots.class_changes(compare.class_accuracy(predictions, "baseline", "distilled"), title),
        plots.loss_terms(shares, norms, title),
        plots.correlation_changes({m: rng.normal(size=(40, 40)) for m in methods}, title),
        plots.accuracy_and_cost(runs, costs, title),
    ]
    assert [crowded(fig) for fig in figures] == [[]] * 5


def test_a_run_without_a_teacher_has_no_teacher_table(tmp_path):
    with pytest.raises(InputError, match="method 'none' has no teacher: choose one that has"):
        analysis.teacher_table(tiny_run(tmp_path, method="none"))
