"""The figure of spectra over training: eigenvalues in a large panel, each other quantity in a small one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, Locator, LogLocator, MaxNLocator, NullFormatter

from spectra.plots.axes import plain
from spectra.plots.names import settable
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
from spectra.records.sweep import Evolution, Row

TITLES = {  # the small panels, in their order
    "loss": "loss",
    "trace": "trace ± standard error",
    "negative_share": "share of eigenvalues < 0",
    "overlap_next": "top-k space, overlap with next",
    "overlap_last": "top-k space, overlap with last",
    "alignment_next": "top eigenvector, |cos| with next",
    "update_share": "share of update in top-k space",
    "update_cosine": "update, cos with previous one",
}
OF_SPACES = ("overlap_next", "overlap_last", "update_share")  # of leading k-spaces
OF_ALL = {"color": "0.25", "linestyle": "solid", "linewidth": 1.4, "marker": "o", "zorder": 3}  # the same for matrices
PRECONDITIONED = "$P^{-1/2}AP^{-1/2}$"
LIMIT = {"color": "black", "linestyle": (0, (4, 3)), "linewidth": 1.0, "zorder": 20}
HEAD = 8  # points, of a title
MARKS = 14  # on a curve
FARTHEST = 3  # times the largest eigenvalue: beyond, only the legend names the threshold of stability
CROPPED = 3  # times the highest limit: eigenvalues beyond would compress the rest, and are triangles at the edge
BEYOND: dict[str, Any] = {"color": "0.4", "markersize": 4, "linestyle": "none", "clip_on": False, "zorder": 21}
ROOM = 1.06  # of the largest number, so that its marker is whole
MANY_TIMES = 20  # the smallest of positive numbers, from which a logarithmic axis shows more
LARGE, SMALL = 2.2, 1.35  # heights in inches
EACH, COLUMNS = 1.6, 3  # least width in inches of a small panel; small panels in a row


def evolution_figure(evolution: Evolution, width: float = PAGE) -> Figure:
    """Draw how spectra change over training: one panel for each quantity, over training steps.

    Each matrix has its own colour, dash pattern and marker, which its seeds share. Hollow markers are values that have
    not converged, or eigenspaces without a gap. The line 2 / learning rate is drawn among the eigenvalues, where it is
    known. Eigenvalues of preconditioned matrices are drawn times the learning rate, with the threshold of stability at
    each checkpoint.

    Args:
        evolution: the table, as `spectra.evolution_of` returns it.
        width: the width in inches.

    Returns:
        The figure.
    """
    evolution = times_rate(evolution)
    matrices = list(dict.fromkeys(name for name, _ in evolution.series()))
    looks = {name: marker_style(i) | line_style(i, len(matrices)) for i, name in enumerate(matrices)}
    small = [quantity for quantity in TITLES if evolution.select(quantity)]
    eigenvalues = evolution.select("eigenvalue")
    with matplotlib.style.context(STYLE):
        handles, labels = legend_entries(evolution, looks)
        legend = lay_out_legend(labels, None, width, handle=2.8)
        large, panels, figure = lay_out(bool(eigenvalues), small, width, legend.height() + 0.35)
        if large:
            draw_eigenvalues(large, evolution, looks, inches_of(large, width))
        for quantity, axes in panels.items():
            draw(axes, quantity, evolution, looks, inches_of(axes, width))
        for axes in figure.axes:
            axes.xaxis.set_major_locator(step_ticks(evolution, round(6 if axes is large else min(4, 1.5 * width / 2))))
            axes.tick_params(labelsize=7.5)
        legend.draw(figure, handles)
        label_below(figure, evolution.axis, width)
    return figure


def inches_of(axes: Axes, width: float) -> float:
    """The inches that a panel has for its title, in a figure so many inches wide."""
    place = axes.get_subplotspec()
    assert place
    return width * len(place.colspan) / place.get_gridspec().ncols - 0.4


def times_rate(evolution: Evolution) -> Evolution:
    """Multiply preconditioned eigenvalues and their thresholds by the learning rate, unless they include it already."""
    rates = {place(row): row.value for row in evolution.select("learning_rate")}

    def scaled(row: Row) -> Row:
        rate = rates.get(place(row))
        if rate is None or row.quantity not in ("eigenvalue", "threshold"):
            return row
        numbers = {name: getattr(row, name) for name in ("value", "error", "upper")}
        return replace(row, **{name: None if number is None else rate * number for name, number in numbers.items()})

    return replace(evolution, rows=tuple(scaled(row) for row in evolution.rows))


def place(row: Row) -> tuple[str, str | None, int | None]:
    """The checkpoint, matrix and seed of a row."""
    return row.checkpoint, row.curvature, row.seed


def limits(evolution: Evolution) -> list[Row]:
    """The thresholds of stability of preconditioned eigenvalues; none where all lie far above the eigenvalues."""
    rows = evolution.select("threshold")
    least = min((row.value for row in rows if row.value is not None), default=np.inf)
    return rows if least <= farthest(evolution) else []


def step_ticks(evolution: Evolution, most: int) -> Locator:
    """A locator of at most so many ticks on steps."""
    steps = sorted({row.step for row in evolution.rows})
    if len(steps) == 1:
        return FixedLocator(steps)
    whole = all(step == int(step) for step in steps)
    return MaxNLocator(most, integer=whole, steps=[1, 2, 5, 10])


def legend_entries(evolution: Evolution, looks: Mapping[str, dict]) -> tuple[list[Line2D], list[str]]:
    """The handles and labels of the legend: each matrix, the thresholds of stability, and what hollow markers are."""
    spaces = {row.curvature: row.index for row in evolution.rows if row.quantity in OF_SPACES}
    handles = [Line2D([], [], **look, markersize=3.5) for look in looks.values()]
    labels = [settable(name) + (f", k = {spaces[name]}" if name in spaces else "") for name in looks]
    if evolution.learning_rate and evolution.select("eigenvalue"):
        limit = 2 / evolution.learning_rate
        beyond = "" if limit <= farthest(evolution) else " (beyond)"
        handles.append(Line2D([], [], **LIMIT))
        labels.append(f"2 / learning rate = {plain(limit, 5)}{beyond}")
    if heights := [row.value for row in evolution.select("threshold") if row.value is not None]:
        optimizer = f" of {settable(evolution.precondition[0])}" if len(evolution.precondition) == 1 else ""
        ends = dict.fromkeys(plain(end, 3) for end in (min(heights), max(heights)))
        beyond = "" if limits(evolution) else " (beyond)"
        handles.append(Line2D([], [], **LIMIT))
        labels.append(f"threshold{optimizer}, {' to '.join(ends)}{beyond}")
    if beyond := far_beyond(evolution)[0]:
        markers = dict.fromkeys("^" if (row.value or 0) > 0 else "v" for row in beyond)
        handles.append(Line2D([], [], **BEYOND, marker=next(iter(markers))))
        labels.append("beyond the axis")
    if any(row.converged is False for row in evolution.rows):
        handles.append(Line2D([], [], color="0.4", marker="o", markersize=3.5, mfc="white", linestyle="none"))
        labels.append("hollow: not converged, or no gap")
    return handles, labels


def farthest(evolution: Evolution) -> float:
    """The largest value that the axis of eigenvalues shows."""
    values = [row.value for row in evolution.select("eigenvalue") if row.value is not None]
    return FARTHEST * max(values, default=0.0)


def lay_out(
    large: bool, small: Sequence[str], width: float, above: float
) -> tuple[Axes | None, dict[str, Axes], Figure]:
    """The large panel, and small panels below it in rows of three or two; one small panel too many is beside it."""
    columns = side_by_side(COLUMNS, width, EACH, COLUMNS)
    over = len(small) % columns
    rows = [list(small[:over])] if over else []
    rows += [list(small[i : i + columns]) for i in range(over, len(small), columns)]
    beside = over == 1 and columns == COLUMNS
    if large and not beside:
        rows.insert(0, [])
    heights = [LARGE if large and i == 0 else SMALL + 0.15 * (columns < COLUMNS) for i in range(len(rows))]
    figure = Figure(figsize=(width, sum(heights) + above), layout="constrained")
    grid = figure.add_gridspec(len(rows), 6, height_ratios=heights)
    big = figure.add_subplot(grid[0, : 4 if beside else 6]) if large else None
    panels = {}
    for place, row in enumerate(rows):
        first = 4 if large and beside and place == 0 else 0
        span = (6 - first) // max(len(row), 1)
        for i, quantity in enumerate(row):
            panels[quantity] = figure.add_subplot(grid[place, first + i * span : first + (i + 1) * span])
    return big, panels, figure


def draw_eigenvalues(axes: Axes, evolution: Evolution, looks: Mapping[str, dict], inches: float) -> None:
    """Draw the eigenvalues over the steps, with thicker lines and markers for the largest of each matrix."""
    for curvature, seed in evolution.series():
        rows = evolution.select("eigenvalue", curvature=curvature, seed=seed)
        for rank in dict.fromkeys(row.index for row in rows):
            look = dict(looks[curvature])
            if rank != 1:
                look |= {"linewidth": 0.6 * look["linewidth"], "alpha": 0.6, "marker": ""}
            curve(axes, with_gaps(rows, rank), look)
    values = [row.value for row in evolution.select("eigenvalue") if row.value is not None]
    if min(values, default=0.0) < 0:
        axes.axhline(0, color="0.6", linewidth=0.6, zorder=1)
    if evolution.learning_rate and 2 / evolution.learning_rate <= farthest(evolution):
        axes.axhline(2 / evolution.learning_rate, **LIMIT)
    for curvature, seed in evolution.series():
        draw_limit(axes, [row for row in limits(evolution) if (row.curvature, row.seed) == (curvature, seed)])
    crop(axes, evolution)
    counts = Counter(place(row) for row in evolution.select("eigenvalue")).values()
    most = max(counts, default=0)
    number = f"{'at most ' if most > min(counts, default=0) else ''}{most}"
    what = "eigenvalues" if most > 1 else "eigenvalue"
    if evolution.precondition:
        rate = "learning rate × " if evolution.select("learning_rate") or evolution.select("threshold") else ""
        what = f"{rate}{what} of {PRECONDITIONED}"
    head(axes, f"{what} ± residual{f', {number} of each matrix' if most > 1 else ''}", inches, HEAD)


def with_gaps(rows: Sequence[Row], rank: int | None) -> list[Row]:
    """The rows of this rank, with empty ones between them at steps where only other ranks were recorded."""
    held = {row.step: row for row in rows if row.index == rank}
    steps = sorted({row.step for row in rows if min(held) <= row.step <= max(held)})
    empty = replace(held[min(held)], value=None, error=None, converged=None)
    return [held.get(step) or replace(empty, step=step) for step in steps]


def far_beyond(evolution: Evolution) -> tuple[list[Row], float]:
    """The eigenvalues whose magnitude is far beyond the limits, at less than half of the steps, and that magnitude."""
    heights = [row.value for row in limits(evolution) if row.value is not None]
    if evolution.learning_rate:
        heights.append(2 / evolution.learning_rate)
    most = CROPPED * max(heights, default=np.inf)
    rows = [row for row in evolution.select("eigenvalue") if row.value is not None]
    beyond = [row for row in rows if abs(row.value or 0) > most]
    few = 2 * len({row.step for row in beyond}) < len({row.step for row in rows})
    return beyond if few else [], most


def crop(axes: Axes, evolution: Evolution) -> None:
    """Leave out eigenvalues far beyond the limits, with triangles at the edge of the axes in their place."""
    beyond, most = far_beyond(evolution)
    values = [row.value for row in evolution.select("eigenvalue") if row.value is not None]
    near = [value for value in values if abs(value) <= most]
    if not beyond:
        return
    top = 1.3 * max(most / CROPPED, *near, 0)
    axes.set_ylim(min(-0.04 * top, *(1.2 * value for value in near)), top)
    for edge, marker, sign in zip(axes.get_ylim(), ("v", "^"), (-1, 1), strict=True):
        steps = sorted({row.step for row in beyond if sign * (row.value or 0) > 0})
        axes.plot(steps, [edge] * len(steps), marker=marker, **BEYOND)
    for artist in (*axes.lines, *axes.collections):  # the layout would make room for those outside of the axes
        artist.set_in_layout(False)


def draw_limit(axes: Axes, rows: Sequence[Row]) -> None:
    """Draw the threshold of stability over the steps, shaded where it is an interval."""
    if rows:
        steps, values, upper = columns(rows, "step", "value", "upper")
        axes.plot(steps, values, **LIMIT)
        axes.fill_between(steps, values, upper, color="black", alpha=0.15, linewidth=0)


def draw(axes: Axes, quantity: str, evolution: Evolution, looks: Mapping[str, dict], inches: float) -> None:
    """Draw one quantity over the steps, a curve for each matrix and seed."""
    rows = evolution.select(quantity)
    for curvature, seed in dict.fromkeys((row.curvature, row.seed) for row in rows):
        some = [row for row in rows if (row.curvature, row.seed) == (curvature, seed)]
        curve(axes, some, looks.get(curvature or "", OF_ALL), band=quantity == "negative_share")
    head(axes, TITLES[quantity], inches, HEAD)
    values = np.array([row.value for row in rows if row.value is not None])
    wide = values.size and values.min() > 0 and values.max() > MANY_TIMES * values.min()
    if quantity in ("loss", "update_share") and wide:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(numticks=5))
        axes.yaxis.set_minor_formatter(NullFormatter())
    elif quantity == "update_cosine":
        axes.set(ylim=(-1.06, 1.06), yticks=(-1, 0, 1))
        axes.axhline(0, color="0.6", linewidth=0.6, zorder=1)
    elif quantity.startswith(("overlap", "alignment", "update_share")):
        axes.set(ylim=(-0.03, 1.06), yticks=(0, 0.5, 1))
    elif quantity in ("loss", "negative_share") and values.size and values.min() >= 0:
        axes.set_ylim(0, max(axes.get_ylim()[1], ROOM * values.max()))


def curve(axes: Axes, rows: Sequence[Row], look: Mapping[str, Any], band: bool = False) -> None:
    """Draw values over steps with their errors, as bars or, where rows have limits, as a band."""
    steps, values, errors = columns(rows, "step", "value", "error")
    lower, upper = columns(rows, "lower", "upper")
    reliable = np.array([row.converged is not False for row in rows])
    every = max(1, len(rows) // MARKS)
    marked = (int(look["zorder"]) % every, every)  # where curves coincide, their marks alternate
    if band:
        axes.fill_between(steps, lower, upper, color=look["color"], alpha=0.2, linewidth=0, zorder=2)
    elif rows[0].quantity in ("eigenvalue", "trace"):
        bars = {"color": look["color"], "elinewidth": 0.8, "zorder": look["zorder"], "linestyle": "none"}
        axes.errorbar(steps, values, np.nan_to_num(errors), **bars)
    axes.plot(steps, values, **look, markersize=2.8, markevery=marked)
    if not look["marker"]:
        known = np.pad(np.isfinite(values), 1)
        alone = known[1:-1] & ~known[:-2] & ~known[2:]  # a line would not show them
        axes.plot(steps[alone], values[alone], **{**look, "marker": "o", "linestyle": "none"}, markersize=1.6)
    hollow = {"color": look["color"], "marker": look["marker"] or "o", "zorder": look["zorder"] + 0.5}
    axes.plot(steps[~reliable], values[~reliable], **hollow, mfc="white", mew=0.8, markersize=2.8, linestyle="none")


def columns(rows: Sequence[Row], *names: str) -> list[np.ndarray]:
    """The fields of rows as arrays of floats, nan for None."""
    return [np.array([getattr(row, name) for row in rows], dtype=float) for name in names]
