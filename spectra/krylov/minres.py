"""MINRES for one right-hand side (Paige, Saunders 1975): minimise |b - A x| over the Krylov space of a symmetric A.

The Lanczos relation A V = V' T', with a tridiagonal matrix T' that has one row more than columns, turns |b - A x| for
x = V y into |beta e_1 - T' y|. Plane rotations turn T' into a triangular R, and x = (V R^-1) (R y) gains one term per
step. A need not be definite. SciPy's `minres` works on NumPy arrays on the CPU; this one works on any device and on
shards.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from spectra.krylov.cg import FLAT, Iterate, add
from spectra.krylov.reverse_communication import ReverseCommunication
from spectra.vectors import dot, local, norm


def minres(b: Tensor, target: float, most: int) -> ReverseCommunication:
    """Solve A x = b (n,) until |r| <= target, by at most `most` products, and return an Iterate.

    The iteration also stops at a least-squares solution, where |A r| is zero up to rounding and a step does not reduce
    |r|. Further steps would only make x grow.
    """
    x, before = torch.zeros_like(b), torch.zeros_like(b)
    residual = coupling = norm(b)
    v = b / coupling
    one, two = torch.zeros_like(b), torch.zeros_like(b)  # the last columns of V R^-1
    cosine, sine, above, corner, largest = -1.0, 0.0, 0.0, 0.0, 0.0
    beta, eps = 0.0, torch.finfo(b.dtype).eps
    for _ in range(most):
        if not residual > target:
            break
        image = yield v
        w = image.clone()
        add(w, -beta, before)
        alpha = dot(v, w)
        add(w, -alpha, v)
        following = norm(w)
        largest = max(largest, math.hypot(beta, alpha, following))  # |A v|
        # Apply the last rotation to this column of T', and find the rotation that eliminates its lowest entry.
        epsilon, delta, gamma = above, cosine * corner + sine * alpha, sine * corner - cosine * alpha
        above, corner = sine * following, -cosine * following
        diagonal = math.hypot(gamma, following)
        if not diagonal > FLAT * eps * largest:  # A is singular
            break
        cosine, sine = gamma / diagonal, following / diagonal
        stationary = math.hypot(gamma, corner) <= math.sqrt(eps) * largest  # |A r| / |r|, before this step
        if stationary and cosine**2 <= FLAT * eps:
            break
        column = v.clone()
        add(column, -epsilon, one)
        add(column, -delta, two)
        local(column).div_(diagonal)
        one, two = two, column
        add(x, cosine * residual, two)
        residual *= sine
        if not following > FLAT * eps * largest:  # the Krylov space is exhausted
            break
        before, beta, v = v, following, w / following
    return Iterate(x)
