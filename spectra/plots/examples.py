"""Figures of what depends on the examples: every matrix on other data, and on fewer of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from spectra.plots.axes import magnitude_axis
from spectra.plots.style import STYLE, Figure, lay_out_legend, line_style, marker_style
from spectra.records.compare import Subsample

PAGE = 6.5  # width in inches
MOST = 5  # eigenvalues drawn against the number of examples
SERIES = ("λ here", "λ of the held-out data", "u'Au there, u the eigenvectors here")
SHIFT = (-0.22, 0.0, 0.22)  # of the points of one rank


def held_out_figure(comparisons: Mapping[str, Any]) -> Figure | None:
    """Leading eigenvalues of each matrix on both data sets, over the overlap of its leading eigenspaces there and here.

    Args:
        comparisons: by the matrix's name, of it with itself on the other data.
    """
    found = {name: one for name, one in comparisons.items() if one.pairs and one.pairs[0].agreements}
    if not found:
        return None
    looks = [marker_style(i) for i in range(len(SERIES))]
    with matplotlib.style.context(STYLE):
        handles = [
            Line2D([], [], **look, markersize=4, mfc="white" if i == 2 else None) for i, look in enumerate(looks)
        ]
        legend = lay_out_legend(list(SERIES), None, PAGE, handle=1.2)
        figure = Figure(figsize=(PAGE, 4.0 + legend.height()), layout="constrained")
        panels = figure.subplots(2, len(found), height_ratios=(2, 1.2), squeeze=False, sharex="col")
        for (name, one), (above, below) in zip(found.items(), panels.T, strict=True):
            draw_both(above, one, looks)
            above.set_title(name, loc="left", fontsize=8.5)
            draw_overlap(below, one)
            below.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 5, 10]))
        panels[0, 0].set_ylabel("|λ| ± residual")
        panels[1, 0].set_ylabel("overlap of j-spaces\n(hollow: no gap)")
        figure.supxlabel("rank by |λ|, j", fontsize=9)
        legend.draw(figure, handles)
    return figure


def draw_both(axes: Axes, one: Any, looks: Sequence[dict[str, Any]]) -> None:
    """Draw the leading eigenvalues of one matrix on both data sets."""
    (here, there), k = one.portraits.values(), one.k
    values = [here.eigenpairs.values[:k].numpy(), there.eigenpairs.values[:k].numpy(), one.pairs[0].first_by_second]
    errors = [here.eigenpairs.residuals[:k].numpy(), there.eigenpairs.residuals[:k].numpy(), None]
    for i, (y, error) in enumerate(zip(values, errors, strict=True)):
        style = looks[i] | {"markersize": 3.8, "mew": 0.9, "mfc": "white" if i == 2 else looks[i]["color"]}
        axes.errorbar(1 + np.arange(len(y)) + SHIFT[i], np.abs(y), error, elinewidth=0.9, **style)
    magnitude_axis(axes, "y", np.abs(np.concatenate(values)))


def draw_overlap(axes: Axes, one: Any) -> None:
    """Draw the overlap of leading j-spaces on both data sets, hollow where no gap makes it reliable."""
    found = one.pairs[0].agreements
    j, overlap = np.array([a.j for a in found]), np.array([a.overlap for a in found])
    reliable = np.array([a.reliable for a in found])
    axes.plot(j, overlap, color="0.5", linewidth=0.9, zorder=1)
    axes.plot(j[reliable], overlap[reliable], "o", color="0.15", markersize=3.8)
    axes.plot(j[~reliable], overlap[~reliable], "o", color="0.15", mfc="white", markersize=3.8)
    axes.plot(j, j / one.dimension, color="0.5", linestyle=(0, (1, 2)), linewidth=1.0)
    axes.set(ylim=(-0.03, 1.06), yticks=(0, 0.5, 1))


def subsample_figure(entries: Sequence[Subsample]) -> Figure | None:
    """The largest eigenvalues of each matrix against 1 / N, and the lines a + b / N with their errors at 0."""
    entries = [entry for entry in entries if entry.trends]
    if not entries:
        return None
    with matplotlib.style.context(STYLE):
        shown = min(MOST, min(len(entry.trends) for entry in entries))
        looks = [marker_style(i) for i in range(shown)]
        handles = [Line2D([], [], **look, markersize=4) for look in looks]
        handles.append(Line2D([], [], color="0.3", marker="*", markersize=6, linestyle="none"))
        legend = lay_out_legend([*(f"λ{i + 1}" for i in range(shown)), "all examples"], None, PAGE, 1.2)
        figure = Figure(figsize=(PAGE, 2.7 + legend.height()), layout="constrained")
        panels = figure.subplots(1, len(entries), squeeze=False)[0]
        for axes, entry in zip(panels, entries, strict=True):
            draw_trends(axes, entry, looks, shown)
            axes.set_title(entry.curvature, loc="left", fontsize=8.5)
        panels[0].set_ylabel("λ ± 2 standard errors")
        figure.supxlabel("1000 / number of examples", fontsize=9)
        legend.draw(figure, handles)
    return figure


def draw_trends(axes: Axes, entry: Subsample, looks: Sequence[dict[str, Any]], shown: int) -> None:
    """Draw the largest eigenvalues of one matrix against 1 / N, with their lines."""
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
