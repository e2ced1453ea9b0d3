"""Spiked random matrices: outliers and the edge of the bulk, as Papyan (2020) has them in figure 15a; and Wigner's."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

import spectra
from scripts.validation.row import Row

SPIKES = (5.0, 4.0, 3.0)
SOURCE = "Papyan 2020, fig. 15a; values from Benaych-Georges, Nadakuditi 2011"
WIGNER = "Péché 2006; Benaych-Georges, Nadakuditi 2011"
# Tracy and Widom: the largest eigenvalue of a bulk is 1.2 units below the edge on average, with a deviation of 1.3.
EDGE = 1.2 + 3 * 1.3


def rows(size: int = 2000) -> Iterator[Row]:
    """The rows of both matrices."""
    yield from papyan(size)
    yield from wigner(size)


def papyan(size: int) -> Iterator[Row]:
    """diag(5, 4, 3, 0, ...) + ZZ'/n: outliers spike + spike / (spike - 1), edge 4, by 128 steps and 10 probes."""
    z = torch.randn(size, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    matrix = z @ z.T / size
    matrix.diagonal()[: len(SPIKES)] += torch.tensor(SPIKES, dtype=torch.float64)
    found = spectra.density(matrix, steps=min(128, size // 2), probes=10)
    above = found.outliers.above
    note = f"n = {size:,}, 128 steps, 10 probes"
    count, error = above.count, above.count_error
    yield Row("number of outliers", SOURCE, len(SPIKES), count, error, 0.0, note, found.products)
    pairs = spectra.eig(matrix, k=len(SPIKES) + 1, which="LA", tolerance=1e-6)
    for spike, value, residual in zip(SPIKES, pairs.values, pairs.residuals, strict=False):
        name, expected = f"outlier of the spike {spike:g}", spike + spike / (spike - 1)
        finite = 3 * deviation(spike, 1 - 1 / (spike - 1) ** 2, size)
        yield Row(name, SOURCE, expected, value, residual, finite, note, pairs.products)
    # The edge is a converged eigenvalue, so probes do not differ in it; its error is the distance from the eigenpair's.
    error = above.edge_error + abs(above.edge - pairs.values[-1]) + pairs.residuals[-1]
    unit = 2 ** (4 / 3) * size ** (-2 / 3)
    yield Row("edge of the bulk", SOURCE, 4.0, above.edge, error, EDGE * unit, note, found.products)


def deviation(spike: float, slope: float, size: int) -> float:
    """The standard deviation of an outlier over matrices; `slope` is its derivative by the spike.

    The outlier solves u'(x - M)^-1 u = 1 / spike, with M without the spike. For M of random eigenvectors the left-hand
    side has a mean g and the variance 2/n (-g' - g^2), where g = 1 / spike and g' = -1 / (spike^2 slope).
    """
    return spike * (2 / size * slope * (1 - slope)) ** 0.5


def wigner(size: int) -> Iterator[Row]:
    """theta uu' + W with entries of variance s^2 / n: an eigenvalue theta + s^2/theta, and one's overlap with u."""
    theta, s = 3.0, 1.0
    matrix = symmetric(size) * s
    matrix[0, 0] += theta
    pairs = spectra.eig(matrix, k=2, which="LA", tolerance=1e-6)
    note, unit = f"n = {size:,}, theta = 3, s = 1", size ** (-2 / 3)
    expected, residual = theta + s**2 / theta, float(pairs.residuals[0])
    finite = 3 * deviation(theta, 1 - s**2 / theta**2, size)
    yield Row("Wigner: outlier", WIGNER, expected, pairs.values[0], residual, finite, note, pairs.products)
    overlap = float(pairs.vectors[0, 0] ** 2)
    bound = residual / (pairs.values[0] - pairs.values[1])
    t = theta / s  # the overlap is 1 / (theta^2 u'(x - W)^-2 u), and fluctuates with u as in `deviation`
    finite = 3 * (2 / size * (t**2 + 1) / (t**4 * (t**2 - 1))) ** 0.5
    yield Row("Wigner: squared overlap", WIGNER, 1 - s**2 / theta**2, overlap, bound, finite, note, pairs.products)
    residual = float(pairs.residuals[1])
    yield Row("Wigner: edge of the bulk", WIGNER, 2 * s, pairs.values[1], residual, EDGE * unit, note, pairs.products)


def symmetric(size: int) -> Tensor:
    """A matrix of Wigner's with entries of variance 1/n."""
    z = torch.randn(size, size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return (z + z.T) / (2 * size) ** 0.5
