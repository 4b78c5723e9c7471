"""The sentences that say what a run shows; no comparison lacks an interval."""

import numpy as np
import pandas as pd
import pytest

from kdnb.analysis import LinksByClass, Survey, findings
from kdnb.analysis.boxes import BoxEnergy
from kdnb.analysis.compare import Predictions

BLOCKS = [("1.1", (8, 8, 8)), ("1.2", (8, 8, 8)), ("2.1", (8, 4, 4))]


def predictions(**correct):
    """Predictions of two classes, of which the first is right, from {network: [right or not]}."""
    n = len(next(iter(correct.values())))
    logits = {name: np.stack([right, ~right], 1) * 9.0 for name, right in correct.items()}
    return Predictions(("a", "b"), np.zeros(n, int), logits)


def first(count, n=1000):
    """The first `count` of n are true."""
    return np.arange(n) < count


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.1, 1.8, "afd is above kd by 0.9 points, interval [+0.1, +1.8]"),
        (-1.8, -0.1, "afd is below kd by 0.9 points, interval [-1.8, -0.1]"),
        (-0.1, 1.9, "no difference between afd and kd can be seen: +0.9 points, "),
        (0.0, 1.8, "no difference between afd and kd can be seen: +0.9 points, "),
        (np.nan, np.nan, "no difference between afd and kd can be seen: +0.9 points, "),
    ],
)
def test_a_difference_is_claimed_only_if_its_interval_has_no_zero(low, high, expected):
    gain = -0.9 if high < 0 else 0.9
    assert findings.versus("afd", "kd", gain, low, high, "points").startswith(expected)


def test_links_are_counted_and_groups_without_a_first_choice_are_named():
    mean = np.array([[0.9, 0.1, 0.0], [0.5, 0.3, 0.2], [0.2, 0.8, 0.0]])
    assert findings.links(mean, BLOCKS, BLOCKS) == (
        "2 of 3 teacher blocks give more than half of their attention to one student block; "
        "no block's first choice is in group 2."
    )
    assert "every group" in findings.links(np.eye(3), BLOCKS, BLOCKS)


def test_links_have_settled_when_no_later_epoch_differs_by_a_tenth():
    end, half = np.eye(2), np.full((2, 2), 0.5)
    text = findings.link_history(np.stack([half, end, half, end, end]))
    assert text.startswith("From epoch 4 of 5 on") and text.endswith("it is 50%.")
    assert findings.link_history(np.stack([end, end])).startswith("From epoch 1 of 2 on")
    assert "no change" in findings.link_history(end[None])


def test_other_methods_agree_on_the_strongest_teacher_block():
    """Of each student block that both compare: SemCKD those that end a stage."""
    afd = np.array([[0.1, 0.9, 0, 0], [0, 0.2, 0.1, 0.7], [0, 0, 1, 0], [0, 0, 0.4, 0.6]])
    semckd = np.zeros((4, 4))
    semckd[[1, 3], 1], semckd[[1, 3], 3] = [0.8, 0.2], [0.1, 0.9]
    text = findings.link_agreement({"semckd": semckd, "afd": afd})
    assert text.endswith("both compare: 1 of 2 with afd (1.0 by a choice at random).")
    assert "no other method" in findings.link_agreement({"afd": afd})


def test_controls_and_similarity_count_the_runs_own_links():
    clear, vague = np.array([[0.9, 0.1], [0.2, 0.8]]), np.full((2, 2), 0.5)
    panels = {"this run": clear, "untrained attention": vague, "another image": clear}
    assert findings.controls(panels) == (
        "Of 2 clear links of this run, also clear: 0 in “untrained attention”, 2 in “another "
        "image”."
    )
    assert "none to check" in findings.controls(panels | {"this run": vague})
    text = findings.similarity({"links": clear, "CKA with the baseline": clear[::-1]})
    assert text.endswith("0 by CKA with the baseline, 1.0 by a choice at random.")


@pytest.mark.parametrize(
    ("count", "words"), [(2, "no more than chance"), (12, ", more than chance")]
)
def test_classes_beyond_their_marks_are_weighed_against_chance(count, words):
    deviation, chance = np.where(np.arange(40) < count, 2.0, 0.0), np.ones(40)
    by_class = LinksByClass(["c"] * 40, np.zeros(0), np.zeros(0), deviation, chance)
    text = findings.class_links(by_class)
    assert text.startswith(f"{count} of 40 classes") and words in text and "up to 5" in text


@pytest.mark.parametrize(("shift", "word"), [(-0.1, "below"), (0.1, "above"), (0.0, "no diff")])
def test_maps_and_boxes_are_compared_over_images(shift, word):
    noise = np.random.default_rng(0).normal(0, 0.02, (200, 1, 1))
    noise -= noise.mean()
    baseline = np.full((200, 2, 2), 0.5)
    distances = {"baseline": baseline, "distilled": baseline + shift + noise}
    survey = Survey(np.full((200, 2, 2), 0.5), distances, np.zeros((200, 2)), None)
    text = findings.map_distances(survey).lower()
    assert word in text and "interval [" in text
    excess = {role: values[:, 0] for role, values in distances.items()}
    text = findings.boxes(BoxEnergy(excess, {}, {})).lower()
    assert word in text and "interval [" in text
    assert findings.boxes(None) == "This data set has no boxes."


def test_accuracies_and_their_change_have_intervals():
    found = predictions(baseline=first(500), distilled=first(560))
    assert findings.accuracies(found).startswith("1,000 test images; right: baseline 50.0 [46.9,")
    assert findings.change(found, "afd") == (
        "afd is above labels only by 6.0 points, interval [+4.5, +7.5], McNemar's p = 1.7e-18; "
        "1,000 test images of one seed."
    )


def test_the_largest_terms_are_named():
    shares = pd.DataFrame({"ce": [0.9, 0.3], "afd": [0.1, 0.7]})
    norms = pd.DataFrame({"ce": [1.0, 2.5], "afd": [3.0, 0.5]})
    assert findings.loss_terms(shares, norms) == (
        "afd is 70% of the loss in the last epoch; after the last step the largest gradient is "
        "that of ce, with a norm of 2.5."
    )


def test_methods_are_compared_with_labels_only_by_their_intervals_over_seeds():
    columns = ["method", "gain", "low", "high", "seeds"]
    rows = [("none", np.nan, np.nan, np.nan, 5), ("afd", 0.9, 0.1, 1.8, 5), ("at", 1, -1, 3, 5)]
    text = findings.methods(pd.DataFrame(rows, columns=columns))
    assert text == (
        "afd is above labels only by 0.9 points, interval [+0.1, +1.8]; no difference to labels "
        "only can be seen for at (+1.0 points, interval [-1.0, +3.0]); 5 seeds."
    )
    one_seed = pd.DataFrame([("kd", 3.0, np.nan, np.nan, 1)], columns=columns)
    assert findings.methods(one_seed).startswith("One seed has no interval")


def test_the_cheapest_and_the_dearest_step_are_named():
    table = pd.DataFrame({"method": ["none", "crd", "kd"], "times": [1.0, 2.5, 1.25]})
    assert "from 1.25 (kd) to 2.50 times (crd)" in findings.costs(table)
    assert "no other method" in findings.costs(table[:1])


def test_the_student_that_agrees_most_is_compared_with_the_second():
    found = predictions(teacher=first(1000), at=first(500), kd=first(700), crd=first(600))
    text = findings.agreement(found)
    assert text.startswith(
        "The agreement of kd with the teacher is above that of crd (the second) by"
    )
    near = predictions(teacher=first(1000), at=first(500), kd=first(501))
    assert findings.agreement(near).startswith("No difference between the agreement of kd")
    assert "other classes" in findings.agreement(predictions(at=first(5)))
