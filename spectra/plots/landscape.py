"""Figures of a landscape, from its record: lines with their predictions, planes as contours and as surfaces."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from spectra.plots.axes import asinh_axis, plain
from spectra.plots.style import COLOURS, STYLE, Figure, lay_out_legend, shortened
from spectra.records.landscape import Direction, SpreadAlong
from spectra.records.record import Record

PAGE = 6.5  # width in inches
LOSS, PREDICTION, DEPARTURE = COLOURS[0], COLOURS[1], "0.15"
DASHED = (0, (5, 2))
BAND, HOLDS = "0.82", "0.94"
LABELS = ["loss", "prediction from slope and curvature"]
BEYOND = 0.8  # of the range of the loss, which an axis shows above and below it
EXPLODES = 1e4  # times the lowest loss, beyond which heights are logarithmic
CUT = 5.0  # times what nine tenths of a plane stay below, where a surface is cut off
LARGEST = 1e100


class Panel(NamedTuple):
    """A line or a plane of one matrix, and the directions it is along."""

    matrix: str
    found: Any  # a Line or a Plane of the record
    directions: list[Direction]


def landscape_figures(record: Record) -> dict[str, Figure]:
    """The figures by name: `landscape` of lines and spread, `landscape-plane` and -surface, where there are such."""
    lines, planes = panels(record, "lines"), panels(record, "planes")
    spread = [(entry.curvature, one) for entry in record.results for one in entry.spread or ()]
    figures = {}
    with matplotlib.style.context(STYLE):
        if lines or spread:
            figures["landscape"] = lines_figure(lines, spread)
        if planes:
            figures["landscape-plane"] = plane_figure(planes)
            figures["landscape-surface"] = surface_figure(planes)
    return figures


def panels(record: Record, kind: str) -> list[Panel]:
    """The lines or planes that have a loss to be drawn."""
    found = []
    for entry in record.results:
        known = {d.name: d for d in entry.directions}
        for one in getattr(entry, kind):
            names = one.along if isinstance(one.along, list) else [one.along]
            if np.isfinite(numbers(one.loss)).any():
                found.append(Panel(entry.curvature, one, [known[name] for name in names]))
    return found


def numbers(values: Any) -> np.ndarray:
    """The values as floats, with nan for what no axis can show."""
    found = np.array(values, dtype=np.float64)
    return np.where(np.abs(found) < LARGEST, found, np.nan)


def title(direction: Direction) -> str:
    """A direction, and how much the loss bends along it or how long it is."""
    name = direction.name
    if direction.eigenvalue is None:
        return f"{name}, |d| = {plain(direction.norm, 3)}"
    return f"{f'eigenvector {name}' if name.isdigit() else name}, λ = {plain(direction.eigenvalue, 3)}"


def short_title(direction: Direction) -> str:
    """The title of a panel where there is less room."""
    name = direction.name
    if direction.eigenvalue is None:
        return title(direction)
    return f"{f'λ$_{{{name}}}$' if name.isdigit() else f'{name} λ'} = {plain(direction.eigenvalue, 4)}"


def head(axes: Axes, text: str, width: float) -> None:
    """Write the title of a panel so many inches wide."""
    axes.set_title("\n".join(shortened(text.split("\n"), 72 * width, 8.5)), loc="left", fontsize=8.5, pad=5)


# Lines


def lines_figure(lines: Sequence[Panel], spread: Sequence[tuple[str, SpreadAlong]]) -> Figure:
    """Loss and prediction along every line, their difference below; at the foot the spread over the examples."""
    columns = min(3, max(len(lines), 1))
    bands = -(-len(lines) // columns)
    foot = 0.55 + 0.22 * len(spread) if spread else 0.0
    labels = [*LABELS, "departure", "10 % of the quadratic term", "where it is within that"]
    handles = [
        Line2D([], [], color=LOSS, linewidth=1.8),
        Line2D([], [], color=PREDICTION, linewidth=1.4, linestyle=DASHED),
        Line2D([], [], color=DEPARTURE, linewidth=1.2),
        Patch(color=BAND),
        Patch(color=HOLDS),
    ]
    legend = lay_out_legend(labels, None, PAGE)
    heights = [3.6 * bands + legend.height()] * bool(lines) + [foot + 0.5] * bool(spread)
    figure = Figure(figsize=(PAGE, sum(heights)), layout="constrained")
    parts = figure.subfigures(len(heights), height_ratios=heights, squeeze=False)[:, 0]  # each with margins of its own
    if lines:
        grid = parts[0].add_gridspec(2 * bands, columns, height_ratios=[2.2, 1.1] * bands)
        for i, panel in enumerate(lines):
            band, column = divmod(i, columns)
            above = parts[0].add_subplot(grid[2 * band, column])
            below = parts[0].add_subplot(grid[2 * band + 1, column], sharex=above)
            draw_line(above, below, panel, PAGE / columns - 0.7, first=not column)
        legend.draw(parts[0], handles)
    if spread:
        draw_spread(parts[-1].add_subplot(), spread)
    return figure


def draw_line(above: Axes, below: Axes, panel: Panel, width: float, first: bool) -> None:
    """Draw loss and prediction along a line, and below them their difference."""
    keys = ("t", "loss", "prediction", "departure")
    t, loss, prediction, departure = (numbers(getattr(panel.found, key)) for key in keys)
    holds, curvature = panel.found.holds, panel.directions[0].curvature
    for axes in (above, below):
        axes.axvspan(holds.start, holds.stop, color=HOLDS, zorder=0, linewidth=0)
        axes.margins(x=0)
        axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    above.plot(t, loss, color=LOSS, linewidth=1.8, zorder=3)
    above.plot(t, prediction, color=PREDICTION, linewidth=1.4, linestyle=DASHED, zorder=4)
    above.plot(0, loss[len(t) // 2], "o", color="black", markersize=4, zorder=5)
    above.tick_params(labelbottom=False)
    around_loss(above, loss, prediction)
    allowed = holds.share * abs(curvature or 0.0) * t**2 / 2
    below.fill_between(t, -allowed, allowed, color=BAND, linewidth=0, zorder=1)
    below.axhline(0, color="0.6", linewidth=0.7, zorder=2)
    below.plot(t, departure, color=DEPARTURE, linewidth=1.2, zorder=3)
    below.set_xlabel("t" if panel.directions[0].eigenvalue is None else "distance t")
    if first:
        above.set_ylabel("loss")
        below.set_ylabel("departure")
    head(above, f"{panel.matrix}\n{short_title(panel.directions[0])}", width)


def around_loss(axes: Axes, loss: np.ndarray, prediction: np.ndarray) -> None:
    """Cut off a prediction that leaves the loss far behind; the axis is logarithmic where the loss explodes."""
    low, high = np.nanmin(loss), np.nanmax(loss)
    if explodes(low, high):
        axes.set(yscale="log", ylim=(low / 1.5, 1.5 * high))
    elif high > low:
        room = BEYOND * (high - low)
        ends = min(low, max(np.nanmin(prediction), low - room)), max(high, min(np.nanmax(prediction), high + room))
        axes.set_ylim(ends[0] - 0.04 * (ends[1] - ends[0]), ends[1] + 0.04 * (ends[1] - ends[0]))


def explodes(low: float, high: float) -> bool:
    """Whether the losses reach so far above the lowest that their axis is logarithmic."""
    return 0 < EXPLODES * low < high


def draw_spread(axes: Axes, spread: Sequence[tuple[str, SpreadAlong]]) -> None:
    """Draw a row for each direction: quantiles of single examples as a box, the mean as a diamond with its error."""
    rows = [(f"{matrix}, {one.along}", one.curvature) for matrix, one in spread]
    every = numbers([found.quantiles for _, found in rows])
    ends = [abs(found.mean) + 2 * found.standard_error for _, found in rows]
    largest = max(np.abs(every).max(), *ends) or 1.0
    stats = []
    for low, first, median, third, high in every:
        stats.append({"whislo": low, "q1": first, "med": median, "q3": third, "whishi": high, "fliers": []})
    look = {"color": LOSS, "linewidth": 1.0}
    axes.bxp(
        stats,
        positions=range(len(rows)),
        widths=0.5,
        orientation="horizontal",
        patch_artist=True,
        showfliers=False,
        boxprops={"facecolor": "#cfe3f1", "edgecolor": LOSS, "linewidth": 1.0},
        whiskerprops=look,
        capprops=look,
        medianprops={"color": "black", "linewidth": 1.6},
    )
    for i, (_, found) in enumerate(rows):
        style = {"color": PREDICTION, "marker": "D", "markersize": 4, "elinewidth": 1.2, "zorder": 5}
        axes.errorbar(found.mean, i, xerr=2 * found.standard_error, **style)
    low = min(every.min(), *[-end for (_, found), end in zip(rows, ends, strict=True) if found.mean < 0], 0.0)
    asinh_axis((axes,), np.array([1.3 * low, 1.3 * largest]), 1e-3 * largest, inches=PAGE - 2)
    axes.set(ylim=(len(rows) - 0.5, -0.5), yticks=range(len(rows)))
    axes.set_yticklabels(shortened([name for name, _ in rows], 72 * PAGE * 0.25, 7.5), fontsize=7.5)
    axes.set_xlabel("d'A$_i$d (asinh axis, linear where shaded)")
    text = "curvature of single examples: 5, 25, 50, 75, 95 %; diamond: mean ± 2 standard errors"
    axes.figure.suptitle(text, x=0.01, ha="left", fontsize=8.5)


# Planes


def plane_figure(planes: Sequence[Panel]) -> Figure:
    """Contours of the loss, those of the prediction at the same heights dashed over them."""
    columns = min(2, len(planes))
    rows = -(-len(planes) // columns)
    handles = [Line2D([], [], color=LOSS, linewidth=1.2), Line2D([], [], color=PREDICTION, linestyle=DASHED)]
    legend, wide = lay_out_legend(LABELS, None, PAGE), PAGE if columns == 2 else 4.8
    figure = Figure(figsize=(wide, 3.1 * rows * (1 if columns == 2 else 1.25) + 0.4), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes, panel in zip(grid.flat, planes, strict=False):
        draw_plane(axes, panel, wide / columns - 1.0)
    for axes in grid.flat[len(planes) :]:
        axes.set_axis_off()
    legend.draw(figure, handles)
    return figure


def draw_plane(axes: Axes, panel: Panel, width: float) -> None:
    """Draw levels of loss and prediction in a plane."""
    x, y, loss, prediction = (numbers(getattr(panel.found, key)) for key in ("x", "y", "loss", "prediction"))
    heights = levels(loss)
    look = {"cmap": "Blues", "extend": "both", "alpha": 0.75, "norm": BoundaryNorm(heights, 256, extend="both")}
    shades = axes.contourf(x, y, np.ma.masked_invalid(loss), heights, **look)
    axes.contour(x, y, np.ma.masked_invalid(loss), heights, colors=LOSS, linewidths=0.9)
    axes.contour(x, y, prediction, heights, colors=PREDICTION, linewidths=1.1, linestyles=[DASHED])
    axes.plot(0, 0, "o", color="black", markersize=4, zorder=5)
    bar = axes.figure.colorbar(shades, ax=axes, format=lambda value, _: plain(value, 2), aspect=30, pad=0.02)
    bar.ax.tick_params(labelsize=7)
    bar.ax.set_title("loss", fontsize=7.5, loc="left")
    axes.set(xlabel=title(panel.directions[0]), ylabel=title(panel.directions[1]))
    head(axes, panel.matrix, width)


def levels(loss: np.ndarray, count: int = 8) -> np.ndarray:
    """Heights (count,), as the rings of a bowl at equal distances, up to what all but the corners reach."""
    held = loss[np.isfinite(loss)]
    low, high = held.min(), np.quantile(held, 0.9)
    if explodes(low, high):
        return np.geomspace(low, high, count + 1)[1:]
    if not high > low:
        high = low + max(abs(low), 1.0) * 1e-6
    return low + (high - low) * (np.arange(1, count + 1) / count) ** 2


def surface_figure(planes: Sequence[Panel]) -> Figure:
    """The loss as a surface, with the prediction as a net."""
    columns = min(2, len(planes))
    rows = -(-len(planes) // columns)
    figure = Figure(figsize=(PAGE if columns == 2 else 4.6, 3.4 * rows * (1 if columns == 2 else 1.1)))
    for i, panel in enumerate(planes):
        draw_surface(figure.add_subplot(rows, columns, i + 1, projection="3d"), panel)
    figure.subplots_adjust(left=0.0, right=0.93, bottom=0.08, top=1 - 0.45 / figure.get_figheight(), wspace=0.12)
    handles = [Patch(facecolor="#9dc6e0", edgecolor=LOSS), Line2D([], [], color=PREDICTION, linewidth=1.0)]
    figure.legend(handles, LABELS, loc="upper center", ncols=2, fontsize=8.5, frameon=False)
    return figure


def draw_surface(axes: Any, panel: Panel) -> None:
    """Draw loss and prediction as surfaces, up to where the loss explodes."""
    x, y, loss, prediction = (numbers(getattr(panel.found, key)) for key in ("x", "y", "loss", "prediction"))
    top, sides = CUT * levels(loss)[-1], np.meshgrid(x, y)
    loss, prediction = (np.where(np.abs(z) <= top, z, np.nan) for z in (loss, prediction))
    axes.plot_surface(*sides, loss, cmap="Blues", edgecolor=LOSS, linewidth=0.25, alpha=0.6)
    axes.plot_wireframe(*sides, prediction, color=PREDICTION, linewidth=0.8, rcount=9, ccount=9)
    axes.tick_params(labelsize=6.5, pad=-2)
    for axis in (axes.xaxis, axes.yaxis, axes.zaxis):
        axis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    names = [title(direction) for direction in panel.directions]
    axes.set_xlabel(names[0], fontsize=7.5, labelpad=-4)
    axes.set_ylabel(names[1], fontsize=7.5, labelpad=-4)
    axes.set_zlabel("loss", fontsize=7.5, labelpad=-4)
    axes.set_title(panel.matrix, fontsize=8.5, pad=0)
