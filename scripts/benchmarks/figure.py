"""The figure: the cost of one product, in gradients, by problem and tool."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.style
import numpy as np
from matplotlib.figure import Figure

from scripts.benchmarks.problems import SHORT
from scripts.benchmarks.record import product
from scripts.benchmarks.tools import CURVLINOPS, EIGENTHINGS, LOADER, ONE_BATCH, SPECTRA
from spectra.plots.style import COLOURS, MARKERS, STYLE, save_figure

TOOLS = (SPECTRA, ONE_BATCH, LOADER, EIGENTHINGS, CURVLINOPS)
NAMES = {"hessian": "Hessian", "ggn": "Gauss-Newton (GGN)"}


def save(results: dict[str, Any], path: Path) -> None:
    problems = [problem for problem in SHORT if product(results, problem, "hessian")]
    if not problems:
        return
    with matplotlib.style.context(STYLE):
        figure = Figure(figsize=(6.5, 1.5 + 0.42 * len(problems)), layout="constrained")
        for axes, matrix in zip(figure.subplots(1, 2, sharex=True, sharey=True), NAMES, strict=True):
            draw(axes, results, problems, matrix)
        left = figure.axes[0]
        left.set(yticks=range(len(problems)), ylim=(len(problems) - 0.5, -0.5), xlim=(0, left.get_xlim()[1]))
        left.set_yticklabels([SHORT[problem] for problem in problems])
        figure.legend(
            *left.get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False, fontsize=8.5
        )
        figure.supxlabel("cost of one product, in gradients of the same data", fontsize=9)
        save_figure(figure, path)


def draw(axes, results: dict[str, Any], problems: list[str], matrix: str) -> None:
    """Draw a row for each problem: a marker for each tool, and a bar for the matrix products alone."""
    floors = [cost(product(results, problem, matrix).get("floor", {})) for problem in problems]
    for i, name in enumerate(TOOLS):
        costs = [cost(product(results, problem, matrix).get("tools", {}).get(name, {})) for problem in problems]
        rows = np.arange(len(problems)) + (0 if name == SPECTRA else 0.11 * (i - 2.5))
        size = 7 if name == SPECTRA else 4.5
        axes.plot(
            costs,
            rows,
            MARKERS[i],
            color=COLOURS[i],
            markersize=size,
            linestyle="none",
            label=name,
            zorder=4 - (i > 0),
        )
    axes.barh(range(len(problems)), floors, height=0.62, color="0.88", label="matrix products alone")
    axes.set_title(NAMES[matrix], fontsize=9)
    axes.grid(axis="x", color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(axis="y", length=0)


def cost(measured: dict[str, Any]) -> float:
    return measured.get("gradients", {}).get("median", np.nan)
