"""Figures of `spectra layers`, drawn from its record: numbers of each block, and spectral densities of each block."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.legend_handler import HandlerTuple
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from spectra.plots.axes import asinh_axis, asinh_label, magnitude_axis
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
    shortened,
    side_by_side,
    text_width,
)
from spectra.records.layers import Block
from spectra.records.precondition import titled
from spectra.records.record import Record
from spectra.spectrum.curves import asinh_grid, asinh_scale, density
from spectra.wording import counted

HEAD, NAMES = 8, 7  # points, of the title of a panel and of the names of blocks
HATCHES = ("", "////", "....", "xxxx", "----", "++++", "oooo")  # of bars, which differ in grey print too
ROW = 0.17  # height in inches of a block's bar
MOST_ROWS = 80  # of the blocks with the largest traces
MOST_PANELS = 24  # of the largest blocks or layers
EACH = 1.6  # least width in inches of a panel
LABELS = 4  # that the axis of a panel has room for
WIDE = 30  # largest over smallest value, from which an axis is logarithmic
Looks = dict[str, dict[str, Any]]


def layers_figures(record: Record, width: float = PAGE) -> dict[str, Figure]:
    """Draw the results of `spectra layers`: numbers of blocks or saliencies of channels, and spectral densities.

    Args:
        record: the result, as `spectra.load_result` returns it.
        width: the width in inches.

    Returns:
        The figures by name: `layers`, and `layers-density` where every block has a spectrum.
    """
    found = record.problem.get("precondition")
    results = {titled(entry.curvature, found): entry.blocks for entry in record.results}
    leading = {titled(entry.curvature, found): entry.leading for entry in record.results}
    with matplotlib.style.context(STYLE):
        if record.results[0].by == "channel":
            figures = {"layers": channel_figure(results, width)}
        else:
            figures = {"layers": block_figure(results, leading, width)}
        if all(has_density(block) for blocks in results.values() for block in blocks):
            figures["layers-density"] = small_multiples(results, width)
    return figures


def looks_of(results: Sequence[str]) -> Looks:
    """The line and marker styles of each matrix."""
    return {name: line_style(i, len(results)) | marker_style(i) for i, name in enumerate(results)}


def block_figure(
    results: dict[str, list[Block]], leading: dict[str, tuple[float, float] | None], width: float
) -> Figure:
    """Draw numbers of each block, with one row for each block.

    The panels show the share of the trace, the mean eigenvalue and the leading eigenvalue or, where no eigenvalues
    were computed, the saliency; then the share of the full matrix's leading eigenvector.
    """
    first = next(iter(results.values()))
    with_pairs = all(block.leading for blocks in results.values() for block in blocks)
    looks, count = looks_of(list(results)), 4 if with_pairs else 3
    columns = side_by_side(count, width, EACH, count)
    columns = 2 if columns == 3 < count else columns
    bands = -(-count // columns)
    rows = sorted(sorted(range(len(first)), key=lambda i: -abs(first[i].trace))[: MOST_ROWS // bands])
    colours = [look["color"] for look in looks.values()]
    patches = [Patch(facecolor=c, edgecolor="white", hatch=hatch(j), alpha=0.75) for j, c in enumerate(colours)]
    marks = [Line2D([], [], color=look["color"], marker=look["marker"], linestyle="none") for look in looks.values()]
    legend = lay_out_legend(list(results), None, width, handle=2.4)
    height = 0.95 + len(rows) * ROW * (1 + 0.35 * (len(results) - 1))
    figure = Figure(figsize=(width, bands * max(1.9, height) + 0.3 + legend.height()), layout="constrained")
    grid = figure.subplots(bands, columns, sharey=True, squeeze=False)
    panels = list(grid.flat)
    for axes in panels[count:]:
        axes.set_visible(False)
    for j, (name, blocks) in enumerate(results.items()):
        shown, at = [blocks[i] for i in rows], np.arange(len(rows)) + 0.7 * ((j + 0.5) / len(results) - 0.5)
        thick = 0.7 / len(results)
        bars(panels[0], at, shown, ("share", "share_error"), looks[name], hatch(j), thick, scale=100)
        if with_pairs:
            bars(panels[3], at, shown, ("mass", None), looks[name], hatch(j), thick)
    names = shortened([settable(first[i].name) for i in rows], 0.22 * 72 * width, NAMES)
    inches = (width - max(text_width(name, NAMES) for name in names) / 72 - 0.2) / columns - 0.12
    magnitudes(panels[1], results, rows, looks, lambda b: (b.mean, b.mean_error))
    head(panels[0], "% of the trace\n± 2 std. errors", inches, HEAD)
    head(panels[1], "mean λ\n± 2 std. errors", inches, HEAD)
    if with_pairs:
        wholes = {name: pair[0] for name, pair in leading.items() if pair and pair[0]}
        magnitudes(panels[2], results, rows, looks, lambda b: b.leading, wholes.values())
        for name, value in wholes.items():
            draw_whole(panels[2], abs(value), looks[name])
        head(panels[2], "leading |λ|; dashed:\nfull matrix", inches, HEAD)
        head(panels[3], "share of leading\neigenvector, |u|²", inches, HEAD)
    else:
        magnitudes(panels[2], results, rows, looks, lambda b: (b.sensitivity, b.sensitivity_error))
        head(panels[2], "saliency Σ dθ²/2\n± 2 std. errors", inches, HEAD)
    panels[0].set(yticks=range(len(rows)), ylim=(len(rows) - 0.4, -0.6))
    for axes in grid[:, 0]:
        axes.set_yticklabels(names, fontsize=NAMES)
    for axes in panels:
        axes.tick_params(axis="y", length=0)
        axes.tick_params(axis="x", labelsize=7)
        axes.grid(axis="y", color="0.92", linewidth=0.6)
        axes.set_axisbelow(True)
    legend.draw(figure, list(zip(patches, marks, strict=True)), {tuple: HandlerTuple(ndivide=None)})
    if len(rows) < len(first):
        label_below(figure, f"the {len(rows)} of {len(first)} blocks with the largest traces", width, 7.5)
    return figure


def hatch(place: int) -> str:
    """The hatch of the bars of one matrix."""
    return HATCHES[place % len(HATCHES)]


def draw_whole(axes: Axes, value: float, look: dict[str, Any]) -> None:
    """Draw a number of the full matrix as a dashed line, with the marker of the matrix at its lower end."""
    style = {"color": look["color"], "marker": look["marker"], "markersize": 3.5, "markevery": [0], "clip_on": False}
    across = axes.get_xaxis_transform()
    axes.plot([value, value], [0, 1], linewidth=0.9, linestyle=(0, (4, 2)), zorder=1, transform=across, **style)


def bars(
    axes: Axes,
    at: np.ndarray,
    blocks: Sequence[Block],
    keys: tuple,
    look: dict,
    pattern: str,
    thick: float,
    scale: float = 1.0,
) -> None:
    """Draw one number of each block as a bar, with two standard errors."""
    values = scale * np.array([getattr(block, keys[0]) for block in blocks], dtype=float)
    errors = 2 * scale * np.array([getattr(block, keys[1]) for block in blocks], dtype=float) if keys[1] else None
    style: dict[str, Any] = {"color": look["color"], "hatch": pattern, "edgecolor": "white", "alpha": 0.75}
    axes.barh(at, values, height=0.9 * thick, linewidth=0, zorder=2, **style)
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
    """Draw points with errors; where they spread widely, magnitudes on a logarithmic axis, negative ones hollow.

    The axis shows `others` too.
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


def grid_of(count: int, legend: Any, width: float, each: float) -> tuple[Figure, list[Axes], int]:
    """Panels that share both axes, each so many inches high, and the number of panels in a row."""
    columns = side_by_side(count, width, EACH, 3)
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(width, 0.6 + each * rows + legend.height()), layout="constrained")
    panels = figure.subplots(rows, columns, sharex="all", sharey="all", squeeze=False).ravel()
    for axes in panels[count:]:
        axes.set_visible(False)
    for axes in panels[max(0, count - columns) : count]:
        axes.tick_params(labelbottom=True)
    return figure, list(panels[:count]), columns


def small_multiples(results: dict[str, list[Block]], width: float) -> Figure:
    """Draw the spectral density of each block, all on the same asinh axis."""
    first = next(iter(results.values()))
    rows = sorted(sorted(range(len(first)), key=lambda i: -first[i].parameters)[:MOST_PANELS])
    measures = {name: [blocks[i].measure() for i in rows] for name, blocks in results.items()}
    looks = {name: line_style(i, len(results)) for i, name in enumerate(results)}
    every = [measure for some in measures.values() for measure in some]
    scale = asinh_scale(every)
    grid = asinh_grid(every, scale, points=501)
    legend = lay_out_legend(list(results), None, width)
    figure, panels, columns = grid_of(len(rows), legend, width, each=1.35)
    inches = (width - 0.5) / columns - 0.1
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
        size = f", n = {first[row].parameters:,}"
        title = shortened([settable(first[row].name)], 72 * inches - text_width(size, HEAD) - 5, HEAD)[0]
        head(axes, title + size, inches, HEAD)
        axes.tick_params(labelsize=7)
    lowest = min([1e-3 * max(heights), *(height / 3 for height in known)])
    panels[0].set(yscale="log", ylim=(max(lowest, 1e-9 * max(heights)), 3 * max(heights)))
    for axes in panels:
        asinh_axis((axes,), grid, scale, inches=1.4 * (inches - 0.1))  # their labels are smaller than usual
    figure.supylabel("density", fontsize=9)
    figure.supxlabel(asinh_label(scale, width), fontsize=9)
    legend.draw(figure, panels[0].lines)
    return figure


def has_density(block: Block) -> bool:
    """Whether the block has a density and all of it is finite."""
    return block.nodes is not None and bool(np.isfinite(block.nodes).all())


def channel_figure(results: dict[str, list[Block]], width: float) -> Figure:
    """Draw the saliencies of the channels of each layer, largest first, one panel a layer."""
    layers = by_layer(next(iter(results.values())))
    chosen = sorted(sorted(layers, key=lambda name: -len(layers[name]))[:MOST_PANELS], key=list(layers).index)
    looks = looks_of(list(results))
    handles = [Line2D([], [], **look_of_points(look)) for look in looks.values()]
    legend = lay_out_legend(list(results), None, width, handle=1.2)
    figure, panels, columns = grid_of(len(chosen), legend, width, each=1.35 if len(chosen) > 1 else 1.9)
    inches = (width - 0.5) / columns - 0.1
    drawn, negative = [], False
    for axes, layer in zip(panels, chosen, strict=True):
        for name, blocks in results.items():
            some = sorted((blocks[i] for i in layers[layer]), key=lambda block: -block.sensitivity)
            values = np.array([block.sensitivity for block in some], dtype=float)
            errors = np.array([block.sensitivity_error for block in some], dtype=float)
            at = np.arange(1, len(values) + 1)
            for held, face in ((values > 0, looks[name]["color"]), (values < 0, "white")):
                style: dict[str, Any] = {"markersize": 2.6, "mew": 0.7, "elinewidth": 0.7} | look_of_points(looks[name])
                axes.errorbar(at[held], np.abs(values[held]), 2 * errors[held], mfc=face, **style)
            drawn, negative = [*drawn, *np.abs(values[values != 0])], negative or bool((values < 0).any())
        title = f"{settable(layer)}, {counted(len(layers[layer]), 'channel')}"
        head(axes, shortened([title], 72 * inches, HEAD)[0], inches, HEAD)
        axes.tick_params(labelsize=7)
    if drawn:
        magnitude_axis(panels[0], "y", np.array(drawn))
    hollow = "; hollow: negative" if negative else ""
    left_out = f"; {len(layers) - len(chosen)} smaller layers left out" if len(chosen) < len(layers) else ""
    label_below(figure, f"channels in order of saliency{hollow}{left_out}", width)
    figure.supylabel("saliency Σ dθ²/2\n± 2 standard errors", fontsize=9)
    legend.draw(figure, handles)
    return figure


def by_layer(blocks: Sequence[Block]) -> dict[str, list[int]]:
    """The indices of blocks that are channels of each layer."""
    found: dict[str, list[int]] = {}
    for i, block in enumerate(blocks):
        found.setdefault(block.name.rpartition("[")[0], []).append(i)
    return found
