"""Differences between methods, seed by seed; teachers with several seeds; `--against`."""

import io
from pathlib import Path

import pandas as pd
import pytest
from scipy import stats

from kdnb import InputError, plots
from kdnb.results import tables
from kdnb.results.__main__ import main
from kdnb.results.differences import gains_by_protocol, holm, method_differences
from kdnb.results.frame import COLUMNS
from kdnb.results.teachers import group_teachers

KD, AFD, ALONE = (80.0, 81.0, 83.0), (82.5, 82.0, 86.0), (70.0, 73.0, 72.0)


def row(method, seed, top1, sha="", teacher_seed=0, is_trained=True, recipe="r"):
    """A row of a frame of finished runs."""
    values = dict.fromkeys(COLUMNS, "") | {"dataset": "digits", "network": "wrn_16_1"}
    values |= {"method": method, "mix": method, "seed": seed, "top1": top1, "recipe": recipe}
    values |= {"best_top1": top1, "train_images": 100, "epochs": 1, "parameters": 1, "classes": 10}
    values |= {"epoch_seconds": 1.0, "shared": False, "same_classes_assumed": False}
    values |= {"override_values": {}}
    if method != "none":
        values |= {"teacher": "wrn_16_2 (digits)", "teacher_sha256": sha or "a"}
    values |= {"teacher_is_trained": is_trained and method != "none", "teacher_seed": teacher_seed}
    return values


def frame(*rows):
    return group_teachers(pd.DataFrame(rows, columns=[*COLUMNS]))


@pytest.fixture
def runs():
    methods = {"kd": KD, "afd": AFD, "none": ALONE}
    return frame(*(row(m, seed, v) for m, top1 in methods.items() for seed, v in enumerate(top1)))


def test_any_two_methods_are_compared_seed_by_seed(runs):
    table = method_differences(runs, "kd").set_index("method")
    for method, values in (("afd", AFD), ("none", ALONE)):
        expected = stats.ttest_rel(values, KD)
        interval = expected.confidence_interval(0.95)
        numbers = table.loc[method, ["low", "high", "p"]].tolist()
        assert numbers == pytest.approx([interval.low, interval.high, expected.pvalue])
    assert table.loc["afd", "gain"] == pytest.approx((2.5 + 1 + 3) / 3)
    assert pd.isna(table.loc["kd", "gain"]) and table.loc["kd", "sd"] == pytest.approx(1.5275, 1e-4)


def test_p_values_are_corrected_for_the_rows_of_a_heading(runs):
    assert holm(pd.Series([0.01, 0.04, 0.03])).tolist() == pytest.approx([0.03, 0.06, 0.06])
    assert holm(pd.Series([0.9, None, 0.8])).dropna().tolist() == [1.0, 1.0]
    table = method_differences(pd.concat([runs, runs.assign(dataset="other")]), "kd")
    two_rows = table[(table["dataset"] == "digits") & table["p"].notna()].sort_values("p")
    assert two_rows["p_holm"].iloc[0] == pytest.approx(2 * two_rows["p"].iloc[0])


def test_runs_of_other_recipes_and_teachers_are_not_paired(runs):
    moved = runs.assign(recipe=runs["recipe"].where(runs["method"] != "kd", "another"))
    assert method_differences(moved, "kd")["gain"].isna().all()
    other = runs.assign(teacher_sha256=runs["teacher_sha256"].where(runs["method"] != "kd", "b"))
    assert method_differences(other, "kd").set_index("method")["gain"].isna().tolist() == [
        False,  # labels only have no teacher
        True,
        True,
    ]


def test_teachers_of_several_seeds_are_a_level_of_their_own():
    rows = [row("none", seed, 70.0) for seed in (0, 1)]
    top1 = {("a", 0): (80.0, 81.0), ("b", 1): (82.0, 85.0)}
    for (sha, teacher_seed), values in top1.items():
        rows += [row("kd", seed, value, sha, teacher_seed) for seed, value in enumerate(values)]
    rows += [row("kd", 0, 80.0, "a", is_trained=False)]  # the first teacher, from its file
    rows += [row("kd", 0, 60.0, "z", is_trained=False)]  # another one
    table = method_differences(frame(*rows)).set_index(["method", "teacher_group"])
    kd = table.loc["kd", "a"]
    assert (kd["teachers"], kd["seeds"], kd["top1"]) == (2, 2, 82.0)
    assert kd["sd"] == pytest.approx(((0.5 + 4.5) / 2) ** 0.5)  # within a teacher's students
    assert kd["sd_teachers"] == pytest.approx(pd.Series([80.5, 83.5]).std())
    expected = stats.ttest_1samp([11.0, 13.0], 0).confidence_interval(0.95)
    assert (kd["gain"], kd["low"]) == pytest.approx((12.0, expected.low))
    assert table.loc["kd", "z"]["top1"] == 60.0
    cells = tables.summary_table(frame(*rows))[tables.TOP1].tolist()
    assert "82.00 ± 1.58, over 2 teachers ± 2.12" in cells


def test_a_retrained_teacher_of_the_same_seed_is_another_training():
    rows = [row("kd", seed, 80.0, sha) for seed, sha in enumerate("aab")]
    assert frame(*rows)["teacher_group"].tolist() == ["a", "a", "b"]


def test_the_figure_has_a_mark_per_method_with_an_interval(runs):
    figures = plots.draw_each(plots.gains, gains_by_protocol(runs))
    (figure,) = figures.values()
    assert list(figures) == ["gains-digits"]
    assert len(figure.axes[0].get_yticks()) == 2
    assert plots.gains(method_differences(runs[runs["seed"] == 0]).assign(against="kd")) is None


def test_the_command_prints_tables_of_the_records(capsys):
    arguments = ["--outputs", str(Path(__file__).resolve().parents[2] / "outputs")]
    assert main([*arguments, "--against", "kd", "--csv"]) == 0
    table = pd.read_csv(io.StringIO(capsys.readouterr().out))
    assert {"afd", "dkd"} <= set(table.dropna(subset=["p_holm"])["method"])
    main([*arguments, "--latex"])
    text = capsys.readouterr().out
    assert text.count(r"\toprule") == text.count("% ") - 2 and r"\bfseries 61.11" in text
    main([*arguments, "--against", "afd"])
    assert "gain: over afd" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stopped:
        main([*arguments, "--against", "afdd"])
    assert stopped.value.code == 2
    assert "no finished run has the method 'afdd'" in capsys.readouterr().err


def test_an_empty_frame_is_a_sentence():
    with pytest.raises(InputError, match="there are none"):
        method_differences(frame(), "kd")
