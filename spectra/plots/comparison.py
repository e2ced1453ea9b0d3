"""The figure of a comparison: eigenvalues and spectra of all matrices, and how far apart and how aligned pairs are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from spectra.plots.axes import asinh_axis, asinh_label, magnitude_axis
from spectra.plots.style import (
    PAGE,
    STYLE,
    Figure,
    head,
    head_of_part,
    in_lines,
    lay_out_legend,
    line_style,
    marker_style,
    side_by_side,
)
from spectra.spectrum.curves import NOISE, asinh_grid, asinh_scale, cumulative

SPREAD = 0.6  # of the step from rank to rank, which the points of one rank share
LOW = 1e-4  # distances below it are rounding, or as good: arrows at the end of a logarithmic axis
WIDE = 30  # largest over smallest distance, from which that axis is logarithmic
NAMES = 7.5  # points, of the names of pairs
Looks = dict[str, dict[str, Any]]


def comparison_figure(comparison: Any, title: str | None = None, width: float = PAGE) -> Figure | None:
    """Draw a comparison of matrices: eigenvalues, distances, spectra, and overlaps of leading eigenspaces.

    Each matrix has its own colour, dash pattern and marker. Eigenvalues are drawn by rank with residuals, distances of
    pairs with standard errors (as they are, and at the best scale), spectra with bands that hold the whole true curve,
    and overlaps with the eigenspaces of the first matrix, hollow where there is no gap after the k-th eigenvalue.

    Args:
        comparison: what `spectra.compare` returns.
        title: the title, or None.
        width: the width in inches.

    Returns:
        The figure, or None where its numbers are not finite.
    """
    summaries = {n: p for n, p in comparison.summaries.items() if p.eigenpairs.values.isfinite().all()}
    if len(summaries) < 2 or not comparison.pairs:
        return None
    looks = {name: marker_style(i) | line_style(i, len(summaries)) for i, name in enumerate(summaries)}
    measures = {
        n: p.measure for n, p in summaries.items() if p.measure is not None and p.measure.nodes.isfinite().all()
    }
    pairs = [pair for pair in comparison.pairs if np.isfinite(pair.distance.value)]
    with matplotlib.style.context(STYLE):
        handles = [Line2D([], [], **look, markersize=4) for look in looks.values()]
        legend = lay_out_legend(list(looks), title, width)
        columns = side_by_side(2, width, each=2.4, most=2)
        inches = width / columns - 0.7
        names = in_lines([f"{pair.first} − {pair.second}" for pair in pairs], 0.35 * width, NAMES)
        row = 0.13 * (1 + max((name.count("\n") for name in names), default=0)) + 0.1
        above = 2.7 if columns == 2 else 4.4  # inches
        heights = above + 0.1 + legend.height(), 2.3, 0.9 + row * len(pairs)
        figure = Figure(figsize=(width, sum(heights)), layout="constrained")
        parts = figure.subfigures(3, height_ratios=heights, squeeze=False)[:, 0]  # each with margins of its own
        eigenvalues, overlaps = parts[0].subplots(2 // columns, columns)
        draw_eigenvalues(eigenvalues, summaries, comparison.k, looks, inches)
        draw_overlaps(overlaps, comparison, looks, inches)
        draw_spectra(parts[1].subplots(), measures, looks, width - 0.7)
        draw_distances(parts[2].subplots(), pairs, names, width)
        legend.draw(parts[0], handles)
    return figure


def draw_eigenvalues(axes: Axes, summaries: dict[str, Any], k: int, looks: Looks, inches: float) -> None:
    """Draw magnitudes of eigenvalues by rank, without zeros within rounding; negative ones are hollow."""
    spectra = {name: summary.eigenpairs.values[:k].numpy() for name, summary in summaries.items()}
    largest = max(np.abs(values).max(initial=0.0) for values in spectra.values())
    drawn, negative = [], False
    for i, (name, values) in enumerate(spectra.items()):
        held = np.abs(values) > NOISE * largest
        errors, at = summaries[name].eigenpairs.residuals[:k].numpy(), 1 + np.arange(len(values))
        shift = SPREAD * ((i + 0.5) / len(spectra) - 0.5)
        points(axes, at[held] + shift, np.abs(values[held]), errors[held], values[held] >= 0, looks[name])
        drawn, negative = [*drawn, *np.abs(values[held])], negative or bool((values[held] < 0).any())
    if drawn:
        magnitude_axis(axes, "y", np.array(drawn))
    head(axes, f"eigenvalues by rank{'; hollow: λ < 0' if negative else ''}", inches)
    axes.set(xlabel="rank by |λ|", ylabel="|λ| ± residual")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))


def points(axes: Axes, x: np.ndarray, y: np.ndarray, errors: np.ndarray | None, full: np.ndarray, look: dict) -> None:
    """Draw markers without a line, hollow where `full` is false."""
    style: dict[str, Any] = look | {"linestyle": "none", "markersize": 3.8, "mew": 0.9}
    for held, face in ((full, look["color"]), (~full, "white")):
        if held.any():
            bars = None if errors is None else errors[held]
            axes.errorbar(x[held], y[held], bars, elinewidth=0.9, mfc=face, **style)


def draw_distances(axes: Axes, pairs: list[Any], names: Sequence[str], width: float) -> None:
    """Draw each pair's distance; on a logarithmic axis, an arrow stands for a distance below `LOW`."""
    if not pairs:
        head_of_part(axes, "distance |A − B| / |A|: no distance is finite", width)
        axes.set(xticks=[], yticks=[])
        return
    values = [e.value for pair in pairs for e in (pair.distance, pair.scaled_distance) if e.value >= LOW]
    log = bool(values) and max(values) > WIDE * min(values)
    low, high = min(values, default=0.0) / 1.6 if log else 0.0, max(values, default=1.0)
    for i, pair in enumerate(pairs):
        for found, shift, face in ((pair.distance, -0.16, "0.15"), (pair.scaled_distance, 0.16, "white")):
            style: dict[str, Any] = {
                "color": "0.15",
                "mfc": face,
                "mew": 0.9,
                "markersize": 4,
                "clip_on": False,
                "zorder": 3,
            }
            if log and found.value < LOW:
                axes.plot(low, i + shift, marker="<", **style)
            else:
                axes.errorbar(found.value, i + shift, xerr=2 * found.standard_error, fmt="o", elinewidth=0.9, **style)
    if log:
        magnitude_axis(axes, "x", np.array([low, high]))
    axes.set(xlim=(low, 1.1 * high), ylim=(len(pairs) - 0.5, -0.5), yticks=range(len(pairs)))
    axes.set_yticklabels(names, fontsize=NAMES)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)
    arrows = f"; arrow: below {LOW:g}" if log and any(pair.scaled_distance.value < LOW for pair in pairs) else ""
    head_of_part(axes, f"distance |A − B| / |A| ± 2 standard errors; hollow: B at the best scale{arrows}", width)
    axes.set_xlabel("relative Frobenius distance")


def draw_spectra(axes: Axes, measures: dict[str, Any], looks: Looks, inches: float) -> None:
    """Draw the cumulative distributions of eigenvalues with their bands."""
    head(axes, "distribution of eigenvalues, with 95 % bands for the whole curve", inches)
    if not measures:
        axes.text(0.5, 0.5, "not measured", ha="center", transform=axes.transAxes)
        return
    scale = asinh_scale(measures.values())
    grid = asinh_grid(measures.values(), scale)
    for name, measure in measures.items():
        band = cumulative(measure, grid)
        style = {key: looks[name][key] for key in ("color", "linestyle", "linewidth", "zorder")}
        axes.fill_between(grid, band.lower, band.upper, color=style["color"], alpha=0.16, linewidth=0, zorder=1)
        axes.plot(grid, band.value, **style)
    asinh_axis((axes,), grid, scale, inches)
    axes.set(ylim=(-0.02, 1.03), ylabel="fraction ≤ λ", xlabel=asinh_label(scale, inches))


def draw_overlaps(axes: Axes, comparison: Any, looks: Looks, inches: float) -> None:
    """Draw the overlaps of each matrix with the first; the dotted line is the overlap of two random spaces."""
    first = next(iter(comparison.summaries))
    for pair in comparison.pairs:
        if pair.first != first or pair.second not in looks or not pair.agreements:
            continue
        j, values = (np.array([getattr(a, key) for a in pair.agreements]) for key in ("j", "overlap"))
        at = j + SPREAD / 2 * ((list(looks).index(pair.second) + 0.5) / len(looks) - 0.5)
        reliable, look = np.array([a.reliable for a in pair.agreements]), looks[pair.second]
        errors = np.array([a.error if a.reliable else 0.0 for a in pair.agreements])
        axes.plot(at, values, **{key: look[key] for key in ("color", "linestyle", "linewidth")}, alpha=0.6, zorder=2)
        points(axes, at, values, errors, reliable, look)
    j = np.arange(1, comparison.k + 1)
    axes.plot(j, j / comparison.dimension, color="0.5", linestyle=(0, (1, 2)), linewidth=1.0, zorder=1)
    axes.set(
        ylim=(-0.03, 1.06),
        xlabel="number of leading eigenvectors, j",
        ylabel="overlap of eigenspaces",
        yticks=(0, 0.25, 0.5, 0.75, 1),
    )
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))
    head(axes, f"overlap with {first}; hollow: no gap; dotted: random spaces", inches)
