"""The three figures: distances from the Hessian, cosines with it, and laws of the theory."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from scripts.fisher_is_hessian.tables import Row, pick, spread
from scripts.fisher_is_hessian.tasks import LABELS, LOSSES
from spectra.plots.style import COLOURS, DASHES, MARKERS, STYLE, save_figure

TITLES = {"clean": "clean labels", "random": "20 % random labels", "teacher": "labels drawn by a teacher"}
SHORT = {"cross_entropy": "cross entropy", "mse": "mean squared error"}
GUIDE = {"color": "0.45", "linewidth": 0.8, "zorder": 1}
NORMS = (("hessian", "Hessian"), ("ggn", "GGN = Fisher"), ("fisher-empirical", "empirical Fisher"))
Curve = tuple[str, str, str]  # b of the pair (hessian, b), which number of it, what it is called
DISTANCES: tuple[Curve, ...] = (
    ("ggn", "distance", "GGN = Fisher"),
    ("fisher-empirical", "distance", "empirical Fisher"),
    ("fisher-empirical", "distance_at_best_scale", "empirical Fisher at its best scale"),
)
COSINES: tuple[Curve, ...] = (
    ("ggn", "cosine", "GGN = Fisher"),
    ("fisher-empirical", "cosine", "empirical Fisher"),
    ("jacobian-outer", "cosine", "Jacobians $J'J$"),
    ("fisher-batch", "cosine", "gradients of batches of 10"),
    ("gradient-outer", "cosine", "gradient of the whole batch"),
)


def save_all(distances: list[Row], points: list[Row], teachers: list[Row], out: Path) -> None:
    with matplotlib.style.context(STYLE):
        for name, figure in {
            "distance": over_training(distances, DISTANCES, r"distance $|H - M|\,/\,|H|$ (Frobenius)", log=True),
            "cosine": over_training(distances, COSINES, r"cosine $\langle H, M\rangle\,/\,|H||M|$", log=False),
            "laws": laws(points, distances, teachers),
        }.items():
            for suffix in ("png", "pdf"):
                save_figure(figure, out / f"{name}.{suffix}")


def over_training(distances: list[Row], curves: tuple[Curve, ...], label: str, log: bool) -> Figure:
    """A row for each loss, a column for each kind of labels, a curve for each matrix beside the Hessian."""
    figure = Figure(figsize=(6.8, 4.7), layout="constrained")
    grid = figure.subplots(len(LOSSES), len(LABELS), sharex=True, sharey=True)
    for loss, row in zip(LOSSES, grid, strict=True):
        for labels, axes in zip(LABELS, row, strict=True):
            for i, (matrix, number, name) in enumerate(curves):
                rows = pick(distances, loss=loss, labels=labels, a="hessian", b=matrix)
                band(axes, *spread(rows, "step", lambda row, number=number: row[number]), i, name, place=True)
            if log:
                axes.set_yscale("log")
            steps(axes, distances)
        row[0].set_ylabel(SHORT[loss])
    for labels, axes in zip(LABELS, grid[0], strict=True):
        axes.set_title(TITLES[labels], fontsize=9)
    figure.supxlabel("training step", fontsize=9)
    figure.supylabel(label, fontsize=9)
    legend(figure, grid[0, 0], columns=3)
    return figure


def laws(points: list[Row], distances: list[Row], teachers: list[Row]) -> Figure:
    figure = Figure(figsize=(6.8, 6.2), layout="constrained")
    grid = figure.subplots(2, 2)
    for axes in grid.flat:
        axes.set_yscale("log")
        axes.grid(color="0.92", linewidth=0.6)
    residuals(grid[0, 0], points, distances)
    shrinking(grid[0, 1], points)
    sampling(grid[1, 0], teachers)
    outer_products(grid[1, 1], points)
    for axes, place in zip(grid.flat, ("upper left", "lower right", "lower left", "lower left"), strict=True):
        axes.legend(frameon=False, fontsize=7.5, handlelength=2.6, loc=place)
    return figure


def residuals(axes: Axes, points: list[Row], distances: list[Row]) -> None:
    """Draw the distance of Hessian and GGN against the residuals, for the mean squared error."""
    for i, labels in enumerate(("clean", "random")):
        at = {(row["seed"], row["step"]): row["rms_residual"] for row in pick(points, loss="mse", labels=labels)}
        rows = pick(distances, loss="mse", labels=labels, a="hessian", b="ggn")
        x, y = [at[row["seed"], row["step"]] for row in rows], [row["distance"] for row in rows]
        axes.plot(x, y, **marks(i), label=TITLES[labels])
    guide(axes, (1.5e-3, 0.3), 0.02, 1, "slope 1", below=True)
    axes.set(xscale="log", xlabel="root mean square residual", ylabel=r"$|H - G|\,/\,|H|$")
    axes.set_title("mean squared error: H nears the GGN", fontsize=9)


def shrinking(axes: Axes, points: list[Row]) -> None:
    """Draw norms against 1 - p_y, for the cross entropy and clean labels."""
    rows = pick(points, loss="cross_entropy", labels="clean")
    for i, (matrix, name) in enumerate(NORMS):
        x, y = [row["mean_one_minus_p"] for row in rows], [row[f"norm {matrix}"] for row in rows]
        axes.plot(x, y, **marks(i), label=name)
    guide(axes, (1e-5, 3e-2), 400, 1, "slope 1")
    guide(axes, (1e-5, 3e-2), 3, 2, "slope 2", below=True)
    axes.set(xscale="log", xlabel=r"mean of $1 - p_y$", ylabel="Frobenius norm")
    axes.set_title("cross entropy, clean labels: all shrink", fontsize=9)


def sampling(axes: Axes, teachers: list[Row]) -> None:
    """Draw distances at the teacher's own parameters against the number of labels."""
    pairs = (("fisher", "$|F - E|/|F|$"), ("hessian", "$|H - G|/|H|$"))
    i = 0
    for a, name in pairs:
        for loss in LOSSES:
            rows = [row for row in pick(teachers, loss=loss, a=a) if row.get("noise", 5) == 5]
            band(axes, *spread(rows, "examples", lambda row: row["distance"]), i, f"{name}, {SHORT[loss]}")
            i += 1
    guide(axes, (250, 16_000), 13, -0.5, "slope −1/2")
    axes.set(xscale="log", xlabel="labels that the teacher drew", ylabel="relative distance")
    axes.set_ylim(1e-4, 1)
    axes.set_title("at the teacher's own parameters", fontsize=9)


def outer_products(axes: Axes, points: list[Row]) -> None:
    """Draw traces of outer products of batch gradients, relative to the empirical Fisher, for labels of a teacher."""
    i = 0
    for matrix, name in (("fisher-batch", "batches of 10"), ("gradient-outer", "whole batch")):
        for loss in LOSSES:
            rows = pick(points, loss=loss, labels="teacher")
            share = spread(rows, "step", lambda row, m=matrix: row[f"trace {m}"] / row["trace fisher-empirical"])
            band(axes, *share, i, f"{name}, {SHORT[loss]}", place=True)
            i += 1
    steps(axes, points)
    axes.set(xlabel="training step", ylabel="trace / trace of the empirical Fisher")
    axes.set_title("teacher's labels: gradients' outer products", fontsize=9)


def band(axes: Axes, x: list, low: list, middle: list, high: list, i: int, name: str, place: bool = False) -> None:
    """Median and range over seeds; with `place`, evenly spaced in x."""
    at = np.arange(len(x)) if place else x
    axes.fill_between(at, low, high, color=COLOURS[i], alpha=0.2, linewidth=0)
    style = {"color": COLOURS[i], "linestyle": DASHES[i], "marker": MARKERS[i], "markersize": 3.5, "linewidth": 1.4}
    axes.plot(at, middle, **style, label=name, zorder=3 + i)


def marks(i: int) -> dict:
    return {"color": COLOURS[i], "marker": MARKERS[i], "markersize": 4, "linestyle": "none", "zorder": 3 + i}


def guide(axes: Axes, ends: tuple[float, float], at_one: float, slope: float, text: str, below: bool = False) -> None:
    """A straight line y = at_one x^slope on two logarithmic axes, with what it is above its middle or below."""
    x = np.array([ends[0], math.sqrt(ends[0] * ends[1]), ends[1]])
    y = at_one * x**slope
    axes.plot(x, y, **GUIDE)
    right = below == (slope > 0)  # the side on which the line turns away
    place = {"ha": "left" if right else "right", "va": "top" if below else "bottom"}
    shift = (4 if right else -4, -2 if below else 2)
    axes.annotate(text, (x[1], y[1]), shift, textcoords="offset points", fontsize=7.5, color="0.35", **place)


def steps(axes: Axes, rows: Iterable[Row]) -> None:
    """Steps are spaced evenly, the first is 0: a tick at each, a number at powers of ten."""
    every = sorted({row["step"] for row in rows})
    powers = {10**k: rf"$10^{k}$" for k in range(2, 8)} | {0: "0", 10: "10"}
    axes.set_xticks(range(len(every)), [powers.get(step, "") for step in every])


def legend(figure: Figure, axes: Axes, columns: int) -> None:
    handles, names = axes.get_legend_handles_labels()
    figure.legend(
        handles, names, loc="outside upper center", ncols=columns, frameon=False, fontsize=8.5, handlelength=3.2
    )
