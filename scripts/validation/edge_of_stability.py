"""The edge of stability: where eigenvalues settle over training, times the rate, from the studies in results/."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from scripts.validation.row import Row

SOURCE = "Cohen, Kaur, Li, Kolter, Talwalkar 2021"
TABLE = Path(__file__).parents[2] / "results" / "edge-of-stability" / "table.csv"
RATE, LAST = 0.02, 20  # of the checkpoints, those in which the sharpness has settled


def rows() -> Iterator[Row]:
    """Full-batch gradient descent: the mean of the last checkpoints, with the standard error over them."""
    with TABLE.open() as file:
        held = [row for row in csv.DictReader(file) if (row["curvature"], row["quantity"]) == ("hessian", "eigenvalue")]
    values = RATE * np.array([float(row["value"]) for row in held if row["index"] == "1"][-LAST:])
    products = sum(int(row["products"]) for row in held if row["index"] == "1")
    error = float(values.std(ddof=1) / LAST**0.5)
    note = f"results/edge-of-stability: tanh network, rate {RATE:g}, last {LAST} of 41 checkpoints"
    yield Row("rate times sharpness, gradient descent", SOURCE, 2.0, float(values.mean()), error, 0.0, note, products)
