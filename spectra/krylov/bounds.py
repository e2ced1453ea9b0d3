"""Bounds on the errors of computed eigenvalues, and on eigenvalues that a search may have missed."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from spectra.operator import SymmetricOperator
from spectra.vectors import sum_pieces

FAILURE = 0.01  # probability that the bound on missed eigenvalues does not hold


def true_residuals(operator: SymmetricOperator, values: Tensor, vectors: Tensor) -> Tensor:
    """The residuals |A u - lambda u| (k,) of unit vectors (k, n), by k products."""
    return residual_norms((operator @ vectors.T).T, values, vectors)


def residual_norms(images: Tensor, values: Tensor, vectors: Tensor) -> Tensor:
    """The residuals |A u - lambda u| (k,), given the products A u (k, n)."""
    scales = values.to(vectors.device, vectors.dtype)[:, None]

    def squares(image: Tensor, part: Tensor) -> Tensor:
        return torch.linalg.vector_norm(image - scales * part, dim=1, dtype=torch.float64).square()

    return sum_pieces(squares, images, vectors).sqrt().cpu()


def complement_bounds(projected: Tensor, coupling: float, dimension: int) -> tuple[float, float]:
    """Bound the spectrum from one Lanczos run with a random start, with probability 0.99 for all steps together.

    The component of a random unit vector along the eigenvector of the largest eigenvalue has a square of at least
    `seen`, with probability 0.995 (van Dorsselaer, Hochstenbach, van der Vorst 2000). For an x outside the Ritz values
    and the orthonormal polynomials p_j of degrees 0 to m, the share of the start vector beyond x is at most
    1 / sum of p_j(x)^2 (Chebyshev, Markov, Stieltjes: Szego 1939, section 3.41). If that is less than `seen`, there is
    no eigenvalue beyond x. If the Krylov space is exhausted (coupling 0), the Ritz values contain all eigenvalues.

    Args:
        projected: the Jacobi matrix T (m, m) of the run.
        coupling: the next off-diagonal entry of T; 0 if the Krylov space is exhausted.
        dimension: the dimension of the space.

    Returns:
        The lower and the upper bound.
    """
    values = torch.linalg.eigvalsh(projected)
    low, high = values[0].item(), values[-1].item()
    if coupling == 0 or len(projected) >= dimension:
        return low, high
    # The density of one component of a random unit vector is at most sqrt((dimension - 1) / 2 pi).
    seen = math.pi * FAILURE**2 / (8 * (dimension - 1))
    diagonal, couplings = projected.diagonal().tolist(), [*projected.diagonal(1).tolist(), coupling]
    return -upper_bound_beyond(-low, [-x for x in diagonal], couplings, seen), upper_bound_beyond(
        high, diagonal, couplings, seen
    )


def upper_bound_beyond(largest: float, diagonal: list[float], couplings: list[float], seen: float) -> float:
    """The smallest x above the `largest` Ritz value with no eigenvalue beyond it, to 0.1 % of their distance."""
    lower, step = largest, max(couplings)
    while not excludes_beyond(upper := largest + step, diagonal, couplings, seen):
        lower, step = upper, 2 * step
    while upper - lower > 1e-3 * (upper - largest) and lower < (x := (lower + upper) / 2) < upper:
        lower, upper = (lower, x) if excludes_beyond(x, diagonal, couplings, seen) else (x, upper)
    return upper


def excludes_beyond(x: float, diagonal: list[float], couplings: list[float], seen: float) -> bool:
    """Whether 1 / sum of p_j(x)^2 is less than `seen`, for the p_j given by their three-term recurrence."""
    before, p, total, last = 0.0, 1.0, 1.0, 0.0
    for center, coupling in zip(diagonal, couplings, strict=True):
        before, p = p, ((x - center) * p - last * before) / coupling
        total, last = total + p * p, coupling
        if total * seen > 1:
            return True
    return False


def kato_temple(values: Tensor, residuals: Tensor, ritz: Tensor, uncertain: Tensor | float = 0.0) -> Tensor:
    """The error estimates residual^2 / gap (k,), where they are smaller than the residuals (Kato 1949, Temple 1928).

    They are estimates, because the gap is measured to the other Ritz values instead of the other eigenvalues. These
    values may be wrong by `uncertain`.
    """
    distance = (ritz[None, :] - values[:, None]).abs()
    own = distance.argmin(dim=1, keepdim=True)
    gap = (distance - uncertain).scatter(1, own, math.inf).min(dim=1).values - residuals
    return torch.where(gap > residuals, residuals.square() / gap, residuals)
