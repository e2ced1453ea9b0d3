"""Effective dimension and condition number of A + damping I, from a spectral measure of A, without further products."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.linalg import eigh_tridiagonal, solve_banded

from spectra.krylov.results import SpectralMeasure, as_cpu_float64
from spectra.spectrum.curves import NOISE


class EffectiveDimension(NamedTuple):
    """The effective dimension, in the middle of the range that quadrature leaves open, with its two errors."""

    value: float
    standard_error: float  # over probes; nan for a single probe
    quadrature_error: float | None  # half the range, for the same probes; None for indefinite matrices


def effective_dimension(measure: SpectralMeasure, damping: float, semidefinite: bool) -> EffectiveDimension | None:
    """Compute the effective dimension tr A (A + damping I)^-1; None unless A + damping I is positive definite.

    It is the number of directions that the data determine, given a damping or a prior of that precision (MacKay 1992,
    *A practical Bayesian framework for backpropagation networks*). For a `semidefinite` matrix, Gauss quadrature is too
    large and Gauss-Radau quadrature with a node at zero too small (Golub, Meurant 1994); they are far apart if the
    damping is below the spacing of nodes near zero, and nodes below zero are rounding. Other matrices have Gauss
    quadrature alone.
    """
    lowest = lowest_node(measure, semidefinite)
    if not lowest + damping > 0:
        return None
    nodes, weights = (as_cpu_float64(x).numpy() for x in (measure.nodes.clamp(min=lowest), measure.weights))
    values = largest = (weights * nodes / (nodes + damping)).sum(axis=1)
    if semidefinite:
        rules = [with_zero(*row, measure.deflated) for row in zip(nodes, weights, strict=True)]
        values = (largest + [float(w @ (x / (x + damping))) for x, w in rules]) / 2
    spread = values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else np.nan
    error = float(measure.dimension * np.abs(largest - values).mean()) if semidefinite else None
    return EffectiveDimension(float(measure.dimension * values.mean()), float(measure.dimension * spread), error)


def condition_number(measure: SpectralMeasure, damping: float, semidefinite: bool) -> float | None:
    """Compute the condition number of A + damping I; None unless that is positive definite.

    Nodes lie within the spectrum, so it is too small if anything; the outermost nodes converge first. The true one of a
    `semidefinite` matrix is at most lambda_max / damping + 1.
    """
    lowest = lowest_node(measure, semidefinite)
    if not lowest + damping > 0:
        return None
    return (measure.nodes[measure.weights > 0].max().item() + damping) / (lowest + damping)


def lowest_node(measure: SpectralMeasure, semidefinite: bool) -> float:
    """The lowest node with a weight above zero; at least zero for a semidefinite matrix."""
    lowest = measure.nodes[measure.weights > 0].min().item()
    return max(lowest, 0.0) if semidefinite else lowest


def with_zero(nodes: np.ndarray, weights: np.ndarray, known: int) -> tuple[np.ndarray, np.ndarray]:
    """The Gauss-Radau rule of one probe with a node at zero; its first `known` nodes, eigenvalues, are kept."""
    rest, rest_weights = radau(nodes[known:], weights[known:])
    return np.append(nodes[:known], rest), np.append(weights[:known], rest_weights)


def radau(nodes: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The Gauss-Radau rule with a node at zero of a measure on [0, inf), from its Gauss rule (m,): (m,), (m,).

    Golub 1973, *Some modified matrix eigenvalue problems*: the last diagonal entry of the Jacobi matrix is such that
    zero is an eigenvalue. A rule of a single node, or with one at zero already, is left as it is.
    """
    held = weights > 0
    if held.sum() < 2 or nodes[held].min() <= NOISE * nodes.max():
        return nodes, weights
    diagonal, off_diagonal = jacobi(nodes, weights)
    banded = np.zeros((3, len(diagonal) - 1))
    banded[0, 1:] = banded[2, :-1] = off_diagonal[:-1]
    banded[1] = diagonal[:-1]
    last = np.zeros(len(diagonal) - 1)
    last[-1] = off_diagonal[-1] ** 2
    diagonal[-1] = solve_banded((1, 1), banded, last)[-1]
    values, vectors = eigh_tridiagonal(diagonal, off_diagonal)
    return values.clip(min=0), weights.sum() * vectors[0] ** 2


def jacobi(nodes: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Diagonal (m,) and off-diagonal (m - 1,) of the tridiagonal matrix of a Gauss rule, by Lanczos on its nodes."""
    vector = np.sqrt(weights / weights.sum())
    basis, diagonal, off_diagonal = [], [], []
    while True:
        basis.append(vector)
        vector = nodes * vector
        diagonal.append(basis[-1] @ vector)
        for _ in range(2):  # twice is enough (Giraud, Langou, Rozloznik 2005)
            vector = vector - np.array(basis).T @ (np.array(basis) @ vector)
        length = np.linalg.norm(vector)
        if len(basis) == np.count_nonzero(weights) or length <= NOISE**2 * np.abs(nodes).max():
            return np.array(diagonal), np.array(off_diagonal)
        off_diagonal.append(length)
        vector = vector / length
