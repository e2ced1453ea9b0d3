"""Figures of `spectra compare --held-out` and `--subsample`: each matrix on other data, and on fewer examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from spectra.plots.axes import magnitude_axis
from spectra.plots.style import (
    PAGE,
    STYLE,
    Figure,
    head,
    label_below,
    lay_out_legend,
    line_style,
    marker_style,
    side_by_side,
)
from spectra.records.compare import Subsample

MOST = 5  # eigenvalues drawn against the number of examples
EACH, COLUMNS = 1.6, 4  # least width of a panel in inches; panels in a row
SERIES = ("λ on the data", "λ on held-out data", "u'Au on held-out data (u from the data)")
SHIFT = (-0.22, 0.0, 0.22)  # of the points of one rank


def held_out_figure(comparisons: Mapping[str, Any], width: float = PAGE) -> Figure | None:
    """Draw leading eigenvalues of each matrix on two data sets, above the overlap of its leading eigenspaces on them.

    Args:
        comparisons: by the name of a matrix, its comparison on the data with itself on the held-out data.
        width: the width in inches.

    Returns:
        The figure, or None where there are no overlaps.
    """
    found = {name: one for name, one in comparisons.items() if one.pairs and one.pairs[0].agreements}
    if not found:
        return None
    looks = [marker_style(i) for i in range(len(SERIES))]
    with matplotlib.style.context(STYLE):
        handles = [
            Line2D([], [], **look, markersize=4, mfc="white" if i == 2 else None) for i, look in enumerate(looks)
        ]
        legend = lay_out_legend(list(SERIES), None, width, handle=1.2)
        columns = side_by_side(len(found), width, EACH, COLUMNS)
        bands = -(-len(found) // columns)
        figure = Figure(figsize=(width, 3.7 * bands + 0.3 + legend.height()), layout="constrained")
        grid = figure.add_gridspec(2 * bands, columns, height_ratios=[2, 1.2] * bands)
        for i, (name, one) in enumerate(found.items()):
            band, column = divmod(i, columns)
            above = figure.add_subplot(grid[2 * band, column])
            below = figure.add_subplot(grid[2 * band + 1, column], sharex=above)
            draw_both(above, one, looks)
            draw_overlap(below, one)
            head(above, name, width / columns - 0.5)
            above.tick_params(labelbottom=False)
            below.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 5, 10]))
            if not column:
                above.set_ylabel("|λ| ± residual")
                below.set_ylabel("overlap of\neigenspaces")
        label_below(figure, "rank by |λ|; below: number of eigenvectors (hollow: no gap after the last)", width)
        legend.draw(figure, handles)
    return figure


def draw_both(axes: Axes, one: Any, looks: Sequence[dict[str, Any]]) -> None:
    """Draw the leading eigenvalues of one matrix on both data sets."""
    (here, there), k = one.summaries.values(), one.k
    values = [here.eigenpairs.values[:k].numpy(), there.eigenpairs.values[:k].numpy(), one.pairs[0].first_by_second]
    errors = [here.eigenpairs.residuals[:k].numpy(), there.eigenpairs.residuals[:k].numpy(), None]
    for i, (y, error) in enumerate(zip(values, errors, strict=True)):
        style = looks[i] | {"markersize": 3.8, "mew": 0.9, "mfc": "white" if i == 2 else looks[i]["color"]}
        axes.errorbar(1 + np.arange(len(y)) + SHIFT[i], np.abs(y), error, elinewidth=0.9, **style)
    magnitude_axis(axes, "y", np.abs(np.concatenate(values)))


def draw_overlap(axes: Axes, one: Any) -> None:
    """Draw the overlap of leading eigenspaces on both data sets, hollow where no gap follows the j-th."""
    found = one.pairs[0].agreements
    j, overlap = np.array([a.j for a in found]), np.array([a.overlap for a in found])
    reliable = np.array([a.reliable for a in found])
    axes.plot(j, overlap, color="0.5", linewidth=0.9, zorder=1)
    axes.plot(j[reliable], overlap[reliable], "o", color="0.15", markersize=3.8)
    axes.plot(j[~reliable], overlap[~reliable], "o", color="0.15", mfc="white", markersize=3.8)
    axes.plot(j, j / one.dimension, color="0.5", linestyle=(0, (1, 2)), linewidth=1.0)
    axes.set(ylim=(-0.03, 1.06), yticks=(0, 0.5, 1))


def subsample_figure(entries: Sequence[Subsample], width: float = PAGE) -> Figure | None:
    """Draw the largest eigenvalues of each matrix against 1 / N, and the lines a + b / N with the errors of a.

    Args:
        entries: one for each matrix.
        width: the width in inches.

    Returns:
        The figure, or None where no eigenvalue has a line.
    """
    entries = [entry for entry in entries if entry.trends]
    if not entries:
        return None
    with matplotlib.style.context(STYLE):
        shown = min(MOST, min(len(entry.trends) for entry in entries))
        looks = [marker_style(i) for i in range(shown)]
        handles = [Line2D([], [], **look, markersize=4) for look in looks]
        handles.append(Line2D([], [], color="0.3", marker="*", markersize=6, linestyle="none"))
        legend = lay_out_legend([*(f"λ$_{i + 1}$" for i in range(shown)), "all examples"], None, width, 1.2)
        columns = side_by_side(len(entries), width, EACH, COLUMNS)
        rows = -(-len(entries) // columns)
        figure = Figure(figsize=(width, 2.2 * rows + 0.5 + legend.height()), layout="constrained")
        panels = figure.subplots(rows, columns, squeeze=False)
        for axes in panels.flat[len(entries) :]:
            axes.set_visible(False)
        for axes, entry in zip(panels.flat, entries, strict=False):
            draw_trends(axes, entry, looks, shown)
            head(axes, entry.curvature, width / columns - 0.5)
        figure.supylabel("λ ± 2 standard errors", fontsize=9)
        label_below(figure, "1000 / number of examples N (hollow, at 0: extrapolated to infinite N)", width)
        legend.draw(figure, handles)
    return figure


def draw_trends(axes: Axes, entry: Subsample, looks: Sequence[dict[str, Any]], shown: int) -> None:
    """Draw the largest eigenvalues of one matrix against 1 / N, and their fitted lines."""
    inverse = 1e3 / np.array(entry.sizes)
    all_of_them = 1e3 / entry.examples
    for i, trend in enumerate(entry.trends[:shown]):
        limit, look = trend.limit, looks[i] | {"markersize": 3.8, "elinewidth": 0.9, "clip_on": False}
        slope = (trend.at_all.value - limit.value) / all_of_them
        ends = np.array([0.0, inverse.max()])
        line: dict[str, Any] = line_style(i, shown) | {"linewidth": 1.0}
        axes.plot(ends, limit.value + slope * ends, **line)
        means = np.array([[mean.value, mean.standard_error] for mean in trend.means], dtype=float).T  # None is nan
        axes.errorbar(inverse, means[0], 2 * means[1], **look)
        error = np.array(limit.standard_error, dtype=float)
        hollow: dict[str, Any] = look | {"mfc": "white"}
        axes.errorbar(0, limit.value, 2 * error, **hollow)
        if i < len(entry.measured):
            axes.plot(all_of_them, entry.measured[i], "*", color="0.3", markersize=6, zorder=12)
    axes.set_xlim(-0.04 * inverse.max(), 1.05 * inverse.max())
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(4))
