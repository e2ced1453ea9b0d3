"""The figure of traces, with one row for each matrix or checkpoint."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib.style
import numpy as np

from spectra.krylov.results import TraceEstimate
from spectra.plots.axes import magnitude_axis
from spectra.plots.named import named
from spectra.plots.style import COLOURS, STYLE, TITLE_SIZE, Figure, shortened, wrapped
from spectra.records.trace import TraceResult


def trace_figure(
    traces: Mapping[str, TraceEstimate | TraceResult], log: bool = False, title: str | None = None, width: float = 6.5
) -> Figure:
    """Draw traces as points, with error bars of two standard errors to either side.

    Args:
        traces: estimates, or results of `spectra.trace`, by name.
        log: draw magnitudes on a logarithmic axis; negative values have hollow markers, and zeros a note.
        title: the title, or None.
        width: the width in inches.

    Returns:
        The figure.

    Raises:
        ArgumentError: the traces are not in a dict, or there are none.
    """
    found = named(traces, "traces").values()
    values = np.array([one.trace if isinstance(one, TraceResult) else one.value for one in found])
    reach = 2 * np.array([estimate.standard_error for estimate in traces.values()])
    with matplotlib.style.context(STYLE):
        title = wrapped(title, 72 * width - 20, TITLE_SIZE) if title else ""
        height = 0.75 + 0.2 * len(values) + 0.17 * title.count("\n")
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.subplots()
        style = {"color": COLOURS[0], "marker": "o", "markersize": 4, "elinewidth": 1.1}
        for row, (value, error) in enumerate(zip(values, reach, strict=True)):
            face = "white" if log and value < 0 else COLOURS[0]
            if value or not log:
                axes.errorbar(abs(value) if log else value, row, xerr=error, mfc=face, **style)
        names = [f"{name} (is 0)" if log and not value else name for name, value in zip(traces, values, strict=True)]
        axes.set(ylim=(len(values) - 0.4, -0.6), yticks=range(len(values)))
        axes.set_yticklabels(shortened(names, 0.45 * 72 * width, 8))
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="y", color="0.92", linewidth=0.8)
        axes.set_axisbelow(True)
        label = "|trace| ± 2 standard errors" if log else "trace ± 2 standard errors"
        if log:
            magnitude_axis(axes, "x", np.abs(values))
            label += "\n(hollow: negative)" if (values < 0).any() else ""
        elif (values < 0).any():
            axes.axvline(0, color="0.6", linewidth=0.6, zorder=1)
        axes.set_xlabel(label)
        if title:
            figure.suptitle(title, fontsize=TITLE_SIZE)
    return figure
