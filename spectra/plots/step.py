"""The figure of `spectra step`, drawn from its record: the loss along each direction, shares in eigenvectors, noise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from spectra.plots.landscape import DASHED, LINE, LOSS, PREDICTION, UNITS, around_loss, numbers
from spectra.plots.names import settable
from spectra.plots.noise import draw_noise, scales_of
from spectra.plots.style import (
    COLOURS,
    MARKERS,
    PAGE,
    STYLE,
    Figure,
    head,
    height_below,
    lay_out_legend,
    legend_below,
    side_by_side,
)
from spectra.records.record import Record
from spectra.records.step import StepAlong, StepDirection, StepResult

LOWEST = 1e-9  # of shares, the least that is shown
BEYOND = 1.3  # critical steps that are shown
LABELS = [
    "loss",
    "quadratic model",
    "best step",
    "critical step",
    "t = 1",
]
MARK = {"markersize": 6, "zorder": 6, "markeredgecolor": "white", "linestyle": "none"}
BEST, CRITICAL, ONE = (
    {"marker": m, "color": c, **MARK} for m, c in (("o", "#009E73"), ("^", "#D55E00"), ("D", "0.15"))
)


def step_figures(record: Record, width: float = PAGE) -> dict[str, Figure]:
    """The figure `step`, `width` inches wide: panels for each direction, for shares in eigenvectors, and for noise."""
    if record.point is None or not record.point.directions:
        return {}
    entry: StepResult = record.results[0]
    model = next((one for one in record.results if one.of_the_loss), entry)
    known = {one.direction: one for one in model.along if model.of_the_loss}
    called = record.point.called()
    panels, shares = record.point.directions, [one for one in entry.along if len(one.share)]
    scales = scales_of(record.point.noise, record.results)
    count = len(panels) + bool(shares) + bool(scales)
    columns = side_by_side(count, width, LINE, 2 if count == 4 else 3)
    inches = width / columns - 0.7
    rows = -(-count // columns)
    legends = [len(shares) + 1] * bool(shares) + [len(scales)] * bool(scales)  # entries below the last panels
    longest: dict[int, int] = {}  # by row
    for place, entries in enumerate(legends, start=len(panels)):
        longest[place // columns] = max(entries, longest.get(place // columns, 0))
    below = sum(map(height_below, longest.values()))
    with matplotlib.style.context(STYLE):
        legend = lay_out_legend(LABELS, None, width)
        height = (2.4 if columns > 1 else 1.8) * rows + 0.4 + legend.height() + below
        figure = Figure(figsize=(width, height), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False)
        for axes in grid.flat:
            axes.set_axis_off()
        for axes, d in zip(grid.flat, panels, strict=False):
            axes.set_axis_on()
            along, name = known.get(d.name), called[d.name]
            draw_line(axes, d, name, along, record.point.loss, model.curvature, inches)
        if shares:
            axes = grid.flat[len(panels)]
            axes.set_axis_on()
            draw_shares(axes, shares, called, entry, inches)
        if scales and record.point.noise:
            axes = grid.flat[len(panels) + bool(shares)]
            axes.set_axis_on()
            draw_noise(axes, scales, record.point.noise.unit, inches)
        handles = [Line2D([], [], color=LOSS, linewidth=1.8), Line2D([], [], color=PREDICTION, linestyle=DASHED)]
        legend.draw(figure, [*handles, *(Line2D([], [], **look) for look in (BEST, CRITICAL, ONE))])
    return {"step": figure}


def draw_line(
    axes: Axes, d: StepDirection, name: str, along: StepAlong | None, start: float, matrix: str, width: float
) -> None:
    """Draw the loss along the direction called `name`, the quadratic model of one matrix, and the steps."""
    end = shown_end(d)
    t, loss = numbers(d.t), numbers(d.loss)
    some = t <= end
    t, loss = t[some], loss[some]
    axes.axhline(start, color="0.6", linewidth=0.7, zorder=1)
    axes.plot(t, loss, color=LOSS, linewidth=1.8, zorder=3)
    prediction = np.full_like(t, start)
    if along is not None:
        prediction = start + d.slope * t + along.curvature * t**2 / 2
        fine = np.linspace(0.0, float(t[-1]), 200)
        model = start + d.slope * fine + along.curvature * fine**2 / 2
        axes.plot(fine, model, color=PREDICTION, linewidth=1.4, linestyle=DASHED, zorder=4)
    for found, look in ((d.best, BEST), (d.critical, CRITICAL)):
        if found.step is not None and found.loss is not None and found.step <= end:
            axes.plot(found.step, found.loss, **look)
    if d.loss_at_one is not None and end >= 1:
        axes.plot(1.0, d.loss_at_one, **ONE)
    axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    if np.isfinite(loss).any():
        around_loss(axes, loss, prediction)
    axes.set(xlabel=UNITS.get(d.kind, "t (1: the checkpoint)"), ylabel="loss")
    head(axes, f"{settable(name)}\nmodel by {settable(matrix)}" if along else settable(name), width)


def shown_end(d: StepDirection) -> float:
    """The t up to which the loss is drawn: beyond the critical step, and beyond t = 1 where that is measured."""
    last = float(d.t[-1])
    end = BEYOND * d.critical.step if d.critical.step else 4 * d.best.step if d.best.step else last
    return min(last, max(end, 1.0 if d.loss_at_one is not None else 0.0))


def draw_shares(
    axes: Axes, shares: list[StepAlong], called: Mapping[str, str], entry: StepResult, width: float
) -> None:
    """Draw each direction's share in the first j eigenvectors against j, with bounds, and a random direction's."""
    ranks = np.arange(1, len(shares[0].share) + 1)
    for i, one in enumerate(shares):
        look: dict[str, Any] = {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)]}
        share, lower, upper = (numbers(values) for values in (one.share, one.share_lower, one.share_upper))
        axes.fill_between(ranks, lower, upper, color=look["color"], alpha=0.15, linewidth=0)
        look |= {"linewidth": 1.3, "markersize": 3.5, "zorder": 4 + i, "label": settable(called[one.direction])}
        axes.plot(ranks, share, **look)
    axes.plot(ranks, ranks / entry.parameters, color="0.4", ls=DASHED, lw=1.0, label="random direction: j/n")
    axes.set(yscale="log", xlabel="number of eigenvectors, j", ylabel="share |P$_j$d|² / |d|²")
    low = min(1 / entry.parameters, *(float(one.share[0]) for one in shares))
    low = max(low, LOWEST)
    axes.set_ylim(low / 2, 1.5)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    legend_below(axes, width)
    head(axes, f"share in leading\neigenvectors of {settable(entry.curvature)}", width)
