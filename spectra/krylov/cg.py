"""Conjugate gradients for one right-hand side (Hestenes, Stiefel 1952), stopped at negative curvature (Steihaug 1983).

Starting from x = 0, r = b and d = b, each step is

    a = r'r / d'A d,  x += a d,  r -= a A d,  d = r + (r'r / previous r'r) d

for a positive definite matrix A. If d'A d <= 0, the matrix is not positive definite, and no step along d is defined.
SciPy's `cg` works on NumPy arrays on the CPU; this one works on any device and on shards, and returns d.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from spectra.krylov.reverse_communication import ReverseCommunication
from spectra.vectors import dot, local, norm

FLAT = 10  # times eps |A|: a smaller curvature is rounding error, like a smaller residual of an eigenpair


@dataclass(frozen=True)
class Iterate:
    """The last iterate, and the direction of negative curvature at which the iteration stopped, if any."""

    x: Tensor  # (n,)
    direction: Tensor | None = None  # d (n,), of norm 1
    curvature: float = math.nan  # d'A d


def conjugate_gradients(b: Tensor, target: float, most: int) -> ReverseCommunication:
    """Solve A x = b (n,) until |r| <= target, by at most `most` products, and return an Iterate.

    The iteration also stops, without a direction, if the curvature is rounding error: A is then singular along d.
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
