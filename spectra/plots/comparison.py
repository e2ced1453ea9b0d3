"""The figure of a comparison: eigenvalues and spectra of all matrices, and how far apart and how aligned pairs are."""

from __future__ import annotations

from typing import Any

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from spectra.plots.axes import asinh_axis, magnitude_axis, scientific
from spectra.plots.style import STYLE, Figure, figure_of, lay_out_legend, line_style, marker_style, shortened
from spectra.spectrum.curves import NOISE, asinh_grid, asinh_scale, cumulative

PAGE = 6.5  # width in inches
SPREAD = 0.6  # of the step from rank to rank, which the points of one rank share
LOW = 1e-4  # distances below it are rounding, or as good: arrows at the end of a logarithmic axis
WIDE = 30  # largest over smallest distance, from which that axis is logarithmic
Looks = dict[str, dict[str, Any]]


def comparison_figure(comparison: Any, title: str | None = None) -> Figure | None:
    """Draw a comparison of matrices: eigenvalues, distances, spectra, and overlaps of leading eigenspaces.

    Each matrix has its own colour, dash pattern and marker. Eigenvalues are drawn by rank with residuals, distances of
    pairs with standard errors (as they are, and at the best scale), spectra with bands that hold the whole true curve,
    and overlaps with the eigenspaces of the first matrix, hollow where there is no gap after the k-th eigenvalue.

    Args:
        comparison: what `spectra.compare` returns.
        title: the title, or None.

    Returns:
        The figure, or None where its numbers are not finite.
    """
    portraits = {n: p for n, p in comparison.portraits.items() if p.eigenpairs.values.isfinite().all()}
    if len(portraits) < 2 or not comparison.pairs:
        return None
    looks = {name: marker_style(i) | line_style(i, len(portraits)) for i, name in enumerate(portraits)}
    measures = {
        n: p.measure for n, p in portraits.items() if p.measure is not None and p.measure.nodes.isfinite().all()
    }
    pairs = [pair for pair in comparison.pairs if np.isfinite(pair.distance.value)]
    with matplotlib.style.context(STYLE):
        handles = [Line2D([], [], **look, markersize=4) for look in looks.values()]
        legend = lay_out_legend(list(looks), title, PAGE)
        heights = 2.3, 1.9, 0.3 + 0.24 * len(pairs)
        figure = Figure(figsize=(PAGE, sum(heights) + legend.height() + 1.5), layout="constrained")
        grid = figure.add_gridspec(3, 2, height_ratios=heights)
        draw_eigenvalues(figure.add_subplot(grid[0, 0]), portraits, comparison.k, looks)
        draw_overlaps(figure.add_subplot(grid[0, 1]), comparison, looks)
        draw_spectra(figure.add_subplot(grid[1, :]), measures, looks)
        draw_distances(figure.add_subplot(grid[2, :]), pairs)
        legend.draw(figure, handles)
    return figure


def head(axes: Axes, text: str) -> None:
    """Write the title of a panel."""
    axes.set_title(text, loc="left", fontsize=8.5, pad=5)


def draw_eigenvalues(axes: Axes, portraits: dict[str, Any], k: int, looks: Looks) -> None:
    """Draw magnitudes of eigenvalues by rank, but for zeros within rounding; hollow are negative ones."""
    spectra = {name: portrait.eigenpairs.values[:k].numpy() for name, portrait in portraits.items()}
    largest = max(np.abs(values).max(initial=0.0) for values in spectra.values())
    drawn, negative = [], False
    for i, (name, values) in enumerate(spectra.items()):
        held = np.abs(values) > NOISE * largest
        errors, at = portraits[name].eigenpairs.residuals[:k].numpy(), 1 + np.arange(len(values))
        shift = SPREAD * ((i + 0.5) / len(spectra) - 0.5)
        points(axes, at[held] + shift, np.abs(values[held]), errors[held], values[held] >= 0, looks[name])
        drawn, negative = [*drawn, *np.abs(values[held])], negative or bool((values[held] < 0).any())
    if drawn:
        magnitude_axis(axes, "y", np.array(drawn))
    head(axes, f"eigenvalues by rank\n± residual{'; hollow: λ < 0' if negative else ''}")
    axes.set(xlabel="rank by |λ|", ylabel="|λ|")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))


def points(axes: Axes, x: np.ndarray, y: np.ndarray, errors: np.ndarray | None, full: np.ndarray, look: dict) -> None:
    """Draw markers without a line: full ones, and hollow ones."""
    style: dict[str, Any] = look | {"linestyle": "none", "markersize": 3.8, "mew": 0.9}
    for held, face in ((full, look["color"]), (~full, "white")):
        if held.any():
            bars = None if errors is None else errors[held]
            axes.errorbar(x[held], y[held], bars, elinewidth=0.9, mfc=face, **style)


def draw_distances(axes: Axes, pairs: list[Any]) -> None:
    """Draw each pair's distance on a logarithmic axis; what is below `LOW` is an arrow at its end."""
    if not pairs:
        head(axes, "distance |A − B| / |A|: none is finite")
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
    room = 72 * figure_of(axes).get_figwidth() * 0.35
    axes.set_yticklabels(shortened([f"{pair.first} − {pair.second}" for pair in pairs], room, 7.5), fontsize=7.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)
    arrows = f"; arrow: below {LOW:g}" if log and any(pair.scaled_distance.value < LOW for pair in pairs) else ""
    head(axes, f"distance |A − B| / |A| ± 2 standard errors; hollow: at the best scale{arrows}")
    axes.set_xlabel("relative Frobenius distance")


def draw_spectra(axes: Axes, measures: dict[str, Any], looks: Looks) -> None:
    """Draw the cumulative distributions of eigenvalues with their bands."""
    head(axes, "distribution of eigenvalues; 95 % bands hold the whole curve")
    if not measures:
        axes.text(0.5, 0.5, "not measured", ha="center", transform=axes.transAxes)
        return
    scale = asinh_scale(measures.values())
    grid = asinh_grid(measures.values(), scale)
    for name, measure in measures.items():
        band, style = (
            cumulative(measure, grid),
            {key: looks[name][key] for key in ("color", "linestyle", "linewidth", "zorder")},
        )
        axes.fill_between(grid, band.lower, band.upper, color=style["color"], alpha=0.16, linewidth=0, zorder=1)
        axes.plot(grid, band.value, **style)
    asinh_axis((axes,), grid, scale)
    axes.set(ylim=(-0.02, 1.03), ylabel="fraction ≤ λ")
    axes.set_xlabel(f"eigenvalue λ (asinh axis, linear within {scientific(scale)} of zero)")


def draw_overlaps(axes: Axes, comparison: Any, looks: Looks) -> None:
    """Draw the overlaps of each matrix with the first; the dotted line is what two random spaces have."""
    first = next(iter(comparison.portraits))
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
        xlabel="leading eigenvectors j",
        ylabel="overlap of j-spaces",
        yticks=(0, 0.25, 0.5, 0.75, 1),
    )
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))
    head(axes, f"overlap with {first}\nhollow: no gap; dotted: chance")
