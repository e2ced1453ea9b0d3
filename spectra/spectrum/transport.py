"""The Wasserstein-1 distance between two spectral measures with paired probes.

For matrices of the same shape it is the mean |difference| between eigenvalues matched by rank.
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
    """Compute the Wasserstein-1 distance between two spectra, and its ratio to the mean |eigenvalue| of the first.

    Errors combine chance, by the jackknife over probes, and resolution: the error of quadratures with m nodes falls as
    1 / m, so it is about their difference from quadratures with m / 2 nodes.
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
    """The Wasserstein-1 distance between the mean measures, and its ratio to the distance of the first from zero."""
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
    """The quadrature that half the steps would have given; the first `atoms` nodes, known eigenvalues, are kept.

    Lanczos on the diagonal matrix of nodes, from the square roots of the weights, repeats Lanczos on the matrix.
    """
    held = np.flatnonzero(weights[atoms:] > 0) + atoms
    if len(held) < 2 or not np.isfinite(nodes).all():
        return nodes, weights
    state = lanczos(torch.from_numpy(nodes[held]).diag(), torch.from_numpy(weights[held]).sqrt(), len(held) // 2)
    found, shares = (x.numpy() for x in gauss_quadrature(state))
    rest = weights[held].sum()
    return np.concatenate([nodes[:atoms], found]), np.concatenate([weights[:atoms], rest * shares])
