"""The Wasserstein-1 distance of two spectral measures whose probes are paired.

For matrices of one shape it is the mean |difference| of eigenvalues matched by rank.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from spectra.krylov.lanczos import lanczos
from spectra.krylov.quadrature import gauss_quadrature
from spectra.krylov.results import SpectralMeasure, as_cpu_float64
from spectra.spectrum.curves import wasserstein
from spectra.spectrum.estimates import Estimate, jackknife

Rows = list[tuple[np.ndarray, np.ndarray]]  # nodes and weights of each probe


def distances_of_spectra(
    first: SpectralMeasure | None, second: SpectralMeasure | None
) -> tuple[Estimate | None, Estimate | None]:
    """The Wasserstein-1 distance of two spectra, and its ratio to the mean |eigenvalue| of the first.

    Errors hold chance, by the jackknife over probes, and resolution: what quadratures of m nodes miss falls as 1 / m,
    so that it is about what they differ by from those of m / 2.
    """
    if first is None or second is None:
        return None, None
    probes = min(first.probes, second.probes)
    fine = [rows(measure)[:probes] for measure in (first, second)]
    coarse = [
        [halved(*row, measure.deflated) for row in some] for measure, some in zip((first, second), fine, strict=True)
    ]
    found, half = distances(*fine), distances(*coarse)
    left_out = [distances(*([*some[:i], *some[i + 1 :]] for some in fine)) for i in range(probes)] if probes > 1 else []
    estimates = []
    for i in range(2):
        value, chance = jackknife(found[i], [values[i] for values in left_out])
        estimates.append(Estimate(value, math.hypot(chance, found[i] - half[i])))
    return tuple(estimates)


def distances(first: Rows, second: Rows) -> tuple[float, float]:
    """The Wasserstein-1 distance of the mean measures, and its ratio to that of the first to zero."""
    (nodes, weights), others = joined(first), joined(second)
    distance, size = wasserstein(nodes, weights, *others), wasserstein(nodes, weights, np.zeros(1), np.ones(1))
    return distance, distance / size if size else math.nan


def joined(some: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Several pairs of nodes and weights as one pair."""
    return np.concatenate([nodes for nodes, _ in some]), np.concatenate([weights for _, weights in some])


def rows(measure: SpectralMeasure) -> Rows:
    """The nodes and weights of each probe, as NumPy arrays."""
    return list(zip(as_cpu_float64(measure.nodes).numpy(), as_cpu_float64(measure.weights).numpy(), strict=True))


def halved(nodes: np.ndarray, weights: np.ndarray, atoms: int) -> tuple[np.ndarray, np.ndarray]:
    """The quadrature that half the steps would have given; the first `atoms` nodes, known eigenvalues, stay.

    Lanczos on the nodes from the square roots of the weights is Lanczos on the matrix from the probe.
    """
    held = np.flatnonzero(weights[atoms:] > 0) + atoms
    if len(held) < 2 or not np.isfinite(nodes).all():
        return nodes, weights
    state = lanczos(torch.from_numpy(nodes[held]).diag(), torch.from_numpy(weights[held]).sqrt(), len(held) // 2)
    found, shares = (x.numpy() for x in gauss_quadrature(state))
    rest = weights[held].sum()
    return np.concatenate([nodes[:atoms], found]), np.concatenate([weights[:atoms], rest * shares])
