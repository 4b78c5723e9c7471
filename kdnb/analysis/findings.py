"""What a run shows, in one sentence per question: arrays in, fixed words out.

Numbers that are counted on this run's own arrays are stated as they are. Whatever compares two
networks or methods has a 95 % interval; if it contains 0, the sentence says that no difference can
be seen.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy import stats

from kdnb.analysis.boxes import BoxEnergy
from kdnb.analysis.compare import Predictions
from kdnb.analysis.survey import LinksByClass, Survey
from kdnb.analysis.wording import mean_interval, plural, sentence, versus
from kdnb.models import Block
from kdnb.plots.link_rows import attention_that_differs, link_rows
from kdnb.results.frame import LABELS_ONLY
from kdnb.results.intervals import difference, share

CLEAR = 0.5  # attention above which a teacher block is said to be linked with one student block
SETTLED = 0.1  # share of attention that differs, below which links count as those of the last epoch


def accuracies(predictions: Predictions) -> str:
    """The accuracy of each network on the test images, with its interval."""
    parts = [f"{name} {share(predictions.correct(name))} %" for name in predictions.logits]
    return sentence(f"{len(predictions.labels):,} test images; right: {', '.join(parts)}")


def links(
    mean: np.ndarray, teacher_blocks: Sequence[Block], student_blocks: Sequence[Block]
) -> str:
    """How many blocks have a clear link, and which groups of the other network have none.

    mean: (T, S), rows, or compared columns, sum to one.
    """
    rows = link_rows(mean)
    _, others = rows.order(teacher_blocks, student_blocks)
    clear = rows.values.max(1) > CLEAR
    targets = rows.values.argmax(1)
    linked = {others[i][0].split(".")[0] for i in targets}
    groups = dict.fromkeys(name.split(".")[0] for name, _ in others)
    free = [group for group in groups if group not in linked]
    text = (
        f"{clear.sum()} of {len(clear)} {rows.attending} blocks give more than half of their "
        f"attention to one {rows.attended} block; "
    )
    if not free:
        text += f"every group of the {rows.attended} is the first choice of some block"
        return sentence(text)
    return sentence(text + f"no block's first choice is in {plural('group', free)}")


def link_history(by_epoch: np.ndarray) -> str:
    """From which epoch on the links (epochs, T, S) are those of the last, but for a tenth."""
    if len(by_epoch) < 2:
        return "There is one epoch: no change of the links can be seen."
    differs = attention_that_differs(by_epoch, by_epoch[-1])
    unsettled = np.flatnonzero(differs >= SETTLED)
    first = int(unsettled[-1]) + 2 if len(unsettled) else 1
    return (
        f"From epoch {first} of {len(by_epoch)} on, less than {SETTLED:.0%} of the attention is on "
        f"other links than in the last epoch; in the first epoch it is {differs[0]:.0%}."
    )


def controls(panels: Mapping[str, np.ndarray]) -> str:
    """How many of the run's clear links are clear in each control.

    panels: {name: (T, S)}, with "this run", as `links.link_controls` returns them.
    """
    is_clear = panels["this run"] > CLEAR
    if not is_clear.any():
        return "No link has more than half of a block's attention: there is none to check."
    others = [name for name in panels if name not in ("this run", "their standard deviation")]
    parts = [f"{(panels[name] > CLEAR)[is_clear].sum()} in “{name}”" for name in others]
    return f"Of {is_clear.sum()} clear links of this run, also clear: {', '.join(parts)}."


def link_agreement(panels: Mapping[str, np.ndarray]) -> str:
    """For how many student blocks other methods have the same strongest teacher block.

    panels: {method: (T, S)}, the run's own first, as `links.links_of_methods` returns them.
    """
    (name, links), *others = panels.items()
    if not others:
        return f"There is no other method with links between the networks of {name}."
    own = link_rows(links)
    parts = []
    for other, values in others:
        rows = link_rows(values)
        t, s = np.intersect1d(own.teacher, rows.teacher), np.intersect1d(own.student, rows.student)
        same = (links[t][:, s].argmax(0) == values[t][:, s].argmax(0)).sum()
        chance = len(s) / len(t)
        parts.append(f"{same} of {len(s)} with {other} ({chance:.1f} by a choice at random)")
    return (
        f"Student blocks that {name} links most strongly with the same teacher block as another "
        f"method, among the blocks that both compare: {', '.join(parts)}."
    )


def similarity(panels: Mapping[str, np.ndarray]) -> str:
    """For how many blocks the strongest link is with the most similar block, by CKA.

    panels: as `links.similarity_panels` returns them.
    """
    rows = link_rows(panels["links"])
    choice = rows.values.argmax(1)
    parts = [
        f"{(rows.arrange(values).argmax(1) == choice).sum()} by {name}"
        for name, values in panels.items()
        if name.startswith("CKA")
    ]
    expected = len(choice) / rows.values.shape[1]
    return (
        f"Of {len(choice)} {rows.attending} blocks, this many have their strongest link with the "
        f"most similar {rows.attended} block: {', '.join(parts)}, {expected:.1f} by a choice at "
        "random."
    )


def class_links(by_class: LinksByClass) -> str:
    """How many classes pass the 95 % quantile of random images, and whether chance explains it."""
    n = len(by_class.names)
    count = int((by_class.deviation > by_class.chance).sum())
    most = int(stats.binom.ppf(0.975, n, 0.05))
    verdict = "more than" if count > most else "no more than"
    return (
        f"{count} of {n} classes have other links than 95 % of random images, {verdict} chance "
        f"explains (up to {most})."
    )


def map_distances(survey: Survey) -> str:
    """Whether the distilled student's maps are nearer to the linked teacher maps, over images."""
    rows = link_rows(survey.links.mean(0))
    per_image = {
        role: (rows.arrange(distances) * rows.values).sum(-1).mean(-1)
        for role, distances in survey.distances.items()
    }
    gain = mean_interval(per_image["distilled"] - per_image["baseline"])
    subjects = "the distance of the distilled student's maps from the teacher's", "the baseline's"
    return sentence(versus(*subjects, *gain, "(1 − cosine)", digits=3))


def boxes(energy: BoxEnergy | None) -> str:
    """Whether the distilled student's deepest maps have more energy in the boxes, over images."""
    if energy is None:
        return "This data set has no boxes."
    deepest = {role: 100 * excess[:, -1] for role, excess in energy.excess.items()}
    gain = mean_interval(deepest["distilled"] - deepest["baseline"])
    subjects = "the energy in the box of the distilled student's deepest maps", "the baseline's"
    return sentence(versus(*subjects, *gain, "points"))


def change(predictions: Predictions, name: str) -> str:
    """Whether the distilled student, called `name`, is more accurate than the baseline."""
    found = difference(predictions.correct("baseline"), predictions.correct("distilled"))
    text = versus(name, LABELS_ONLY, found.gain, found.low, found.high, "points")
    images = f"{len(predictions.labels):,} test images of one seed"
    return sentence(f"{text}, McNemar's p = {found.p:.2g}; {images}")


def loss_terms(shares: pd.DataFrame, norms: pd.DataFrame) -> str:
    """The largest term of the loss in the last epoch, and that with the largest gradient."""
    last, norm = shares.iloc[-1], norms.iloc[-1]
    text = f"{last.idxmax()} is {last.max():.0%} of the loss in the last epoch"
    return sentence(
        f"{text}; after the last step the largest gradient is that of {norm.idxmax()}, "
        f"with a norm of {norm.max():.2g}"
    )


def methods(differences: pd.DataFrame) -> str:
    """Each method's difference to labels only, as its interval over seeds says.

    Methods without a visible difference share one clause.

    differences: rows of `kdnb.results.differences.method_differences`.
    """
    rows = differences[differences["method"] != "none"]
    known = rows.dropna(subset=["low"])
    if known.empty:
        return "One seed has no interval: no method can be said to be better than labels only."
    is_clear = (known["low"] > 0) | (known["high"] < 0)
    parts = [
        versus(row.method, LABELS_ONLY, row.gain, row.low, row.high, "points")
        for row in known[is_clear].itertuples()
    ]
    if others := [
        f"{row.method} ({row.gain:+.1f} points, interval [{row.low:+.1f}, {row.high:+.1f}])"
        for row in known[~is_clear].itertuples()
    ]:
        parts.append(f"no difference to {LABELS_ONLY} can be seen for {', '.join(others)}")
    seeds = sorted(set(known["seeds"]))
    return sentence(f"{'; '.join(parts)}; {' or '.join(map(str, seeds))} seeds")


def costs(table: pd.DataFrame) -> str:
    """The cheapest and the dearest step, in steps of the baseline; as measured once, here."""
    rows = table[table["method"] != "none"].sort_values("times")
    if rows.empty:
        return "There is no other method to compare."
    first, last = rows.iloc[0], rows.iloc[-1]
    return (
        f"As timed here, a step takes from {first['times']:.2f} ({first['method']}) to "
        f"{last['times']:.2f} times ({last['method']}) the time of the baseline's."
    )


def agreement(predictions: Predictions, teacher: str = "teacher") -> str:
    """Which student agrees with the teacher most often, compared with the second on each image."""
    if teacher not in predictions.logits:
        return "The teacher knows other classes: no agreement can be measured."
    same = {
        name: predictions.top1(name) == predictions.top1(teacher)
        for name in predictions.logits
        if name != teacher
    }
    if len(same) < 2:
        return "There is no other student to compare."
    first, second = sorted(same, key=lambda name: same[name].mean(), reverse=True)[:2]
    found = difference(same[second], same[first])
    parts = f"the agreement of {first} with the teacher", f"that of {second} (the second)"
    return sentence(versus(*parts, found.gain, found.low, found.high, "points"))
