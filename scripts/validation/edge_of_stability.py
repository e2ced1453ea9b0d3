"""The edges of stability: where eigenvalues settle over training, times the rate.

These numbers are read from the tables of two studies in results/, which take longer than the gallery. So this group
does not notice a change of the code until the scripts of these studies run again.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from scripts.validation.row import Row

SOURCE = "Cohen, Kaur, Li, Kolter, Talwalkar 2021"
ADAPTIVE = "Cohen et al. 2022"
RESULTS = Path(__file__).parents[2] / "results"
RATE, LAST, SETTLED = 0.02, 20, 4000  # gradient descent: checkpoints in which it has settled; others: the step
# (2 + 2b) for heavy ball, (2 + 2b) / (1 + 2b) for Nesterov, 2 for RMSProp, (2 + 2b) / (1 - b) for Adam, b the momentum
EDGES = {
    "heavy-ball-0.5": ("heavy ball 0.5", SOURCE, 3.0),
    "heavy-ball-0.9": ("heavy ball 0.9", SOURCE, 3.8),
    "nesterov-0.9": ("Nesterov 0.9", SOURCE, 3.8 / 2.8),
    "rmsprop-0.001": ("RMSProp", ADAPTIVE, 2.0),
    "adam-0.0003": ("Adam, rate 0.0003", ADAPTIVE, 38.0),
    "adam-0.01": ("Adam, rate 0.01", ADAPTIVE, 38.0),
}


def rows() -> Iterator[Row]:
    """The mean over checkpoints late in training; the error is the deviation between them, which is the oscillation."""
    held = [one for one in table("edge-of-stability") if one["curvature"] == "hessian" and is_largest(one)][-LAST:]
    note = "tables of results/edge-of-stability and results/adaptive-edge, late in training ± deviation of checkpoints"
    yield row("gradient descent", SOURCE, 2.0, [RATE * float(one["value"]) for one in held], held, note)
    every = table("adaptive-edge") if (RESULTS / "adaptive-edge" / "table.csv").exists() else []
    for prefix, (name, source, expected) in EDGES.items() if every else ():
        late = [one for one in every if one["checkpoint"].startswith(f"{prefix}/") and int(one["step"]) >= SETTLED]
        rates = {one["step"]: float(one["value"]) for one in late if one["quantity"] == "learning_rate"}
        held = [one for one in late if is_largest(one)]
        values = [rates[one["step"]] * float(one["value"]) for one in held]
        yield row(name, source, expected, values, held, note)


def row(name: str, source: str, expected: float, values: list[float], held: list[dict[str, str]], note: str) -> Row:
    """The row of one optimizer."""
    mean, deviation = float(np.mean(values)), float(np.std(values, ddof=1))
    products = sum(int(one["products"]) for one in held)
    return Row(f"rate times sharpness, {name}", source, expected, mean, deviation, 0.0, note, products)


def is_largest(one: dict[str, str]) -> bool:
    """Whether a row of a table holds the largest eigenvalue."""
    return (one["quantity"], one["index"]) == ("eigenvalue", "1")


def table(study: str) -> list[dict[str, str]]:
    """The rows that a study has left."""
    with (RESULTS / study / "table.csv").open() as file:
        return list(csv.DictReader(file))
