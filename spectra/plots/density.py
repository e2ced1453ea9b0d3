"""The figure of spectral densities: two panels, with one colour and dash pattern for each matrix."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from spectra.krylov.results import SpectralMeasure
from spectra.plots.axes import asinh_axis, plain, scientific
from spectra.plots.named import named
from spectra.plots.style import STYLE, Figure, figure_of, lay_out_legend, line_style, shortened, text_width
from spectra.plots.threshold import LOOK, entries, near
from spectra.records.density import DensityResult
from spectra.spectrum.curves import (
    NOISE,
    Band,
    asinh_grid,
    asinh_scale,
    cumulative,
    density,
    linear_grid,
    mass_near_zero,
)


def density_figure(
    measures: Mapping[str, SpectralMeasure | DensityResult],
    log: bool = False,
    title: str | None = None,
    width: float = 6.5,
    thresholds: Iterable[float | None] = (),
) -> Figure:
    """Draw spectral densities above their cumulative distributions, with 95 % bands.

    Between the two panels are the eigenvalues that are known individually, with numbers where there is room.

    Args:
        measures: spectral measures, or results of `spectra.density`, by name.
        log: draw eigenvalues on an asinh axis, and state the mass near zero in the legend. Without it, a bulk that is a
            small part of the axis is drawn a second time, enlarged.
        title: the title, or None.
        width: the width in inches.
        thresholds: thresholds of stability, drawn as dashed lines where they lie among the eigenvalues or not far
            above; None for a matrix without a threshold.

    Returns:
        The figure.

    Raises:
        ArgumentError: the measures are not in a dict, or there are none.
    """
    found = named(measures, "measures")
    measures = {name: one.measure() if isinstance(one, DensityResult) else one for name, one in found.items()}
    scale = asinh_scale(measures.values()) if log else None
    grid = asinh_grid(measures.values(), scale) if scale is not None else linear_grid(measures.values())
    marked = near(thresholds, max(float(measure.nodes[measure.weights > 0].max()) for measure in measures.values()))
    grid = _with_room(grid, marked, scale)
    styles = {name: line_style(index, len(measures)) for index, name in enumerate(measures)}
    known = {name: atoms for name, measure in measures.items() if (atoms := _deflated(measure)).size}
    with matplotlib.style.context(STYLE):
        lines, marks = entries(marked)
        legend = lay_out_legend([_legend_entry(*item, scale) for item in measures.items()] + marks, title, width)
        label = _axis_label(scale, width)
        strip, panels = 0.19 * len(known) or 0.05, 4.6 * (width / 6.5) ** 0.4 + 0.25 * label.count("\n")
        figure = Figure(figsize=(width, panels + strip + legend.height()), layout="constrained")
        top, rug, bottom = figure.subplots(3, 1, sharex=True, height_ratios=(2.5, strip, 1.6))
        _draw_density(top, measures, styles, grid)
        for name, measure in measures.items():
            _draw(bottom, cumulative(measure, grid), styles[name])
        bottom.set(ylim=(-0.02, 1.02), yticks=np.linspace(0, 1, 5), ylabel="fraction of\neigenvalues ≤ λ")
        bottom.set(xlim=(grid[0], grid[-1]), xlabel=label)
        legend.draw(figure, [*top.lines, *lines])
        for axes in (top, bottom):
            for value in marked:
                axes.axvline(value, **LOOK)
        if scale:
            asinh_axis((top, bottom), grid, scale)
        elif (bulk := _sliver(measures, grid)) is not None:
            _draw_enlarged((top, bottom), measures, styles, bulk, width)
        _draw_known(rug, known, {name: style["color"] for name, style in styles.items()})
    return figure


def _with_room(grid: np.ndarray, thresholds: Sequence[float], scale: float | None) -> np.ndarray:
    """The grid, extended to thresholds beyond its end; uniform in x, or in asinh(x / scale)."""
    last = 1.05 * max(thresholds, default=grid[-1])
    if last <= grid[-1]:
        return grid
    if scale is None:
        return np.linspace(grid[0], last, len(grid))
    low, high = np.arcsinh(np.array([grid[0], last]) / scale)
    return scale * np.sinh(np.linspace(low, high, len(grid)))


def _draw(axes: Axes, curve: Band, style: dict, label: str | None = None) -> None:
    axes.fill_between(curve.grid, curve.lower, curve.upper, color=style["color"], alpha=0.2, linewidth=0, zorder=2)
    axes.plot(curve.grid, curve.value, label=label, **style)


def _deflated(measure: SpectralMeasure) -> np.ndarray:
    return measure.nodes[0, : measure.deflated].cpu().numpy()


def _bulk(measure: SpectralMeasure) -> np.ndarray:
    """The nodes that were not deflated and have weight; all of them where the whole spectrum is known."""
    first = measure.deflated if measure.deflated < measure.dimension else 0
    return measure.nodes[:, first:][measure.weights[:, first:] > 0].cpu().numpy()


def _draw_density(axes: Axes, measures: dict[str, SpectralMeasure], styles: dict[str, dict], grid: np.ndarray) -> None:
    lowest, peaks = [], []
    for name, measure in measures.items():
        curve = density(measure, grid)
        _draw(axes, curve, styles[name])
        bulk = _bulk(measure)
        features = np.array([bulk.min(), bulk.max(), *_deflated(measure)])
        heights = np.interp(features, curve.grid, curve.value)
        lowest.append(heights[(features >= grid[0]) & (features <= grid[-1])].min())
        peaks.append(curve.value.max())
    # Down to the lowest height that means something, a known eigenvalue or an end of the bulk.
    peak = max(peaks)
    bottom = np.clip(min(lowest) / 5, 1e-12 * peak, 1e-2 * peak)
    axes.set(yscale="log", ylim=(bottom, 3 * peak), ylabel="density")


def _sliver(measures: dict[str, SpectralMeasure], grid: np.ndarray) -> np.ndarray | None:
    """All bulk nodes if they fill less than a tenth of the axis, else None."""
    bulk = np.concatenate([_bulk(measure) for measure in measures.values()])
    return bulk if NOISE * np.abs(grid).max() < np.ptp(bulk) < 0.1 * np.ptp(grid) else None


def _draw_enlarged(
    panels: tuple[Axes, Axes],
    measures: dict[str, SpectralMeasure],
    styles: dict[str, dict],
    bulk: np.ndarray,
    inches: float,
) -> None:
    """Draw the curves over the bulk alone in an inset on the free side of each panel, in a figure of this width."""
    low, high = bulk.min(), bulk.max()
    grid = np.linspace(low - 0.04 * (high - low), high + 0.04 * (high - low), 601)
    left, right = panels[0].get_xlim()
    before, after = (low - left) / (right - left), (right - high) / (right - left)
    width = max(max(before, after) - 0.15, 0.3)  # in parts of the panel, as are the places below
    start = 0.98 - width if after > before else 0.1
    bottom, top = panels[0].get_ylim()
    panels[0].set_ylim(bottom, max(top, bottom * 5**5))  # keeps the outliers' peaks, at 5 times bottom, below
    insets = [
        panels[0].inset_axes((start, 0.38, width, 0.54)),
        panels[1].inset_axes((start, 0.2, width, 0.66)),
    ]
    _draw_density(insets[0], measures, styles, grid)
    for name, measure in measures.items():
        _draw(insets[1], cumulative(measure, grid), styles[name])
    insets[0].set_title("the bulk, enlarged", fontsize=8, loc="left", pad=3)
    labels = 0.8 * 72 * inches * width / (text_width("−0.000", 7) + 8)  # that have room side by side
    for inset in insets:
        inset.set(xlim=(grid[0], grid[-1]), ylabel="", facecolor="0.97")
        inset.xaxis.set_major_locator(MaxNLocator(max(int(labels), 1), steps=[1, 2, 5, 10]))
        inset.tick_params(labelsize=7)


def _legend_entry(name: str, measure: SpectralMeasure, scale: float | None) -> str:
    if scale is None:
        return name
    value, lower, upper = (100 * fraction for fraction in mass_near_zero(measure, scale))
    return f"{name}\n|λ| ≤ λ$_0$: {value:.1f} % ({lower:.1f} to {upper:.1f})"


def _axis_label(scale: float | None, width: float) -> str:
    if scale is None:
        return "eigenvalue λ"
    label = f"eigenvalue λ  (asinh axis, linear within λ$_0$ = {scientific(scale)} of zero)"
    return (
        label if text_width(label, 9) < 0.7 * 72 * width else f"eigenvalue λ\n(asinh axis, λ$_0$ = {scientific(scale)})"
    )


def _draw_known(rug: Axes, known: dict[str, np.ndarray], colours: dict[str, str]) -> None:
    """Draw a row for each matrix: a mark at each known eigenvalue, and the largest values where there is room."""
    rug.set(ylim=(max(len(known), 1) - 0.5, -0.5), yticks=range(len(known)))
    figure = figure_of(rug)
    room = 0.25 * 72 * figure.get_figwidth()
    rug.set_yticklabels(shortened(list(known), room, 7), fontsize=7)
    rug.tick_params(axis="both", which="both", length=0)
    rug.tick_params(axis="x", which="both", labelbottom=False)
    rug.spines[:].set_visible(False)
    if engine := figure.get_layout_engine():
        engine.execute(figure)
    figure.set_layout_engine("none")  # positions are final: there is room for what is written now
    for row, (name, values) in enumerate(known.items()):
        rug.plot(values, np.full(values.size, row), "|", color=colours[name], markersize=6, markeredgewidth=1.1)
        _write_values(rug, row, values)


def _write_values(rug: Axes, row: int, values: np.ndarray) -> None:
    """Write values beside their marks, largest magnitudes first, where they cover no mark or text."""
    size, gap, per_point = 6.5, 3.0, rug.figure.dpi / 72
    marks = rug.transData.transform(np.column_stack([values, np.full(values.size, row)]))[:, 0] / per_point
    window = rug.get_window_extent()
    taken = [(mark - 1, mark + 1) for mark in marks]
    for index in np.argsort(-np.abs(values), kind="stable")[:40]:
        text, mark = plain(float(values[index]), 3), marks[index]
        length = text_width(text, size) + gap
        for side, anchor in ((1, "left"), (-1, "right")):
            start, stop = sorted((mark + side * gap / 2, mark + side * (gap + length)))
            fits = window.x0 / per_point <= start and stop <= window.x1 / per_point + gap
            if fits and all(stop <= left or right <= start for left, right in taken):
                rug.annotate(
                    text,
                    (values[index], row),
                    (side * gap, 0),
                    textcoords="offset points",
                    fontsize=size,
                    ha=anchor,
                    va="center_baseline",
                ).set_in_layout(False)
                taken.append((start, stop))
                break
