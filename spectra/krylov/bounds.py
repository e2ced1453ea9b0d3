"""How far computed eigenvalues may be from true ones, and what a search may have missed."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from spectra.operator import SymmetricOperator
from spectra.vectors import mapped, norms

FAILURE = 0.01  # probability that the bound on what was missed does not hold


def allowed_residuals(values: Tensor, size: float, tolerance: float, dtype: torch.dtype) -> Tensor:
    """The largest residuals (k,) of converged pairs, of a matrix of norm `size`; the floor is ARPACK's."""
    return tolerance * values.abs().clamp(min=torch.finfo(dtype).eps ** (2 / 3) * size)


def true_residuals(operator: SymmetricOperator, values: Tensor, vectors: Tensor) -> Tensor:
    """|A u - lambda u| for unit vectors (k, n), by k products."""
    return departures((operator @ vectors.T).T, values, vectors)


def departures(images: Tensor, values: Tensor, vectors: Tensor) -> Tensor:
    """The same for products A u (k, n) that are there."""
    scales = values.to(vectors.device, vectors.dtype)[:, None]
    return norms(mapped(lambda image, part: image - scales * part, images, vectors)).cpu()


def complement_bounds(values: Tensor, steps: int, dimension: int, ended: bool) -> tuple[float, float]:
    """Where the spectrum lies, seen by `steps` of Lanczos from a random start, with probability 0.99.

    Kuczynski and Wozniakowski (1992), theorem 4.2: for a positive semi-definite matrix the largest Ritz value is
    short by more than a fraction epsilon with probability at most 1.648 sqrt(n) exp(-sqrt(epsilon) (2 steps - 1)).
    Applied to both ends, relative to the spread; an ended Krylov space has seen all there is.
    """
    low, high = values.min().item(), values.max().item()
    if ended or steps >= dimension:
        return low, high
    epsilon = (math.log(1.648 * math.sqrt(dimension) * 2 / FAILURE) / (2 * steps - 1)) ** 2
    if epsilon >= 0.5:
        return -math.inf, math.inf
    margin = epsilon * (high - low) / (1 - 2 * epsilon)
    return low - margin, high + margin


def kato_temple(values: Tensor, residuals: Tensor, ritz: Tensor) -> Tensor:
    """residual^2 / gap where that is smaller than the residual (Kato 1949, Temple 1928).

    An estimate: the gap is to the other Ritz values, which stand in for the rest of the spectrum.
    """
    distance = (ritz[None, :] - values[:, None]).abs()
    own = distance.argmin(dim=1, keepdim=True)
    gap = distance.scatter(1, own, math.inf).min(dim=1).values - residuals
    return torch.where(gap > residuals, residuals.square() / gap, residuals)
