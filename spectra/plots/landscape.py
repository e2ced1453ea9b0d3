"""Figures of `spectra landscape`, drawn from its record: the loss along lines and in planes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm, LinearSegmentedColormap
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from spectra.plots.axes import asinh_axis, plain
from spectra.plots.names import settable
from spectra.plots.style import (
    COLOURS,
    PAGE,
    STYLE,
    Figure,
    head,
    head_of_part,
    in_lines,
    lay_out_legend,
    marker_style,
    shortened,
    side_by_side,
    with_note,
)
from spectra.records.directions import ShortNames, leads_to_checkpoint
from spectra.records.landscape import Direction, SpreadAlong
from spectra.records.record import Record
from spectra.wording import with_error

LINE, PLANE = 2.0, 3.0  # least widths of panels in inches
NAMES = 7.5  # points, of the names of rows
LOSS, PREDICTION, DEPARTURE = COLOURS[0], COLOURS[1], "0.15"
DASHED = (0, (5, 2))
BAND, HOLDS = "0.82", "0.94"
CHORD, PATH = COLOURS[2], "0.15"
SHADES = LinearSegmentedColormap.from_list("shades", ["#f7fbff", "#9ecae1"])  # light: lines stand out in grey print too
LABELS = ["loss", "prediction from slope and curvature"]
UNITS = {  # of t, by direction
    "gradient": "t (learning rate)",
    "update": "t (1: the next step)",
    "momentum": "t (learning rate)",
}
MARK = {"markerfacecolor": "black", "markeredgecolor": "black", "markersize": 4}
END = {"markerfacecolor": "white", "markeredgecolor": "black", "markersize": 4.5, "linestyle": "none"}
BEYOND = 0.8  # of the range of the loss, which an axis shows above and below it
EXPLODES = 1e4  # times the lowest loss, beyond which heights are logarithmic
CUT = 5.0  # times what nine tenths of a plane stay below, where a surface is cut off
LARGEST = 1e100


class Panel(NamedTuple):
    """A line or a plane of one matrix, and the directions it is along."""

    matrix: str
    found: Any  # a Line or a Plane of the record
    directions: list[Direction]
    of: str | None  # the checkpoint, where there are several


def landscape_figures(record: Record, width: float = PAGE) -> dict[str, Figure]:
    """The figures by name, `width` inches wide: `landscape` of lines, and `landscape-plane` and -surface of planes.

    Lines of several checkpoints along one direction share a panel.
    """
    lines, planes, called = panels(record, "lines"), panels(record, "planes"), ShortNames(record.results, settable)
    spread = [(entry, one) for entry in record.results for one in entry.spread or ()]
    rows = [(", ".join([*of(entry, called), entry.curvature, called(one.along)]), one) for entry, one in spread]
    figures = {}
    with matplotlib.style.context(STYLE):
        if lines or spread:
            figures["landscape"] = lines_figure(lines, rows, called, width)
        if planes:
            figures["landscape-plane"] = plane_figure(planes, called, width)
            figures["landscape-surface"] = surface_figure(planes, called, width)
    return figures


def of(entry: Any, called: ShortNames) -> list[str]:
    """The checkpoint of a result or a panel as a list, which is empty unless there are several checkpoints."""
    path = entry.of if isinstance(entry, Panel) else entry.checkpoint
    return [called.file(path)] if path else []


def panels(record: Record, kind: str) -> list[Panel]:
    """The lines or planes with a finite loss."""
    found = []
    for entry in record.results:
        known = {d.name: d for d in entry.directions}
        for one in getattr(entry, kind):
            names = one.along if isinstance(one.along, list) else [one.along]
            if np.isfinite(numbers(one.loss)).any():
                found.append(Panel(entry.curvature, one, [known[name] for name in names], entry.checkpoint))
    return found


def numbers(values: Any) -> np.ndarray:
    """The values as floats, with nan for values too large for an axis."""
    found = np.array(values, dtype=np.float64)
    return np.where(np.abs(found) < LARGEST, found, np.nan)


def title(direction: Direction, called: ShortNames) -> str:
    """The name of a direction with its eigenvalue, or else with its length."""
    name = called(direction.name)
    if direction.eigenvalue is None:
        return f"{name}, |d| = {plain(direction.norm, 3)}"
    return f"{f'eigenvector {name}' if name.isdigit() else name}, λ = {plain(direction.eigenvalue, 3)}"


def short_title(direction: Direction, called: ShortNames) -> str:
    """The title of a panel where there is less room."""
    name = direction.name
    if direction.eigenvalue is None:
        return title(direction, called)
    return f"{f'λ$_{{{name}}}$' if name.isdigit() else f'{name} λ'} = {plain(direction.eigenvalue, 4)}"


def axis_title(panel: Panel, place: int, called: ShortNames) -> str:
    """The label of an axis of a plane."""
    plane, direction = panel.found, panel.directions[place]
    if plane.trajectory:
        return f"{direction.name} ({plain(100 * plane.trajectory.shares[place], 3)} %)"
    text = title(direction, called)
    return f"{text.partition(',')[0]}, orthogonal part" if place and plane.orthogonal else text


# Lines


def lines_figure(
    lines: Sequence[Panel], spread: Sequence[tuple[str, SpreadAlong]], called: ShortNames, width: float
) -> Figure:
    """Draw loss and prediction along every line, their difference below, and last the spread over the examples."""
    groups: dict[tuple[str, str], list[Panel]] = {}
    for panel in lines:
        groups.setdefault((panel.matrix, panel.found.along), []).append(panel)
    checkpoints = list(dict.fromkeys(panel.of for panel in lines if panel.of))
    columns = side_by_side(len(groups), width, LINE, 3)
    bands = -(-len(groups) // columns)
    labels, handles = keys(lines, checkpoints, called)
    legend = lay_out_legend(labels, None, width)
    tall = 0.18 * any(panel.found.barrier for panel in lines)  # inches of a third line of titles
    names = in_lines([name for name, _ in spread], 0.3 * width, NAMES)
    foot = 1.2 + (0.3 if any("\n" in name for name in names) else 0.22) * len(names)
    heights = [((3.4 if columns > 1 else 2.5) + tall) * bands + legend.height()] * bool(lines) + [foot] * bool(spread)
    figure = Figure(figsize=(width, sum(heights)), layout="constrained")
    parts = figure.subfigures(len(heights), height_ratios=heights, squeeze=False)[:, 0]  # each with margins of its own
    if lines:
        grid = parts[0].add_gridspec(2 * bands, columns, height_ratios=[2.2, 1.1] * bands)
        row = list(groups.values())
        for i, group in enumerate(row):
            band, column = divmod(i, columns)
            labelled = not column or bool(group[0].found.barrier) != bool(row[i - 1][0].found.barrier)
            above = parts[0].add_subplot(grid[2 * band, column])
            below = parts[0].add_subplot(grid[2 * band + 1, column], sharex=above)
            draw_lines(above, below, group, width / columns - 0.55, not column, labelled, checkpoints, called)
        legend.draw(parts[0], handles)
    if spread:
        draw_spread(parts[-1].add_subplot(), [one for _, one in spread], names, width)
    return figure


def keys(lines: Sequence[Panel], checkpoints: Sequence[str], called: ShortNames) -> tuple[list[str], list[Any]]:
    """The labels of the legend and their handles."""
    barrier = [panel for panel in lines if panel.found.barrier]
    departs = any(not panel.found.barrier for panel in lines)
    found: list[tuple[str, Any]] = []
    if checkpoints:
        for i, path in enumerate(checkpoints):
            found.append((called.file(path), Line2D([], [], color=colour(i), linewidth=1.8, marker=marker(i), **MARK)))
    else:
        found = [(LABELS[0], Line2D([], [], color=LOSS, linewidth=1.8))]
    if predicted(lines):
        look = {"color": "0.3", "linewidth": 1.0} if checkpoints else {"color": PREDICTION, "linewidth": 1.4}
        found.append((LABELS[1], Line2D([], [], **look, linestyle=DASHED)))
    if departs and not checkpoints:
        found += [
            ("departure: loss − prediction", Line2D([], [], color=DEPARTURE, linewidth=1.2)),
            ("±10 % of the quadratic term", Patch(color=BAND)),
        ]
    if not checkpoints and any(panel.found.holds for panel in lines):
        found.append((f"{'departure' if departs else 'prediction'} within ±10 %", Patch(color=HOLDS)))
    if barrier:
        found.append(("chord between checkpoints", Line2D([], [], color=CHORD, linewidth=1.2, linestyle=(0, (1, 1)))))
        if not checkpoints:
            found.append(("loss above the chord", Line2D([], [], color=CHORD, linewidth=1.4)))
    return [text for text, _ in found], [handle for _, handle in found]


def unit(direction: Direction) -> str:
    """The label of an axis along a direction."""
    usual = "t" if direction.eigenvalue is None else "distance t"
    return "t (1: the checkpoint)" if leads_to_checkpoint(direction.name) else UNITS.get(direction.name, usual)


def colour(place: int) -> str:
    """The colour of a checkpoint among several."""
    return COLOURS[place % len(COLOURS)]


def marker(place: int) -> str:
    """The marker of a checkpoint among several, which distinguishes its lines in grey print."""
    return marker_style(place)["marker"]


def draw_lines(
    above: Axes,
    below: Axes,
    group: Sequence[Panel],
    width: float,
    first: bool,
    labelled: bool,
    checkpoints: Sequence[str],
    called: ShortNames,
) -> None:
    """Draw loss and prediction along a line from each checkpoint, and below them their difference.

    On the way to another checkpoint the lower panel shows the loss above the chord instead.
    """
    direction, alone = group[0].directions[0], not checkpoints
    for axes in (above, below):
        axes.margins(x=0)
        axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    above.tick_params(labelbottom=False)
    below.axhline(0, color="0.6", linewidth=0.7, zorder=2)
    every = []
    for panel in group:
        keys = ("t", "loss", "prediction", "departure")
        t, loss, prediction, departure = (numbers(getattr(panel.found, key)) for key in keys)
        every.append((loss, prediction))
        place = 0 if panel.of is None else checkpoints.index(panel.of)
        holds, curvature = panel.found.holds, panel.directions[0].curvature
        if holds and alone:
            for axes in (above, below):
                axes.axvspan(holds.start, holds.stop, color=HOLDS, zorder=0, linewidth=0)
        dashed = {"color": PREDICTION, "linewidth": 1.4} if alone else {"color": colour(place), "linewidth": 1.0}
        above.plot(t, loss, color=LOSS if alone else colour(place), linewidth=1.8, zorder=3)
        above.plot(t, prediction, **dashed, linestyle=DASHED, zorder=4)
        above.plot(0, loss[panel.found.origin], marker(place), **MARK, zorder=5)
        if (leads_to_checkpoint(direction.name) or direction.name == "update") and t[-1] >= 1:
            above.plot(1, np.interp(1.0, t, loss), marker(place), **END, zorder=6)
        if panel.found.barrier:
            draw_barrier(above, below, panel, t, loss, CHORD if alone else colour(place))
            continue
        if holds and alone:
            allowed = holds.share * abs(curvature or 0.0) * t**2 / 2
            below.fill_between(t, -allowed, allowed, color=BAND, linewidth=0, zorder=1)
        below.plot(t, departure, color=DEPARTURE if alone else colour(place), linewidth=1.2, zorder=3)
        if not alone:
            below.plot(t[[0, -1]], departure[[0, -1]], marker(place), **MARK, clip_on=False, zorder=4)
    around_loss(above, *map(np.concatenate, zip(*every, strict=True)))
    below.set_xlabel(unit(direction))
    if first:
        above.set_ylabel("loss")
    if labelled:
        below.set_ylabel("above\nchord" if group[0].found.barrier else "departure")
    name = f"eigenvector {direction.name}" if direction.name.isdigit() else called(direction.name)
    lines = [group[0].matrix, name if checkpoints else short_title(direction, called)]
    if group[0].found.barrier and len(group) == 1:
        lines.append(barrier_title(group[0].found.barrier))
    head(above, "\n".join(lines), width)


def draw_barrier(above: Axes, below: Axes, panel: Panel, t: np.ndarray, loss: np.ndarray, look: str) -> None:
    """Draw the chord between two checkpoints, and the loss above it with the barrier and twice its standard error."""
    found = panel.found.barrier
    above.plot([0, 1], [found.start, found.end], color=look, linewidth=1.2, linestyle=(0, (1, 1)), zorder=4)
    between = (t >= 0) & (t <= 1)
    chord = (1 - t) * found.start + t * found.end
    below.plot(t[between], (loss - chord)[between], color=look, linewidth=1.4, zorder=3)
    if np.isfinite(found.height) and 0 < found.t < 1:
        error = 2 * (found.standard_error or 0.0)
        below.errorbar(found.t, found.height, yerr=error, color="black", marker="D", markersize=3.5, zorder=5)


def barrier_title(found: Any) -> str:
    """The height of a barrier with its standard error, or that there is none."""
    if found.present is None:
        return "loss not finite"
    if not found.height > 0:
        return "no barrier"
    error = np.nan if found.standard_error is None else found.standard_error
    height = with_error(found.height, error, most=4)
    return f"barrier {height}" if found.present else f"no barrier: {height}"


def around_loss(axes: Axes, loss: np.ndarray, prediction: np.ndarray) -> None:
    """Limit the axis where the prediction goes far beyond the loss; it is logarithmic where the loss explodes."""
    low, high = np.nanmin(loss), np.nanmax(loss)
    if explodes(low, high):
        axes.set(yscale="log", ylim=(low / 1.5, 1.5 * high))
    elif high > low:
        room = BEYOND * (high - low)
        prediction = prediction if np.isfinite(prediction).any() else loss
        ends = min(low, max(np.nanmin(prediction), low - room)), max(high, min(np.nanmax(prediction), high + room))
        axes.set_ylim(ends[0] - 0.04 * (ends[1] - ends[0]), ends[1] + 0.04 * (ends[1] - ends[0]))


def explodes(low: float, high: float) -> bool:
    """Whether the losses reach so far above the lowest that their axis is logarithmic."""
    return 0 < EXPLODES * low < high


def draw_spread(axes: Axes, spread: Sequence[SpreadAlong], names: Sequence[str], width: float) -> None:
    """Draw a row for each direction: quantiles of single examples as a box, the mean as a diamond with its error."""
    rows = [one.curvature for one in spread]
    every = numbers([found.quantiles for found in rows])
    ends = [abs(found.mean) + 2 * found.standard_error for found in rows]
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
    for i, found in enumerate(rows):
        style = {"color": PREDICTION, "marker": "D", "markersize": 4, "elinewidth": 1.2, "zorder": 5}
        axes.errorbar(found.mean, i, xerr=2 * found.standard_error, **style)
    low = min(every.min(), *[-end for found, end in zip(rows, ends, strict=True) if found.mean < 0], 0.0)
    asinh_axis((axes,), np.array([1.3 * low, 1.3 * largest]), 1e-3 * largest, inches=0.7 * width)
    axes.set(ylim=(len(rows) - 0.5, -0.5), yticks=range(len(rows)))
    axes.set_yticklabels(names, fontsize=NAMES)
    axes.set_xlabel(with_note("d'A$_i$d", "(asinh axis, linear where shaded)", 0.6 * width))
    text = "curvature of single examples: 5, 25, 50, 75, 95 %; diamond: mean ± 2 standard errors"
    head_of_part(axes, text, width)


# Planes


def plane_figure(planes: Sequence[Panel], called: ShortNames, width: float) -> Figure:
    """Draw contours of the loss, dashed contours of the prediction at the same heights, and checkpoints as points."""
    columns = side_by_side(len(planes), width, PLANE, 2)
    rows = -(-len(planes) // columns)
    samples = [(LABELS[0], Line2D([], [], color=LOSS, linewidth=1.2))]
    if predicted(planes):
        samples.append((LABELS[1], Line2D([], [], color=PREDICTION, linestyle=DASHED)))
    if any(panel.found.trajectory for panel in planes):
        samples.append(("checkpoints in order", Line2D([], [], color=PATH, marker="o", markersize=3, linewidth=1.0)))
    wide = alone(width, columns)
    legend = lay_out_legend([text for text, _ in samples], None, wide)
    figure = Figure(figsize=(wide, 0.85 * wide / columns * rows + 0.6 + legend.height()), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes, panel in zip(grid.flat, planes, strict=False):
        draw_plane(axes, panel, wide / columns - 1.0, called)
    for axes in grid.flat[len(planes) :]:
        axes.set_axis_off()
    legend.draw(figure, [handle for _, handle in samples])
    return figure


def alone(width: float, columns: int) -> float:
    """The width of a figure of planes, which is at most 4.8 inches for a single column of panels."""
    return width if columns > 1 else min(width, 4.8)


def predicted(panels: Sequence[Panel]) -> bool:
    """Whether any of the panels has a prediction; a line along which buffers change has none."""
    return any(np.isfinite(numbers(panel.found.prediction)).any() for panel in panels)


def draw_plane(axes: Axes, panel: Panel, width: float, called: ShortNames) -> None:
    """Draw levels of loss and prediction in a plane."""
    x, y, loss, prediction = (numbers(getattr(panel.found, key)) for key in ("x", "y", "loss", "prediction"))
    heights = levels(loss)
    look = {"cmap": SHADES, "extend": "both", "norm": BoundaryNorm(heights, 256, extend="both")}
    shades = axes.contourf(x, y, np.ma.masked_invalid(loss), heights, **look)
    axes.contour(x, y, np.ma.masked_invalid(loss), heights, colors=LOSS, linewidths=0.9)
    if np.isfinite(prediction).any():
        axes.contour(x, y, prediction, heights, colors=PREDICTION, linewidths=1.1, linestyles=[DASHED])
    axes.plot(0, 0, "o", color="black", markersize=4, zorder=7)
    draw_marks(axes, panel, called)
    bar = axes.figure.colorbar(shades, ax=axes, format=lambda value, _: plain(value, 2), aspect=30, pad=0.02)
    bar.ax.tick_params(labelsize=7)
    bar.ax.set_title("loss", fontsize=7.5, loc="left")
    axes.set(xlim=(x[0], x[-1]), ylim=(y[0], y[-1]))
    texts = [axis_title(panel, i, called) for i in (0, 1)]
    axes.set(xlabel=shortened(texts[:1], 72 * width, 9)[0], ylabel=shortened(texts[1:], 72 * 0.9 * width, 9)[0])
    head(axes, ", ".join([*of(panel, called), panel.matrix]), width)


def draw_marks(axes: Axes, panel: Panel, called: ShortNames) -> None:
    """Draw other checkpoints in a plane; those of a trajectory with a line through them, and names at its ends."""
    marks = panel.found.marks or []
    ends = [(mark, True) for mark in marks]
    if panel.found.trajectory:
        x, y = [mark.x for mark in marks], [mark.y for mark in marks]
        axes.plot(x, y, "-o", color=PATH, markersize=3, linewidth=1.0, zorder=6)
        ends = [(marks[0], y[0] >= y[1]), (marks[-1], y[-1] >= y[-2])]  # names above or below, away from the line
    else:
        axes.plot([mark.x for mark in marks], [mark.y for mark in marks], "o", **END, zorder=6)
    middle = sum(axes.get_xlim()) / 2
    for mark, above in ends:
        side = "left" if mark.x < middle else "right"
        name = settable(mark.name) if panel.found.trajectory else called.file(mark.name)
        (text,) = shortened([name], 72 * 1.2, 7)
        shift = (5 if side == "left" else -5, 5 if above else -5)
        behind = {"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.7}
        look = {"fontsize": 7, "ha": side, "va": "bottom" if above else "top", "zorder": 8, "bbox": behind}
        axes.annotate(text, (mark.x, mark.y), xytext=shift, textcoords="offset points", **look)


def levels(loss: np.ndarray, count: int = 8) -> np.ndarray:
    """Heights (count,) of contours, spaced as the equidistant rings of a bowl, up to the 90 % quantile of the loss."""
    held = loss[np.isfinite(loss)]
    low, high = held.min(), np.quantile(held, 0.9)
    if explodes(low, high):
        return np.geomspace(low, high, count + 1)[1:]
    if not high > low:
        high = low + max(abs(low), 1.0) * 1e-6
    return low + (high - low) * (np.arange(1, count + 1) / count) ** 2


def surface_figure(planes: Sequence[Panel], called: ShortNames, width: float) -> Figure:
    """Draw the loss as a surface, and the prediction as a wireframe."""
    columns = side_by_side(len(planes), width, PLANE, 2)
    rows = -(-len(planes) // columns)
    wide = alone(width, columns)
    shown = LABELS[: 1 + predicted(planes)]
    legend = lay_out_legend(shown, None, wide)
    above = 0.6 + legend.height()  # inches
    figure = Figure(figsize=(wide, wide / columns * rows * 0.95 + above))
    for i, panel in enumerate(planes):
        draw_surface(figure.add_subplot(rows, columns, i + 1, projection="3d"), panel, called, wide / columns)
    figure.subplots_adjust(left=0.0, right=0.9, bottom=0.08, top=1 - above / figure.get_figheight(), wspace=0.12)
    handles = [Patch(facecolor="#9dc6e0", edgecolor=LOSS), Line2D([], [], color=PREDICTION, linewidth=1.0)]
    legend.draw(figure, handles[: len(shown)])
    return figure


def draw_surface(axes: Any, panel: Panel, called: ShortNames, width: float) -> None:
    """Draw loss and prediction as surfaces, up to where the loss explodes."""
    x, y, loss, prediction = (numbers(getattr(panel.found, key)) for key in ("x", "y", "loss", "prediction"))
    top, sides = CUT * levels(loss)[-1], np.meshgrid(x, y)
    loss, prediction = (np.where(np.abs(z) <= top, z, np.nan) for z in (loss, prediction))
    axes.plot_surface(*sides, loss, cmap="Blues", edgecolor=LOSS, linewidth=0.25, alpha=0.6)
    if np.isfinite(prediction).any():
        axes.plot_wireframe(*sides, prediction, color=PREDICTION, linewidth=0.8, rcount=9, ccount=9)
    axes.tick_params(labelsize=6.5, pad=-2)
    for axis in (axes.xaxis, axes.yaxis, axes.zaxis):
        axis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    names = shortened([axis_title(panel, i, called) for i in (0, 1)], 72 * 0.5 * width, 7.5)
    axes.set_xlabel(names[0], fontsize=7.5, labelpad=-4)
    axes.set_ylabel(names[1], fontsize=7.5, labelpad=-4)
    axes.set_zlabel("loss", fontsize=7.5, labelpad=-4)
    axes.set_title(", ".join([*of(panel, called), panel.matrix]), fontsize=8.5, pad=0)
