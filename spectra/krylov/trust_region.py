"""The maximum of a quadratic function in a ball by the Lanczos method: the trust-region problem with opposite sign.

    max of  b'x + x'A x / 2  over |x| <= rho

x is a maximum where (lambda I - A) x = b for a lambda >= 0 at least as large as every eigenvalue of A, and |x| = rho
unless lambda = 0. In the space that A and b span this is a scalar equation for lambda (Gould, Lucidi, Roma, Toint 1999,
*Solving the trust-region subproblem using the Lanczos method*).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from scipy.optimize import brentq
from torch import Tensor

from spectra.krylov.lanczos import begin
from spectra.operator import SymmetricOperator
from spectra.vectors import norm
from spectra.wording import outline


@dataclass(frozen=True)
class BallMaximum:
    """The largest value found, which is a lower bound on the maximum.

    The maximum is at most `value + error` if no eigenvalue exceeds `multiplier`. Only an eigenvalue with eigenvectors
    orthogonal to b can exceed it.
    """

    value: float
    error: float  # 2 rho |(lambda I - A) x - b|
    multiplier: float  # lambda
    x: Tensor  # (n,)
    products: int
    converged: bool

    __repr__ = outline


def maximise_in_ball(
    operator: SymmetricOperator, b: Tensor, radius: float, *, rtol: float, max_products: int
) -> BallMaximum:
    """Find the largest b'x + x'A x / 2 in a ball, until the error is at most rtol times the value.

    Args:
        operator: the matrix A (n, n).
        b: a non-zero vector (n,), with the operator's dtype and device.
        radius: the radius rho > 0 of the ball.
        rtol: the relative error asked for.
        max_products: the largest number of products, 1 or more.
    """
    length, most = norm(b), min(max_products, operator.shape[0])
    run = begin(operator, b, rows=min(most + 1, 32))
    while True:
        run.extend(operator)
        values, coordinates, _ = run.ritz()
        if not run.finite:
            return BallMaximum(math.nan, math.nan, math.nan, b * math.nan, run.size, converged=False)
        y, multiplier = maximise_diagonal_in_ball(values.numpy(), length * coordinates[0].numpy(), radius)
        value = float(length * coordinates[0].numpy() @ y + values.numpy() @ y**2 / 2)
        inside = coordinates @ torch.from_numpy(y)
        error = 2 * radius * torch.linalg.vector_norm(run.coupling @ inside).item()
        met = error <= rtol * value
        if met or run.size >= most or not len(run.coupling):
            return BallMaximum(value, error, multiplier, run.vectors(inside[:, None])[0], run.size, converged=met)


def maximise_diagonal_in_ball(values: np.ndarray, b: np.ndarray, radius: float) -> tuple[np.ndarray, float]:
    """The maximum y (k,) and its lambda, for a diagonal A with these rising values.

    If b has no component along the eigenvector of the largest value, up to rounding (the hard case), y is extended
    along it to the sphere.
    """

    def at(multiplier: float) -> np.ndarray:
        return np.divide(b, multiplier - values, out=np.zeros_like(b), where=(b != 0) & (values != multiplier))

    def excess(multiplier: float) -> float:
        return float(1 / radius - 1 / np.linalg.norm(at(multiplier)))  # nearly linear, unlike |y|

    top, size = float(values[-1]), float(np.linalg.norm(b))
    if top < 0 and np.linalg.norm(at(0.0)) <= radius:
        return at(0.0), 0.0
    low, high = top + abs(float(b[-1])) / radius, top + size / radius
    if low < high and low > top and np.linalg.norm(at(low)) > radius:
        root = cast("float", brentq(excess, low, high, xtol=4 * np.finfo(float).eps * max(abs(top), size / radius)))
        y = at(root)
        return y * (radius / np.linalg.norm(y)), root
    y = at(low)
    y[-1] = math.copysign(math.sqrt(max(0.0, radius**2 - float(y[:-1] @ y[:-1]))), b[-1])
    return y, low
