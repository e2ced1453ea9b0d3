"""Evaluations of the loss that a gradient and a Hessian product take, and the effect of the second-order term.

Writes table.csv, second-order.csv, made.json and figure.png into results/weight-perturbation/; a minute or
two on one core.

    python -m scripts.weight_perturbation
"""

from __future__ import annotations

import csv
import json
import math
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import matplotlib.style
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear

import spectra
from scripts.benchmarks.record import git, installed, machine
from spectra.inputs.data import digits
from spectra.plots.style import COLOURS, MARKERS, STYLE, save_figure

OUT = Path("results/weight-perturbation")
WIDTH, SAMPLES, STEPS = 16, 200, 40  # of the network, of the digits, of Adam
LARGE = 0.1  # a perturbation's size over that of the weights, where the second-order term counts
BUDGETS = [2**k for k in range(6, 15)]
SIZES = [10.0**k for k in np.arange(-6.75, 0.1, 0.75)]
AT_EACH_SIZE = 1000  # evaluations
FOR_Z, FOR_EACH_PART = (2**10, 2**12, 2**14), 4001  # evaluations


class Digits:
    """The mean loss of a network 64-16-10 with tanh on 200 digits, a little way into its training."""

    def __init__(self):
        images, labels = digits()
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))[:SAMPLES]
        self.x, self.y = images[order].flatten(1).double(), labels[order]
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(64, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 10)).double()
        optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
        for _ in range(STEPS):
            optimizer.zero_grad()
            cross_entropy(network(self.x), self.y).backward()
            optimizer.step()
        batches = spectra.cut_batches(self.x, self.y, torch.arange(SAMPLES), SAMPLES)
        problem = spectra.Problem(network, spectra.CrossEntropy(), batches)
        self.shapes = [p.shape for p in problem.leaves]
        self.point = problem.vector([p.detach() for p in problem.leaves])
        self.n, self.rms = problem.size, (self.point.square().mean().sqrt()).item()
        self.value = spectra.mean_loss(problem)
        self.gradient = spectra.mean_gradient(problem)
        self.hessian = spectra.Curvature(problem, "hessian") @ torch.eye(self.n, dtype=torch.float64)
        self.pairs = spectra.eigenpairs(self.hessian, k=20, which="LM", tolerance=1e-9)
        self.vector = self.pairs.vectors[0]
        self.product = self.hessian @ self.vector

    def loss(self, dtype: torch.dtype = torch.float64) -> Callable[[Tensor], Tensor]:
        """The loss as a function of the weights (n,), computed in a dtype."""
        x, cuts = self.x.to(dtype), [shape.numel() for shape in self.shapes]

        def loss(w: Tensor) -> Tensor:
            a, b, c, d = (part.view(shape) for part, shape in zip(w.split(cuts), self.shapes, strict=True))
            return cross_entropy(linear(linear(x, a, b).tanh(), c, d), self.y)

        return loss

    def leading(self, k: int) -> Tensor:
        """The part of the Hessian that its k leading eigenpairs make."""
        vectors, values = self.pairs.vectors[:k], self.pairs.values[:k]
        return (vectors.T * values) @ vectors

    def expected(self, size: float, taken: Tensor | float = 0.0, form: str = "forward") -> float:
        """E |estimate - g|^2 / |g|^2 of one perturbation by signs, with `taken` subtracted from the Hessian."""
        bend = second_order(self.hessian - taken) * size**2 * self.n / 4 if form == "forward" else 0.0
        return self.n - 1 + bend / self.gradient.square().sum().item()


def second_order(matrix: Tensor) -> float:
    """E (s'A s)^2 over random signs s: (tr A)^2 + 2 (|A|_F^2 - the squares of the diagonal)."""
    off = matrix.square().sum() - matrix.diagonal().square().sum()
    return (matrix.trace() ** 2 + 2 * off).item()


@dataclass(frozen=True)
class Point:
    """A point of the figure, a row of table.csv. Errors are relative to the length of the true vector."""

    panel: str
    curve: str
    size: float  # over that of the weights
    evaluations: int
    perturbations: int
    error: float
    standard_error: float
    expected: float  # by the closed form of a quadratic loss


def point(panel: str, curve: str, size: float, estimate: Any, true: Tensor, square: float) -> Point:
    """One estimate beside the truth; `square` is the expected squared relative error of one perturbation."""
    length, m = true.norm().item(), estimate.perturbations
    errors = [(estimate.value.double() - true).norm().item(), estimate.standard_error]
    spent = (estimate.evaluations, m)
    return Point(panel, curve, size, *spent, *(error / length for error in errors), math.sqrt(square / m))


def against_evaluations(at: Digits) -> list[Point]:
    """Errors of the gradient at a large size, and of H v, by the number of evaluations."""
    loss, size, points = at.loss(), LARGE * at.rms, []
    parts = {
        "forward": None,
        "forward, rank two": spectra.RankTwo(at.vector, at.product),
        "forward, 20 eigenpairs": at.leading(20),
    }
    eye = torch.eye(at.n, dtype=torch.float64)
    for seed, budget in enumerate(BUDGETS):
        settings = {"evaluations": budget, "seed": seed}
        for curve, part in parts.items():
            found = spectra.gradient_from_losses(
                loss, at.point, form="forward", size=size, second_order=part, **settings
            )
            expected = at.expected(size, 0.0 if part is None else part @ eye)
            points.append(point("gradient", curve, LARGE, found, at.gradient, expected))
        found = spectra.gradient_from_losses(loss, at.point, size=size, **settings)
        points.append(point("gradient", "central", LARGE, found, at.gradient, at.n - 1))
        for form in ("forward", "central"):
            found = spectra.product_from_losses(loss, at.vector, at.point, form=form, **settings)
            default = torch.finfo(torch.float64).eps ** 0.25
            points.append(point("product", f"along v, {form}", default, found, at.product, at.n - 1))
            both = spectra.gradient_and_product_from_losses(loss, at.vector, at.point, form=form, size=size, **settings)
            expected = from_second_order(at, size, form)
            points.append(point("product", f"second-order term, {form}", LARGE, both[1], at.product, expected))
    return points


def from_second_order(at: Digits, size: float, form: str) -> float:
    """E |estimate - Hv|^2 / |Hv|^2 of one perturbation on the sphere, for H v from the differences of the gradient."""
    n, g, v, z = at.n, at.gradient, at.vector, at.product
    trace, whole, vv, zz = at.hessian.trace(), at.hessian.square().sum(), v @ v, z @ z
    six = trace**2 * vv + 4 * trace * (v @ z) + 2 * whole * vv + 8 * zz
    bend = (n * n * six / (n + 4) + n * vv * (trace**2 + 2 * whole) / (n + 2)) / 4
    slope = ((n + 1) * (g @ g) * vv + 2 * n * (g @ v) ** 2) / size**2
    return ((bend - zz + (form == "forward") * slope) / zz).item()


def against_size(at: Digits) -> list[Point]:
    """Errors after a number of evaluations, by the size of the perturbations and the precision of the loss."""
    points = []
    for dtype in (torch.float64, torch.float32):
        loss, w, kind = at.loss(dtype), at.point.to(dtype), str(dtype).removeprefix("torch.")
        for size in SIZES:
            settings = {"evaluations": AT_EACH_SIZE, "size": size * at.rms}
            for form in ("forward", "central"):
                found = spectra.gradient_from_losses(loss, w, form=form, **settings)
                square = at.expected(size * at.rms, form=form)
                points.append(point("size", f"{form}, {kind}", size, found, at.gradient, square))
    return points


def second_order_table(at: Digits) -> list[dict[str, Any]]:
    """What is left of the second-order noise of forward differences, for several matrices that are taken off.

    `measured` is the ratio of all noise to that of plain forward differences, `expected` the same in closed form.
    """
    loss, size, n = at.loss(), LARGE * at.rms, at.n
    eye = torch.eye(n, dtype=torch.float64)
    generator = torch.Generator().manual_seed(1)
    draw = torch.randn(n, generator=generator, dtype=torch.float64)
    parts = {"nothing": torch.zeros_like(eye)}
    for name, v in {"leading eigenvector": at.vector, "gradient": at.gradient, "random vector": draw}.items():
        parts[f"rank two, v the {name}, exact z"] = spectra.RankTwo(v, at.hessian @ v) @ eye
    for budget in FOR_Z:
        z = spectra.product_from_losses(loss, at.vector, at.point, evaluations=budget, form="forward", seed=9)
        parts[f"rank two, v the leading eigenvector, z from {budget:,} evaluations"] = (
            spectra.RankTwo(at.vector, z.value) @ eye
        )
    for k in (5, 20):
        parts[f"{k} leading eigenpairs"] = at.leading(k)
    parts["the Hessian"] = at.hessian
    rows, plain = [], {}
    for name, part in parts.items():
        found = spectra.gradient_from_losses(
            loss, at.point, evaluations=FOR_EACH_PART, form="forward", size=size, second_order=part, seed=5
        )
        noise = found.standard_error**2
        plain = plain or {"noise": noise, "bend": second_order(at.hessian), "square": at.expected(size)}
        rows.append(
            {
                "taken off": name,
                "second-order noise left": second_order(at.hessian - part) / plain["bend"],
                "expected variance ratio": at.expected(size, part) / plain["square"],
                "measured variance ratio": noise / plain["noise"],
            }
        )
    return rows


LABELS = {
    "gradient": "gradient, size 0.1 rms(w)",
    "product": "H v, v the leading eigenvector",
    "size": f"gradient, {AT_EACH_SIZE:,} evaluations",
}


def save_figure_of(points: Sequence[Point], out: Path) -> None:
    """The three panels: gradient and product against evaluations, gradient against size."""
    with matplotlib.style.context(STYLE):
        figure = Figure(figsize=(9.6, 3.7), layout="constrained")
        for axes, panel in zip(figure.subplots(1, 3), LABELS, strict=True):
            draw(axes, [p for p in points if p.panel == panel], "size" if panel == "size" else "evaluations")
            axes.set_title(LABELS[panel], fontsize=9)
            axes.set_ylabel("relative error")
        *by_evaluations, right = figure.axes
        for axes in by_evaluations:
            axes.set_xlabel("evaluations of the loss")
        right.set_xlabel("size / rms(w)")
        figure.suptitle("marks: measured; lines: closed forms of a quadratic loss", fontsize=9)
        for axes in figure.axes:
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), frameon=False, fontsize=7.5)
        save_figure(figure, out / "figure.png")


def draw(axes: Axes, points: Sequence[Point], against: str) -> None:
    """Each curve as marks, with its closed form as a line."""
    for i, curve in enumerate(dict.fromkeys(p.curve for p in points)):
        own = [p for p in points if p.curve == curve]
        x = [getattr(p, against) for p in own]
        axes.loglog(x, [p.expected for p in own], color=COLOURS[i], linewidth=0.9)
        face, size = (COLOURS[i], 4) if i < 2 else ("none", 6)  # where curves meet, one is seen through the other
        axes.loglog(x, [p.error for p in own], MARKERS[i], color=COLOURS[i], mfc=face, ms=size, label=curve)
    axes.axhline(1, color="0.6", linewidth=0.8, zorder=1)
    axes.grid(color="0.92", linewidth=0.6)
    axes.set_axisbelow(True)


def one_by_one(at: Digits, size: float = 1e-5) -> float:
    """The relative error of forward differences of one weight at a time, n + 1 evaluations."""
    loss, here = at.loss(), at.loss()(at.point)
    found = torch.stack([(loss(at.point + size * e) - here) / size for e in torch.eye(at.n, dtype=torch.float64)])
    return ((found - at.gradient).norm() / at.gradient.norm()).item()


def save_rows(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Rows as CSV, numbers with five digits."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: f"{v:.5g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)


def main(out: Path = OUT) -> None:
    """Measure all, and write tables, figure and how they were made."""
    torch.set_num_threads(1)
    out.mkdir(parents=True, exist_ok=True)
    start, at = time.perf_counter(), Digits()
    points = against_evaluations(at) + against_size(at)
    table = second_order_table(at)
    facts = {
        "parameters": at.n,
        "loss": at.value,
        "gradient": at.gradient.norm().item(),
        "trace": at.hessian.trace().item(),
        "frobenius": at.hessian.norm().item(),
        "leading": at.pairs.values[:3].tolist(),
        "rms of weights": at.rms,
        "error of one weight at a time": one_by_one(at),
        "seconds": time.perf_counter() - start,
        "machine": machine(),
        "python": platform.python_version(),
        "versions": {name: installed(name) for name in ("torch", "numpy")},
        "commit": git("rev-parse", "HEAD"),
    }
    save_rows([asdict(p) for p in points], out / "table.csv")
    save_rows(table, out / "second-order.csv")
    (out / "made.json").write_text(json.dumps(facts, indent=1) + "\n")
    save_figure_of(points, out)
    for row in table:
        print(*(f"{v:.4f}" if isinstance(v, float) else v for v in row.values()), sep="  ")


if __name__ == "__main__":
    main()
