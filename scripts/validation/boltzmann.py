"""The Hessian of a Boltzmann machine is the covariance of the products of its units, in closed form without weights.

The gradient of the log-likelihood is a difference of means <s_i s_j> (Ackley, Hinton, Sejnowski 1985), so without
hidden units the Hessian of its negative is their covariance. Without weights, spins are independent with means tanh b.
As s_i^2 = 1, a product of two products is the product of the units that are in one of them only.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

import numpy as np
import torch

import spectra
from scripts.validation.row import Row

SOURCE = "Ackley, Hinton, Sejnowski 1985"


def rows(units: int = 10) -> Iterator[Row]:
    """The largest and smallest eigenvalue by enumeration of all states, and the trace from Gibbs samples."""
    biases = torch.randn(units, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weights = torch.zeros(units, units, dtype=torch.float64)
    machine = spectra.BoltzmannMachine(weights, biases, units="spin", energy_sign="minus")
    exact = covariance(biases.tanh().tolist())
    values, note = np.linalg.eigvalsh(exact), f"{units} independent spins with biases, {len(exact)} parameters"
    pairs = spectra.eig(machine.hessian(), k=2, which="BE", tolerance=1e-9)
    for name, at in (("largest", 0), ("smallest", 1)):
        expected = values[-1 - at * (len(values) - 1)]
        residual = float(pairs.residuals[at])
        yield Row(
            f"{name} eigenvalue, all states", SOURCE, expected, pairs.values[at], residual, 1e-12, note, pairs.products
        )
    found = spectra.trace(machine.sampled_hessian(chains=256, count=200), method="dense")
    yield Row(
        "trace, Gibbs samples", SOURCE, np.trace(exact), found.trace, found.standard_error, 0.0, note, found.products
    )


def covariance(means: list[float]) -> np.ndarray:
    """The covariance (n, n) of single units and products of two, in the order of the parameters."""
    parts = [{i} for i in range(len(means))] + [{*pair} for pair in combinations(range(len(means)), 2)]

    def mean(units: set[int]) -> float:
        return float(np.prod([means[i] for i in units]))

    return np.array([[mean(a ^ b) - mean(a) * mean(b) for b in parts] for a in parts])
