"""Figures of links: which teacher block teaches which student block."""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kdnb.plots.heatmaps import CellValues, heatmap, tick_labels
from kdnb.plots.link_rows import attention_that_differs, link_rows
from kdnb.plots.style import NEUTRAL, PALE, ROLES, Style, figure, legend_below, whole_epochs
from kdnb.plots.text import wrap


def link_matrix(links: np.ndarray, teacher_blocks, student_blocks, title: str = "") -> Figure:
    """Heatmap of the mean attention (T, S), whose rows, or compared columns, sum to one."""
    T, S = links.shape
    rows = link_rows(links)
    heading = f"Mean attention of each {rows.attending} block on the {rows.attended}'s blocks"
    fig, ax = figure(heading, title, max(3.7, 1.6 + 0.27 * T), width=3 + 0.72 * S)
    label = "mean attention (each row sums to 1)"
    if rows.attending == "student":
        label = "mean attention (columns sum to 1)"
    heatmap(ax, links, teacher_blocks, student_blocks, label, show_shapes=True)
    CellValues(ax)
    return fig


def run_links(links, title: str = "") -> Figure | None:
    """`link_matrix` of the last epoch of a run; None for None.

    links: (means (epochs, T, S), teacher blocks, student blocks).
    """
    if links is None:
        return None
    means, *blocks = links
    return link_matrix(means[-1], *blocks, title)


def link_entropy(links: np.ndarray, teacher_blocks, student_blocks, title: str = "") -> Figure:
    """Entropy of each attending block's attention in bits, for links (n, T, S) of n images.

    There are two values: the entropy of the mean links, and the mean entropy of single images.
    """
    rows = link_rows(links)
    blocks, others = rows.order(teacher_blocks, student_blocks)
    max_entropy = np.log2(len(others))
    values = {
        "entropy of the mean links": entropy(rows.values.mean(0)),
        "mean entropy of one image's links": entropy(rows.values).mean(0),
    }
    styles = dict(zip(values, (Style(NEUTRAL, "", "o"), Style(PALE, "", "s")), strict=True))
    heading = f"Entropy of each {rows.attending} block's attention"
    fig, ax = points_by_block(values, styles, blocks, heading, title, rows.attending)
    label = f"uniform over {len(others)} {rows.attended} blocks: {max_entropy:.2f}"
    ax.axhline(max_entropy, color="0.4", linestyle="--", linewidth=1, label=label)
    ax.set(ylabel="entropy (bits)", ylim=(0, 1.05 * max(max_entropy, 0.1)))
    legend_below(fig, ax)
    return fig


def entropy(links: np.ndarray) -> np.ndarray:
    """Entropy of each row of links (..., S) in bits: 0 for a single link, log2(S) if uniform."""
    return -(links * np.log2(np.clip(links, 1e-12, None))).sum(-1)


def link_history(
    links_by_epoch: np.ndarray, teacher_blocks, student_blocks, title: str = "", max_epochs: int = 7
) -> Figure:
    """Links (epochs, T, S) of up to `max_epochs` epochs, and every epoch's distance to the last."""
    n_epochs, T, S = links_by_epoch.shape
    # Geometric steps: most changes are early.
    epochs = np.geomspace(1, n_epochs, min(max_epochs, n_epochs)).round().astype(int)
    epochs = np.unique(epochs).tolist()
    heading = "Mean attention over the epochs, and its difference from the last epoch"
    fig, (above, below) = figure(heading, title, 3.6 + 0.07 * T, parts=(1.3 + 0.07 * T, 1.3))
    panels = above.subplots(1, len(epochs), squeeze=False)[0]
    difference_ax = below.subplots()
    ends = (T - 1, S - 1)  # labels only the first and the last block
    for ax, epoch in zip(panels, epochs, strict=True):
        heatmap(ax, links_by_epoch[epoch - 1], teacher_blocks, student_blocks, label_every=ends)
        ax.set_title(f"epoch {epoch}", fontsize=8)
        ax.set_xlabel("")
        if epoch > 1:
            ax.set(ylabel="", yticks=[])
    above.supxlabel("student block", fontsize=8)
    above.colorbar(panels[0].images[0], ax=panels, label="mean attention", pad=0.01)
    differences = 100 * attention_that_differs(links_by_epoch, links_by_epoch[-1])
    marker = "." if n_epochs < 60 else None
    difference_ax.plot(np.arange(1, n_epochs + 1), differences, color=NEUTRAL, marker=marker)
    difference_ax.set(xlabel="epoch", ylabel="difference from\nlast epoch (%)", ylim=(0, None))
    whole_epochs(difference_ax, np.arange(1, n_epochs + 1))
    return fig


def links_by_class(
    by_class, teacher_blocks, student_blocks, title: str = "", max_classes: int = 12
) -> Figure:
    """Classes whose links differ most from the mean, and the differences of the first two.

    Args:
        by_class: as `analysis.links_by_class` returns it: names (n,), links (n, T, S), mean (T, S),
            deviation (n,) and chance (n,).
        max_classes: maximum number of bars.
    """
    T, S = by_class.mean.shape
    classes = np.argsort(-by_class.deviation)[:max_classes]
    names = [by_class.names[c] for c in classes]
    height = max(3.4, 1.3 + 0.2 * T, 1.3 + 0.22 * len(classes))
    columns = 1 + min(2, len(classes))
    ratios = [1.1, 1, 1][:columns]
    heading = "Classes whose links differ most from the mean"
    fig, (bars, *panels) = figure(heading, title, height, ncols=columns, width_ratios=ratios)
    labels = [wrap(name, 40) for name in names]
    bars.barh(labels, 100 * by_class.deviation[classes], color=NEUTRAL, height=0.7)
    chance = 100 * by_class.chance[classes]
    bars.scatter(chance, range(len(classes)), marker="|", s=90, color="black", zorder=3)
    bars.invert_yaxis()
    bars.tick_params(axis="y", labelsize=8)
    bars.locator_params(axis="x", nbins=4)
    bars.set_xlabel("attention that differs\nfrom the mean's (%)\nblack marks: chance (95 %)")
    differences = by_class.links[classes[:2]] - by_class.mean
    limit = max(np.abs(differences).max(), 1e-6)
    every = (1, S // 5)
    for ax, difference, name in zip(panels, differences, names, strict=False):
        heatmap(ax, difference, teacher_blocks, student_blocks, limit=limit, label_every=every)
        ax.set_title(wrap(name, 20), fontsize=8)
    image = panels[0].images[0]
    fig.colorbar(image, ax=panels, label="attention, class minus mean", pad=0.02)
    return fig


def map_distances(
    distances: Mapping[str, np.ndarray],
    uniform: np.ndarray,
    links,
    teacher_blocks,
    student_blocks,
    title="",
) -> Figure:
    """Distance of the students' maps from the teacher's, weighted by each block's mean links.

    Args:
        distances: {role: (n, T, S)}.
        uniform: (n, T), the distance of a uniform map from the teacher's.
        links: (n, T, S).
    """
    rows = link_rows(links.mean(0))
    means = {role: array.mean(0) for role, array in distances.items()}
    means["a uniform map"] = np.broadcast_to(uniform.mean(0)[:, None], links.shape[1:])
    values = {role: (rows.values * rows.arrange(mean)).sum(1) for role, mean in means.items()}
    blocks, _ = rows.order(teacher_blocks, student_blocks)
    styles = {role: ROLES[role] for role in distances}
    styles["a uniform map"] = Style(NEUTRAL, "", "_")
    heading = "Distance of the students' maps from the teacher's, where they are linked"
    fig, ax = points_by_block(values, styles, blocks, heading, title, rows.attending)
    ax.set_ylabel("map distance (1 − cosine)")
    legend_below(fig, ax)
    return fig


def points_by_block(
    values: Mapping[str, np.ndarray],
    styles: Mapping[str, Style],
    blocks,
    heading: str,
    title: str,
    role: str,
) -> tuple[Figure, Axes]:
    """Draw {name: (blocks,)} as points above each block of a role, joined by a vertical line."""
    fig, ax = figure(heading, title, 3.4)
    x = range(len(blocks))
    array = np.array([*values.values()])
    ax.vlines(x, array.min(0), array.max(0), color="0.75", zorder=1)
    for name, style in styles.items():
        area = 200 if style.marker == "_" else None  # wide enough to be seen behind other marks
        ax.scatter(x, values[name], area, marker=style.marker, color=style.color, label=name)
    ax.set_xticks(x, tick_labels(blocks), fontsize=8)
    ax.set(xlabel=f"{role} block", ylim=(0, 1.05 * array.max()))
    return fig, ax
