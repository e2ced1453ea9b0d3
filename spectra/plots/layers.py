"""Figures of a matrix block by block, from the record of `spectra layers`: bars, and small multiples."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from spectra.plots.axes import asinh_axis, magnitude_axis, scientific
from spectra.plots.names import settable
from spectra.plots.style import STYLE, Figure, lay_out_legend, line_style, marker_style, shortened
from spectra.records.layers import Block
from spectra.records.precondition import titled
from spectra.records.record import Record
from spectra.spectrum.curves import asinh_grid, asinh_scale, density
from spectra.wording import counted

PAGE = 6.5  # width in inches
ROW = 0.17  # height in inches of a block's bar
MOST_ROWS = 80  # of the blocks with the largest traces
MOST_PANELS = 24  # of the largest blocks or layers
LABELS = 4  # that the axis of a column has room for
WIDE = 30  # largest over smallest value, from which an axis is logarithmic
Looks = dict[str, dict[str, Any]]


def layers_figures(record: Record) -> dict[str, Figure]:
    """Draw the results of `spectra layers`: bars of all blocks or curves of all channels, and spectral densities.

    Args:
        record: the result, as `spectra.load_result` returns it.

    Returns:
        The figures by name: `layers`, and `layers-density` where every block has a spectrum.
    """
    found = record.problem.get("precondition")
    results = {titled(entry.curvature, found): entry.blocks for entry in record.results}
    leading = {titled(entry.curvature, found): entry.leading for entry in record.results}
    with matplotlib.style.context(STYLE):
        if record.results[0].by == "channel":
            figures = {"layers": channel_figure(results)}
        else:
            figures = {"layers": block_figure(results, leading)}
        if all(has_density(block) for blocks in results.values() for block in blocks):
            figures["layers-density"] = small_multiples(results)
    return figures


def looks_of(results: Sequence[str]) -> Looks:
    """The line and marker styles of each matrix."""
    return {name: line_style(i, len(results)) | marker_style(i) for i, name in enumerate(results)}


def block_figure(results: dict[str, list[Block]], leading: dict[str, tuple[float, float] | None]) -> Figure:
    """Rows are blocks; columns the share of the trace, mean and leading eigenvalue, and what u has in the block."""
    first = next(iter(results.values()))
    rows = sorted(sorted(range(len(first)), key=lambda i: -abs(first[i].trace))[:MOST_ROWS])
    with_pairs = all(block.leading for blocks in results.values() for block in blocks)
    looks, count = looks_of(list(results)), 4 if with_pairs else 3
    handles = [Line2D([], [], color=look["color"], marker=look["marker"], linestyle="none") for look in looks.values()]
    legend = lay_out_legend(list(results), None, PAGE, handle=1.2)
    height = 0.95 + len(rows) * ROW * (1 + 0.35 * (len(results) - 1)) + legend.height()
    figure = Figure(figsize=(PAGE, max(2.2, height)), layout="constrained")
    panels = figure.subplots(1, count, sharey=True)
    for j, (name, blocks) in enumerate(results.items()):
        shown, at = [blocks[i] for i in rows], np.arange(len(rows)) + 0.7 * ((j + 0.5) / len(results) - 0.5)
        thick = 0.7 / len(results)
        bars(panels[0], at, shown, ("share", "share_error"), looks[name], thick, scale=100)
        if with_pairs:
            bars(panels[3], at, shown, ("mass", None), looks[name], thick)
    magnitudes(panels[1], results, rows, looks, lambda b: (b.mean, b.mean_error))
    if with_pairs:
        wholes = {name: pair[0] for name, pair in leading.items() if pair and pair[0]}
        magnitudes(panels[2], results, rows, looks, lambda b: b.leading, wholes.values())
        for name, value in wholes.items():
            panels[2].axvline(abs(value), color=looks[name]["color"], linewidth=0.9, linestyle=(0, (4, 2)), zorder=1)
        head(panels[2], "leading |λ|\ndashed: of all")
        head(panels[3], "|u|² inside, u the\nleading of all")
    else:
        magnitudes(panels[2], results, rows, looks, lambda b: (b.sensitivity, b.sensitivity_error))
        head(panels[2], "saliency Σ dθ²/2\n± 2 s.e.")
    head(panels[0], "% of the trace\n± 2 s.e.")
    head(panels[1], "mean λ\n± 2 s.e.")
    names = shortened([settable(first[i].name) for i in rows], 0.22 * 72 * PAGE, 7)
    panels[0].set(yticks=range(len(rows)), ylim=(len(rows) - 0.4, -0.6))
    panels[0].set_yticklabels(names, fontsize=7)
    for axes in panels:
        axes.tick_params(axis="y", length=0)
        axes.tick_params(axis="x", labelsize=7)
        axes.grid(axis="y", color="0.92", linewidth=0.6)
        axes.set_axisbelow(True)
    legend.draw(figure, handles)
    if len(rows) < len(first):
        figure.supxlabel(f"the {len(rows)} of {len(first)} blocks with the largest traces", fontsize=7.5)
    return figure


def head(axes: Axes, text: str) -> None:
    """Write the title of a panel."""
    axes.set_title(text, loc="left", fontsize=8, pad=4)


def bars(axes: Axes, at: np.ndarray, blocks: Sequence[Block], keys: tuple, look: dict, thick: float, scale=1.0) -> None:
    """Draw one number of each block as a bar, with two standard errors."""
    values = scale * np.array([getattr(block, keys[0]) for block in blocks], dtype=float)
    errors = 2 * scale * np.array([getattr(block, keys[1]) for block in blocks], dtype=float) if keys[1] else None
    axes.barh(at, values, height=0.9 * thick, color=look["color"], alpha=0.75, linewidth=0, zorder=2)
    if errors is not None:
        axes.errorbar(values, at, xerr=errors, fmt="none", ecolor="0.1", elinewidth=0.9, zorder=3)
    axes.axvline(0, color="0.6", linewidth=0.6, zorder=1)


def magnitudes(
    axes: Axes,
    results: dict[str, list[Block]],
    rows: Sequence[int],
    looks: Looks,
    read: Callable[[Block], Any],
    others: Iterable[float] = (),
) -> None:
    """Draw points with errors, by magnitude on a logarithmic axis where they spread; hollow where negative.

    The axis has room for `others` too.
    """
    every = np.array([read(blocks[i])[0] for blocks in results.values() for i in rows] + [*others], dtype=float)
    every = np.abs(every[np.isfinite(every) & (every != 0)])
    log = bool(every.size) and every.max() > WIDE * every.min()
    for j, (name, blocks) in enumerate(results.items()):
        values, errors = np.array([read(blocks[i]) for i in rows], dtype=float).T
        at = np.arange(len(rows)) + 0.7 * ((j + 0.5) / len(results) - 0.5)
        for held, face in ((values > 0, looks[name]["color"]), (values < 0, "white")):
            x = np.abs(values[held]) if log else values[held]
            style = {"markersize": 4, "mew": 0.9, "elinewidth": 0.9, "zorder": 3} | look_of_points(looks[name])
            axes.errorbar(x, at[held], xerr=2 * errors[held], mfc=face, **style)
    if log:
        magnitude_axis(axes, "x", every, labels=LABELS)
    elif every.size:
        axes.axvline(0, color="0.6", linewidth=0.6, zorder=1)


def look_of_points(look: dict[str, Any]) -> dict[str, Any]:
    """The marker style alone, without lines."""
    return {"color": look["color"], "marker": look["marker"], "linestyle": "none"}


def grid_of(count: int, legend: Any, each: float) -> tuple[Figure, list[Axes]]:
    """Panels in three columns that share both axes."""
    columns = min(3, count)
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(PAGE, 0.5 + each * rows + legend.height()), layout="constrained")
    panels = figure.subplots(rows, columns, sharex="all", sharey="all", squeeze=False).ravel()
    for axes in panels[count:]:
        axes.set_visible(False)
    for axes in panels[max(0, count - columns) : count]:
        axes.tick_params(labelbottom=True)
    return figure, list(panels[:count])


def small_multiples(results: dict[str, list[Block]]) -> Figure:
    """A density a block, all on the same axes: in asinh, linear around zero."""
    first = next(iter(results.values()))
    rows = sorted(sorted(range(len(first)), key=lambda i: -first[i].parameters)[:MOST_PANELS])
    measures = {name: [blocks[i].measure() for i in rows] for name, blocks in results.items()}
    looks = {name: line_style(i, len(results)) for i, name in enumerate(results)}
    every = [measure for some in measures.values() for measure in some]
    scale = asinh_scale(every)
    grid = asinh_grid(every, scale, points=501)
    legend = lay_out_legend(list(results), None, PAGE)
    figure, panels = grid_of(len(rows), legend, each=1.35)
    heights: list[float] = []
    known: list[float] = []
    for j, (axes, row) in enumerate(zip(panels, rows, strict=True)):
        for name, some in measures.items():
            curve = density(some[j], grid)
            style = looks[name]
            axes.fill_between(grid, curve.lower, curve.upper, color=style["color"], alpha=0.2, linewidth=0)
            axes.plot(grid, curve.value, **style)
            heights.append(curve.value.max())
            known.extend(np.atleast_1d(np.interp(some[j].nodes[0, : some[j].deflated], grid, curve.value)))
        title = shortened([settable(first[row].name)], 72 * PAGE / 3 - 60, 8)[0]
        head(axes, f"{title}, n = {first[row].parameters:,}")
        axes.tick_params(labelsize=7)
    lowest = min([1e-3 * max(heights), *(height / 3 for height in known)])
    panels[0].set(yscale="log", ylim=(max(lowest, 1e-9 * max(heights)), 3 * max(heights)))
    for axes in panels:
        asinh_axis((axes,), grid, scale, inches=1.4 * (PAGE / 3 - 0.5))  # their labels are smaller than usual
    figure.supylabel("density", fontsize=9)
    figure.supxlabel(f"eigenvalue λ (asinh axis, linear within {scientific(scale)} of zero)", fontsize=9)
    legend.draw(figure, panels[0].lines)
    return figure


def has_density(block: Block) -> bool:
    """Whether a density of each block was asked for, and all of it is finite."""
    return block.nodes is not None and bool(np.isfinite(block.nodes).all())


def channel_figure(results: dict[str, list[Block]]) -> Figure:
    """A panel a layer: saliencies of its channels, largest first."""
    layers = by_layer(next(iter(results.values())))
    chosen = sorted(sorted(layers, key=lambda name: -len(layers[name]))[:MOST_PANELS], key=list(layers).index)
    looks = looks_of(list(results))
    handles = [Line2D([], [], **look_of_points(look)) for look in looks.values()]
    legend = lay_out_legend(list(results), None, PAGE, handle=1.2)
    figure, panels = grid_of(len(chosen), legend, each=1.35)
    drawn = []
    for axes, layer in zip(panels, chosen, strict=True):
        for name, blocks in results.items():
            some = sorted((blocks[i] for i in layers[layer]), key=lambda block: -block.sensitivity)
            values = np.array([block.sensitivity for block in some], dtype=float)
            errors = np.array([block.sensitivity_error for block in some], dtype=float)
            at = np.arange(1, len(values) + 1)
            for held, face in ((values > 0, looks[name]["color"]), (values < 0, "white")):
                style: dict[str, Any] = {"markersize": 2.6, "mew": 0.7, "elinewidth": 0.7} | look_of_points(looks[name])
                axes.errorbar(at[held], np.abs(values[held]), 2 * errors[held], mfc=face, **style)
            drawn += [*np.abs(values[values != 0])]
        head(
            axes, shortened([f"{settable(layer)}, {counted(len(layers[layer]), 'channel')}"], 72 * PAGE / 3 - 30, 8)[0]
        )
        axes.tick_params(labelsize=7)
    if drawn:
        magnitude_axis(panels[0], "y", np.array(drawn))
    left_out = f"; {len(layers) - len(chosen)} smaller layers left out" if len(chosen) < len(layers) else ""
    figure.supxlabel(f"channels by falling saliency; hollow: negative{left_out}", fontsize=9)
    figure.supylabel("saliency Σ dθ²/2 ± 2 s.e.", fontsize=9)
    legend.draw(figure, handles)
    return figure


def by_layer(blocks: Sequence[Block]) -> dict[str, list[int]]:
    """The indices of blocks that are channels of each layer."""
    found: dict[str, list[int]] = {}
    for i, block in enumerate(blocks):
        found.setdefault(block.name.rpartition("[")[0], []).append(i)
    return found
