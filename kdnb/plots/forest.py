"""Differences of many methods with their intervals, one below the other: a forest plot."""

import numpy as np
import pandas as pd

from kdnb.plots.style import NEUTRAL, PALE, NotebookFigure, figure


def gains(table: pd.DataFrame, title: str = "") -> NotebookFigure | None:
    """Each method's gain over another one with its 95 % interval; None if no row has an interval.

    Args:
        table: a row per training, with the columns training (its name), gain, low, high (percentage
            points), p_holm (p corrected for the number of rows) and against (what it is compared
            with).
    """
    rows = table.dropna(subset=["low"]).reset_index(drop=True)
    if rows.empty:
        return None
    heading = f"Gain over {rows['against'][0]}, seed by seed"
    fig, ax = figure(heading, title, 1.3 + 0.26 * len(rows), 7)
    errors = np.abs([rows["gain"] - rows["low"], rows["high"] - rows["gain"]])
    colours = np.where(rows["p_holm"] < 0.05, "black", NEUTRAL)
    ax.errorbar(rows["gain"], rows.index, xerr=errors, fmt="none", color=PALE, linewidth=2)
    ax.scatter(rows["gain"], rows.index, color=colours, s=22, zorder=3)
    ax.axvline(0, color="0.5", linestyle="--", linewidth=1)
    ax.set_yticks(rows.index, rows["training"], fontsize=7)
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.set_xlabel(
        "percentage points, with 95 % intervals of each row\n"
        "(black: p < 0.05 after Holm's correction for the number of rows)",
        fontsize=8,
    )
    return fig
