"""The figure of single eigenvalues by rank, with several matrices or checkpoints beside each other."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Protocol

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from spectra.plots.axes import magnitude_axis
from spectra.plots.named import named
from spectra.plots.style import STYLE, Figure, lay_out_legend, marker_style
from spectra.plots.threshold import LOOK, entries, near

SPREAD = 0.7  # of the step from rank to rank, which the points of one rank share
LARGEST, SMALLEST = 4.2, 2.0  # markers, points
LONGER = {  # attributes that lengthen the bars, with their names on the axis
    "sampling_errors": "standard error of the sample",
    "spread": "standard deviation over examples",
}


class Eigenvalues(Protocol):
    """The interface of results to draw: values (k,) and residuals (k,), as in `spectra.Eigenpairs`.

    Two optional attributes lengthen the error bars: `sampling_errors` (k,), where the matrix is itself an estimate, and
    `spread` (k,), the standard deviation over examples, where the values are means over examples.
    """

    @property
    def values(self) -> ArrayLike: ...
    @property
    def residuals(self) -> ArrayLike: ...


def eigenvalue_figure(
    spectra: Mapping[str, Eigenvalues],
    log: bool = False,
    title: str | None = None,
    width: float = 6.5,
    rank: str = "rank",
    thresholds: Iterable[float | None] = (),
) -> Figure:
    """Draw eigenvalues by rank, in the order given, with their residuals as error bars.

    Args:
        spectra: results by name, each with `values` (k,) and `residuals` (k,), such as `Eigenpairs` and `EigResult`.
        log: draw magnitudes on a logarithmic axis; markers of negative values are hollow and the legend counts zeros.
        title: the title, or None.
        width: the width in inches.
        rank: the label of the horizontal axis.
        thresholds: thresholds of stability, drawn as dashed lines where they lie among the eigenvalues or not far
            above; None for a matrix without a threshold.

    Returns:
        The figure.

    Raises:
        ArgumentError: the results are not in a dict, or there are none.
    """
    values = [np.asarray(found.values) for found in named(spectra, "spectra").values()]
    every, longest, count = np.concatenate(values), max(map(len, values)), len(values)
    negative, marked = bool((every < 0).any()), near(thresholds, every.max())
    with matplotlib.style.context(STYLE):
        handles = [Line2D([], [], **marker_style(index), markersize=LARGEST) for index in range(count)]
        labels = [_legend_entry(*item, log) for item in zip(spectra, values, strict=True)]
        if log and negative:
            handles.append(Line2D([], [], color="0.4", marker="o", markersize=LARGEST, mfc="white", linestyle="none"))
            labels.append("hollow: λ < 0")
        lines, marks = entries(marked)
        handles, labels = handles + lines, labels + marks
        legend = lay_out_legend(labels, title, width, handle=2.4 if lines else 1.2)
        height = float(np.clip(0.55 * width, 2.2, 4.2)) + 0.3 + legend.height()
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.subplots()
        share = SPREAD / count
        size = float(np.clip(0.9 * share * 72 * (width - 0.8) / longest, SMALLEST, LARGEST))
        for index, found in enumerate(spectra.values()):
            ranks = 1 + np.arange(len(values[index])) + share * (index - (count - 1) / 2)
            style = marker_style(index) | {"markersize": size, "zorder": 3 + index}
            _draw(axes, ranks, values[index], bars(found), style, log)
        for value in marked:
            axes.axhline(value, **LOOK)
        if log:
            magnitude_axis(axes, "y", np.abs(np.append(every, marked)))
        elif negative:
            axes.axhline(0, color="0.6", linewidth=0.6, zorder=1)
        error = named_bars(spectra.values())
        axes.set(xlim=(0.5, longest + 0.5), xlabel=rank, ylabel=f"{'|λ|' if log else 'λ'} ± {error}")
        axes.xaxis.set_major_locator(MaxNLocator(10 if width > 5 else 6, integer=True, steps=[1, 2, 5, 10]))
        legend.draw(figure, handles)
    return figure


def bars(found: Eigenvalues) -> np.ndarray:
    """The half lengths (k,) of error bars."""
    more = (getattr(found, name, None) for name in LONGER)
    return np.asarray(found.residuals) + sum(np.asarray(part) for part in more if part is not None)


def named_bars(spectra: Collection[Eigenvalues]) -> str:
    """The name of the error bars on the axis."""
    held = [text for name, text in LONGER.items() if any(getattr(found, name, None) is not None for found in spectra)]
    return f"({' + '.join(['residual', *held])})" if held else "residual"


def _draw(axes: Axes, ranks: np.ndarray, values: np.ndarray, errors: np.ndarray, style: dict, log: bool) -> None:
    signs = ((values > 0, style["color"]), (values < 0, "white")) if log else ((np.isfinite(values), style["color"]),)
    for held, face in signs:
        if held.any():
            heights = np.abs(values[held]) if log else values[held]
            axes.errorbar(ranks[held], heights, errors[held], elinewidth=0.9, mfc=face, mew=0.9, **style)


def _legend_entry(name: str, values: np.ndarray, log: bool) -> str:
    zeros = np.count_nonzero(values == 0)
    return f"{name} ({zeros} zero)" if log and zeros else name
