"""The figures: images drawn from the machine, exact spectra, and estimates of them from samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.style
import numpy as np
import scipy.stats
import torch
from matplotlib.axes import Axes
from torch import Tensor

from scripts.boltzmann_study.measure import CHAINS, COUNTS, LEADING, STEPS
from spectra.plots.style import COLOURS, STYLE, Figure, line_style, marker_style, save_figure

TITLE = {"loc": "left", "fontsize": 9}
LINEAR = 1e-3  # eigenvalues below are drawn on a linear scale


def save_all(numbers: dict[str, Any], arrays: dict[str, Tensor], out: Path) -> None:
    with matplotlib.style.context(STYLE):
        save_figure(images(arrays), out / "images.png")
        save_figure(spectrum(arrays), out / "spectrum.png")
        save_figure(estimates(numbers["sampled"], arrays["deviations"]), out / "estimates.png")


def images(arrays: dict[str, Tensor]) -> Figure:
    figure = Figure(figsize=(6.5, 3.3), layout="constrained")
    titles = {"images": "binarised digits", "drawn": "drawn from the machine"}
    for axes, (name, title) in zip(figure.subplots(1, 2), titles.items(), strict=True):
        tiles = torch.nn.functional.pad(arrays[name].float().view(8, 8, 8, 8), (1, 1, 1, 1), value=0.35)
        axes.imshow(1 - tiles.permute(0, 2, 1, 3).reshape(80, 80).numpy(), cmap="gray", vmin=0, vmax=1)
        axes.set_title(title, **TITLE)
        axes.set_axis_off()
    return figure


def spectrum(arrays: dict[str, Tensor]) -> Figure:
    figure = Figure(figsize=(6.5, 3.0), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    curves = {f"values_{step}": f"step {step}" for step in (0, STEPS // 10, STEPS)}
    ranked(left, arrays, curves, "exact, over training")
    both = {f"values_{STEPS}": "exact", "values_sampled": f"from {CHAINS} chains of {COUNTS[-1]}"}
    ranked(right, arrays, both, f"step {STEPS}, exact and sampled")
    left.set_ylabel("eigenvalue")
    return figure


def ranked(axes: Axes, arrays: dict[str, Tensor], curves: dict[str, str], title: str) -> None:
    for index, (name, label) in enumerate(curves.items()):
        values = np.sort(arrays[name].numpy())[::-1]
        axes.plot(np.arange(1, len(values) + 1), values, label=label, **line_style(index, len(curves)))
    axes.set_yscale("symlog", linthresh=LINEAR, linscale=0.5)
    axes.axhline(0, color="0.6", linewidth=0.6, zorder=1)
    axes.set_xlabel("rank")
    axes.set_title(title, **TITLE)
    axes.legend(frameon=False, fontsize=8)


def estimates(rows: list[dict[str, Any]], deviations: Tensor) -> Figure:
    figure = Figure(figsize=(6.5, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    place = np.arange(1, LEADING + 1)
    left.axhline(1, color="black", linewidth=1.0, label="exact")
    exact = np.array(rows[0]["exact"][:LEADING])
    for index, row in enumerate(rows):
        at = place + 0.24 * (index - 1)
        forms, errors, own = (row[name][:LEADING] / exact for name in ("forms", "form_errors", "eigenvalues"))
        style = marker_style(index) | {"markersize": 4}
        samples = f"{row['count']} samples per chain"
        left.errorbar(at, forms, errors, label=f"u'Su ± standard error, {samples}", elinewidth=1, **style)
        hollow = style | {"markerfacecolor": "white", "zorder": 4}
        left.plot(at, own, label=f"eigenvalue of S, {samples}", **hollow)
    left.set_xlabel("rank of the eigenvalue")
    left.set_ylabel("estimate / exact eigenvalue")
    left.set_title("leading eigenvalues", **TITLE)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower left", frameon=False, fontsize=7.5, ncols=2)
    grid = np.linspace(-4.5, 4.5, 300)
    bins = np.linspace(-4.5, 4.5, 37)
    right.hist(deviations[deviations.isfinite()].numpy(), bins=bins, density=True, color=COLOURS[5], label="measured")
    right.plot(grid, scipy.stats.t(CHAINS - 2).pdf(grid), color="black", linewidth=1.2, label="Student's t")
    right.set_xlabel("error / standard error")
    right.set_yticks([])
    right.spines["left"].set_visible(False)
    right.set_title("errors of products and u'Su", **TITLE)
    right.legend(frameon=False, fontsize=7, loc="upper left", borderaxespad=0)
    right.set_ylim(top=1.45 * right.get_ylim()[1])
    return figure
