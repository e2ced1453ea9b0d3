"""Figures of spectra, for a page: two panels, one colour and one dash pattern a matrix.

Draws on `matplotlib.figure.Figure` under matplotlib's own defaults and `STYLE`: no window, no pyplot, no
global settings read or changed.
"""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.textpath import TextPath
from matplotlib.ticker import FixedFormatter, FixedLocator

from spectra.density import (
    NOISE,
    Band,
    asinh_grid,
    asinh_scale,
    cumulative,
    density,
    linear_grid,
    mass_near_zero,
)
from spectra.krylov.results import SpectralMeasure

STYLE = [
    "default",
    {
        "font.size": 9,
        "axes.labelsize": 9,
        "legend.fontsize": 8.5,
        "xtick.labelsize": 8,
        "ytick.labelsize": 8,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "lines.solid_capstyle": "butt",
        "pdf.fonttype": 42,  # TrueType, embedded: text stays text
        "svg.fonttype": "none",
        "svg.hashsalt": "spectra",
        "savefig.dpi": 200,
    },
]
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe & Ito 2008
# Later curves are drawn on top of earlier ones, thinner and with wider gaps, so that equal curves all show.
DASHES = (
    "solid",
    (0, (5, 2)),
    (0, (1.2, 1.4)),
    (0, (6, 2, 1.2, 2)),
    (0, (9, 3)),
    (0, (2.5, 2.5)),
    (0, (1, 3)),
)
THICKEST, THINNEST = 2.4, 1.1  # points
NO_DATES = {"png": {"Software": None}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}


def density_figure(
    measures: dict[str, SpectralMeasure], log: bool = False, title: str | None = None, width: float = 6.5
) -> Figure:
    """Density over cumulative distribution of each named measure, with 95 % bands; `width` in inches.

    Between the panels stand the eigenvalues that are known one by one, as many with their value as there is
    room for. `log` draws the eigenvalue axis in asinh, and the legend then states the mass near zero; without
    it, a bulk that is a sliver of the axis is drawn a second time, enlarged.
    """
    scale = asinh_scale(measures.values()) if log else None
    grid = asinh_grid(measures.values(), scale) if log else linear_grid(measures.values())
    styles = {name: _style(index, len(measures)) for index, name in enumerate(measures)}
    known = {name: atoms for name, measure in measures.items() if (atoms := _deflated(measure)).size}
    with matplotlib.style.context(STYLE):
        strip = 0.19 * len(known) or 0.05
        figure = Figure(figsize=(width, 4.6 + strip), layout="constrained")
        top, rug, bottom = figure.subplots(3, 1, sharex=True, height_ratios=(2.5, strip, 1.6))
        _draw_density(top, measures, styles, grid)
        for name, measure in measures.items():
            _draw(bottom, cumulative(measure, grid), styles[name])
        bottom.set(ylim=(-0.02, 1.02), yticks=np.linspace(0, 1, 5), ylabel="fraction of\neigenvalues ≤ λ")
        bottom.set(xlim=(grid[0], grid[-1]), xlabel=_axis_label(scale))
        _draw_legend(figure, top, [_legend_entry(*item, scale) for item in measures.items()], title)
        if scale:
            _asinh_axis((top, bottom), grid, scale)
        elif (bulk := _sliver(measures, grid)) is not None:
            _draw_enlarged((top, bottom), measures, styles, bulk)
        _draw_known(rug, known, {name: style["color"] for name, style in styles.items()})
    return figure


def save_figure(figure: Figure, target: Path | str | BinaryIO, format: str | None = None) -> None:
    """Write a png (200 dpi), pdf or svg, the same bytes for the same figure; a buffer needs `format`."""
    format = format or Path(target).suffix.lstrip(".").lower()
    with matplotlib.style.context(STYLE):
        figure.savefig(target, format=format, metadata=NO_DATES.get(format))


def _style(index: int, count: int) -> dict:
    thickness = np.linspace(THICKEST, THINNEST, count)[index] if count > 1 else 1.6
    return {
        "color": COLOURS[index % len(COLOURS)],
        "linestyle": DASHES[index % len(DASHES)],
        "linewidth": float(thickness),
        "zorder": 3 + index,
    }


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
    """All bulk nodes, if together they fill less than a tenth of the axis."""
    bulk = np.concatenate([_bulk(measure) for measure in measures.values()])
    return bulk if NOISE * np.abs(grid).max() < np.ptp(bulk) < 0.1 * np.ptp(grid) else None


def _draw_enlarged(
    panels: tuple[Axes, Axes], measures: dict[str, SpectralMeasure], styles: dict[str, dict], bulk: np.ndarray
) -> None:
    """The same two curves over the bulk alone, on the free side of each panel."""
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
    for inset in insets:
        inset.set(xlim=(grid[0], grid[-1]), ylabel="", facecolor="0.97")
        inset.tick_params(labelsize=7)


def _legend_entry(name: str, measure: SpectralMeasure, scale: float | None) -> str:
    if scale is None:
        return name
    value, lower, upper = (100 * fraction for fraction in mass_near_zero(measure, scale))
    return f"{name}\n|λ| ≤ λ$_0$: {value:.1f} % ({lower:.1f} to {upper:.1f})"


def _draw_legend(figure: Figure, axes: Axes, labels: list[str], title: str | None) -> None:
    """Above everything, in as many columns as the page has room for."""
    size = 8.5  # points; a handle and the space around it take 50
    lines = [line for label in labels for line in label.split("\n")]
    longest = max(TextPath((0, 0), line, size=size).get_extents().width for line in lines)
    columns = max(1, min(len(labels), int(72 * figure.get_figwidth() / (longest + 50))))
    figure.legend(
        axes.lines,
        labels,
        loc="outside upper center",
        ncols=columns,
        title=title,
        title_fontsize=10,
        fontsize=size,
        frameon=False,
        handlelength=3.2,
    )


def _axis_label(scale: float | None) -> str:
    if scale is None:
        return "eigenvalue λ"
    return f"eigenvalue λ  (asinh axis, linear within λ$_0$ = {_scientific(scale)} of zero)"


def _scientific(value: float, digits: int = 2) -> str:
    if 1e-3 <= value < 1e4:
        return f"{value:.{digits}g}"
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    return rf"${mantissa}\times10^{{{int(exponent)}}}$"


def _asinh_axis(panels: tuple[Axes, ...], grid: np.ndarray, scale: float) -> None:
    axes = panels[-1]
    axes.set_xscale("function", functions=(lambda x: np.arcsinh(x / scale), lambda u: scale * np.sinh(u)))
    axes.set_xlim(grid[0], grid[-1])
    inches = axes.figure.get_figwidth() - 1.2
    major, minor = asinh_ticks(grid[0], grid[-1], scale, labels=inches / 0.5)
    axes.xaxis.set_major_locator(FixedLocator(list(major)))
    axes.xaxis.set_major_formatter(FixedFormatter(list(major.values())))
    axes.xaxis.set_minor_locator(FixedLocator(minor))
    for panel in panels:
        panel.axvspan(-scale, scale, color="0.94", zorder=0, linewidth=0)


def asinh_ticks(low: float, high: float, scale: float, labels: float) -> tuple[dict[float, str], list[float]]:
    """Ticks of an asinh axis with room for so many `labels`: {position: label} and minor positions.

    Zero and powers of ten of either sign, every s-th power with the smallest s that leaves room; where that
    makes fewer than three, the values 1, 2 and 5 times powers of ten.
    """
    least = (np.arcsinh(high / scale) - np.arcsinh(low / scale)) / labels
    largest = max(abs(low), abs(high))
    powers = range(int(np.floor(np.log10(scale))), int(np.floor(np.log10(largest))) + 1)

    def inside(positive: list[float]) -> list[float]:
        return [x for x in [-x for x in positive[::-1]] + [0.0] + positive if low <= x <= high]

    stride = max(1, int(np.ceil(least / np.log(10))))
    clear = scale * np.sinh(least)
    minor = inside([float(f"1e{power}") for power in powers])
    major = inside([float(f"1e{power}") for power in powers if power % stride == 0 and 10.0**power >= clear])
    if len(major) >= 3:
        return {x: _power_of_ten(x) for x in major}, minor
    mantissas = (1, 2, 5) if least <= np.log(2) else (1, 3)
    steps = [float(f"{m}e{power}") for power in powers for m in mantissas]
    return {x: _plain(x) for x in inside([x for x in steps if x >= clear])}, minor


def _plain(value: float, digits: int = 6) -> str:
    return f"{value:.{digits}g}".replace("-", "−")


def _power_of_ten(value: float) -> str:
    sign = "-" if value < 0 else ""
    return rf"${sign}10^{{{round(np.log10(abs(value)))}}}$" if value else "0"


def _draw_known(rug: Axes, known: dict[str, np.ndarray], colours: dict[str, str]) -> None:
    """One row a matrix: a mark at each known eigenvalue, largest values written where there is room."""
    rug.set(ylim=(max(len(known), 1) - 0.5, -0.5), yticks=range(len(known)))
    rug.set_yticklabels(list(known), fontsize=7)
    rug.tick_params(axis="both", which="both", length=0)
    rug.tick_params(axis="x", which="both", labelbottom=False)
    rug.spines[:].set_visible(False)
    rug.figure.get_layout_engine().execute(rug.figure)
    rug.figure.set_layout_engine("none")  # positions are final: there is room for what is written now
    for row, (name, values) in enumerate(known.items()):
        rug.plot(values, np.full(values.size, row), "|", color=colours[name], markersize=6, markeredgewidth=1.1)
        _write_values(rug, row, values)


def _write_values(rug: Axes, row: int, values: np.ndarray) -> None:
    """Write values beside their marks, the largest magnitudes first, where no mark or text is in the way."""
    size, gap, per_point = 6.5, 3.0, rug.figure.dpi / 72
    marks = rug.transData.transform(np.column_stack([values, np.full(values.size, row)]))[:, 0] / per_point
    window = rug.get_window_extent()
    taken = [(mark - 1, mark + 1) for mark in marks]
    for index in np.argsort(-np.abs(values), kind="stable")[:40]:
        text, mark = _plain(values[index], 3), marks[index]
        length = TextPath((0, 0), text, size=size).get_extents().width + gap
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
