"""Conjugate gradients for one right-hand side (Hestenes, Stiefel 1952), stopped at negative curvature (Steihaug 1983).

With x = 0, r = b and d = b in the beginning, a step is

    x += a d,  r -= a A d,  d = r + (r'r / what r'r was) d,  a = r'r / d'A d,

for a positive definite matrix A. Where d'A d <= 0 the matrix is not positive definite, and no step along d is defined.
SciPy's `cg` works on NumPy arrays on the CPU; this one works on any device and on shards, and returns d.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from spectra.krylov.reverse_communication import ReverseCommunication
from spectra.vectors import dot, local, norm

FLAT = 10  # eps |A|, below which curvature is the rounding of products, as below it residuals of eigenpairs are


@dataclass(frozen=True)
class Iterate:
    """Where an iteration has ended, and the direction of negative curvature that ended it, if one did."""

    x: Tensor  # (n,)
    direction: Tensor | None = None  # d (n,), of norm 1
    curvature: float = math.nan  # d'A d


def conjugate_gradients(b: Tensor, target: float, most: int) -> ReverseCommunication:
    """Solve A x = b (n,) until |r| <= target, by `most` products at most, and return an Iterate.

    The iteration also ends, without a direction, where curvature is no more than rounding: A is singular along d.
    """
    x, r, d = torch.zeros_like(b), b.clone(), b.clone()
    square, largest, eps = dot(r, r), 0.0, torch.finfo(b.dtype).eps
    for _ in range(most):
        if not math.sqrt(square) > target:
            break
        image = yield d
        length = norm(d)
        curvature = dot(d, image) / length**2
        largest = max(largest, norm(image) / length)
        if curvature < -FLAT * eps * largest:
            return Iterate(x, d / length, curvature)
        if not curvature > FLAT * eps * largest:
            break
        before, step = square, square / (curvature * length**2)
        add(x, step, d)
        add(r, -step, image)
        square = dot(r, r)
        local(d).mul_(square / before)
        add(d, 1.0, r)
    return Iterate(x)


def add(vector: Tensor, factor: float, other: Tensor) -> None:
    """Add a multiple of another vector to a vector (n,), in place."""
    local(vector).add_(local(other), alpha=factor)
