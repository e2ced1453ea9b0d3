"""Inverse products (A + damping I)^-1 b by conjugate gradients or MINRES, each with its true residual.

Right-hand sides are solved independently, but advance together, with one joint product per step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spectra.arguments import require_choice, require_integer, require_number, wrong
from spectra.errors import ArgumentError
from spectra.given_operator import as_operator
from spectra.krylov.blocks import columns, fitting_vectors
from spectra.krylov.cg import Iterate, conjugate_gradients
from spectra.krylov.minres import minres
from spectra.krylov.preconditioner import SpectralPreconditioner, spectral_preconditioner
from spectra.krylov.results import Eigenpairs, Progress, Solution
from spectra.krylov.reverse_communication import ReverseCommunication, serve_jointly, with_products
from spectra.operator import Counting, Shifted, SymmetricOperator, in_ieee, mesh_of, placed
from spectra.vectors import WITHIN, all_finite, dot, map_shards, norm, sharded, squares_overflow, without_autocast

METHODS = {"cg": conjugate_gradients, "minres": minres}
RESIDUAL = 1e-5  # default relative residual
PRODUCTS = 10_000  # default budget of a column
MARGIN = 0.9  # of the tolerance: the target of a pass, so that rounding rarely makes a second pass necessary
FURTHER = 0.25  # factor on the target after a pass that missed the tolerance
PROGRESS = 0.5  # a pass that leaves more than this share of the residual is the last, because the rest is rounding
EACH = 10  # vectors in memory for the solution of a column, at the peak


@without_autocast()
def solve(
    operator: Any,
    b: Tensor | np.ndarray,
    *,
    damping: float = 0.0,
    method: str | None = None,
    tolerance: float = RESIDUAL,
    known: Eigenpairs | None = None,
    lowest: float | None = None,
    max_products: int | None = None,
    progress: Progress | None = None,
) -> Solution:
    """Solve (A + damping I) x = b for a symmetric matrix A, by conjugate gradients (CG) or MINRES.

    CG needs a positive definite matrix. MINRES takes any symmetric matrix, and needs three vectors more. If CG finds a
    direction d of negative curvature, d'(A + damping I)d < 0, it stops; the result holds d and its curvature, and x is
    the step that truncated Newton methods take (Steihaug 1983). Residuals are measured by a further product; if
    rounding has left one above the tolerance, the method continues from there. All products are in full precision,
    whatever the precision of the matrix.

    The sources are Hestenes and Stiefel (1952) for CG, and Paige and Saunders (1975) for MINRES.

    Args:
        operator: the matrix A (n, n), in any form that `spectra.as_operator` takes.
        b: the right-hand side (n,), or k of them as columns (n, k), in the operator's dtype; a tensor or a NumPy array.
        damping: a number of either sign that is added to every eigenvalue.
        method: cg, minres, or None: cg first, and minres for the columns where cg finds negative curvature.
        tolerance: the relative residual |b - (A + damping I) x| / |b| at which a column has converged.
        known: eigenpairs of A, as `eigenpairs` finds them. The system is solved along them directly, and the method
            sees only the rest of the spectrum. They take one product, and one more for each column.
        lowest: a lower bound on the eigenvalues of A, from which error bounds follow: 0.0 for a positive semi-definite
            matrix, or the `lower_bound` that `damping_for` finds.
        max_products: the largest number of products, by default 10,000 for each column.
        progress: a function that is called after each product with all columns.

    Returns:
        A `Solution`.

    Raises:
        ArgumentError: an argument is wrong; it is a SpectraError and a ValueError.

    Examples:
        >>> import torch, spectra
        >>> solution = spectra.solve(torch.diag(torch.tensor([1.0, 4.0])), torch.tensor([2.0, 4.0]))
        >>> solution.x.round(decimals=4)
        tensor([2., 1.])
    """
    operator = as_operator(operator)
    b = torch.as_tensor(b) if isinstance(b, np.ndarray) else b
    refuse_system(operator, b, damping, method, tolerance, known, lowest, max_products)
    counted = Counting(in_ieee(operator))
    matrix = Shifted(counted, damping)
    sides = list(rows_as_held(b[None] if b.ndim == 1 else b.T, operator, operator.device))
    preconditioner = None
    if known is not None:
        vectors = rows_as_held(known.vectors, operator, known.vectors.device)
        preconditioner = spectral_preconditioner(matrix, replace(known, vectors=vectors), damping, max(sides, key=norm))
    budget = PRODUCTS * len(sides) if max_products is None else max_products - counted.products
    solvers = [ColumnSolver(side, method, tolerance, budget // len(sides), preconditioner) for side in sides]

    def report(waiting: int) -> None:
        if progress:
            progress(products=counted.products, converged=len(solvers) - waiting, wanted=len(solvers))

    width = columns(fitting_vectors(matrix), EACH)
    found = serve_jointly([solver.solve() for solver in solvers], partial(images, matrix), report, width)
    return solution(found, sides, b.ndim, damping, tolerance, lowest, counted.products)


@dataclass(frozen=True)
class Column:
    """The solution of one right-hand side."""

    x: Tensor  # (n,)
    residual: float  # |b - (A + damping I) x|
    method: str
    direction: Tensor | None = None  # of negative curvature (n,), if one was found
    curvature: float = math.nan


@dataclass
class ColumnSolver:
    """The solution of one right-hand side by reverse communication; `solve` runs it.

    The fields are those of `solve`. Vectors are divided by |b|, so that they neither underflow nor overflow.
    """

    b: Tensor  # (n,)
    method: str | None
    tolerance: float
    most: int  # products
    preconditioner: SpectralPreconditioner | None
    products: int = 0

    def multiply(self, vector: Tensor) -> ReverseCommunication:
        """Request the product with a vector (n,)."""
        self.products += 1
        return (yield vector)

    def solve(self) -> ReverseCommunication:
        """Solve by the method asked for, or by CG, and by MINRES if CG finds negative curvature; return a Column."""
        if not (size := norm(self.b)):
            return Column(torch.zeros_like(self.b), 0.0, self.method or "cg")
        column = yield from self.passes(self.method or "cg", self.b / size)
        if self.method is None and column.direction is not None:
            indefinite = yield from self.passes("minres", self.b / size)
            column = replace(indefinite, direction=column.direction, curvature=column.curvature)
        return replace(column, x=column.x * size, residual=column.residual * size)

    def passes(self, method: str, b: Tensor) -> ReverseCommunication:
        """Solve for b of norm 1 by passes, each of which solves for the residual of the one before."""
        x, residual, left = torch.zeros_like(b), b, 1.0
        target = MARGIN * self.tolerance
        least = 2 if self.preconditioner is None else 3  # products of a pass: a step, and residuals
        if method == "cg" and (met := (yield from self.known_curvature())):
            return Column(x, left, method, met.direction, met.curvature)
        while left > self.tolerance and self.most - self.products >= least:
            iterate = yield from self.one_pass(method, residual, target)
            tried = x + iterate.x
            remaining = b - (yield from self.multiply(tried))
            before, now = left, norm(remaining)
            if now < left or (method == "cg" and residual is b):  # CG minimises another norm, so |r| may rise
                x, residual, left = tried, remaining, now
            if iterate.direction is not None:
                return Column(x, left, method, iterate.direction, iterate.curvature)
            if not now <= PROGRESS * before:
                break
            target *= FURTHER
        return Column(x, left, method)

    def known_curvature(self) -> ReverseCommunication:
        """Check by one product whether the lowest known eigenvalue is negative: its eigenvector as an Iterate, or None.

        The method itself would not find this direction, because the known eigenvectors are solved for separately.
        """
        known = self.preconditioner
        if known is None or known.values.min() >= 0 or self.most < 1:
            return None
        direction = known.vector(int(known.values.argmin()))
        curvature = dot(direction, (yield from self.multiply(direction))) / dot(direction, direction)
        return Iterate(torch.zeros_like(direction), direction, curvature) if curvature < 0 else None

    def one_pass(self, method: str, b: Tensor, target: float) -> ReverseCommunication:
        """Solve for b from x = 0, along the known eigenvectors first, by the products left; return an Iterate."""
        if self.preconditioner is None:
            return (yield from with_products(METHODS[method](b, target, self.most - self.products - 1), self.multiply))
        x = self.preconditioner.start(b)
        rest = b - (yield from self.multiply(x))
        if norm(rest) <= target:
            return Iterate(x)
        root = self.preconditioner.root
        run = METHODS[method](root(rest), target, self.most - self.products - 1)
        iterate = yield from with_products(self.preconditioner.around(run), self.multiply)
        if iterate.direction is None:
            return Iterate(x + root(iterate.x))
        direction = root(iterate.direction)  # d'A d is unchanged
        length = norm(direction)
        return Iterate(x + root(iterate.x), direction / length, iterate.curvature / length**2)


def images(operator: SymmetricOperator, vectors: dict[int, Tensor]) -> dict[int, Tensor]:
    """The products A v (n,) of vectors (n,), by index, in one joint product."""
    if len(vectors) == 1:
        return {index: operator @ vector for index, vector in vectors.items()}
    return dict(zip(vectors, (operator @ torch.stack([*vectors.values()]).T).T, strict=True))


def solution(
    found: Sequence[Column],
    sides: Sequence[Tensor],
    ndim: int,
    damping: float,
    tolerance: float,
    lowest: float | None,
    products: int,
) -> Solution:
    """The result of `solve` from its columns, in the form of a right-hand side of `ndim` dimensions."""

    def together(vectors: list[Tensor]) -> Tensor:
        return vectors[0] if ndim == 1 else torch.stack(vectors).T

    met = any(column.direction is not None for column in found)
    nothing = torch.zeros_like(found[0].x)
    directions = [nothing if column.direction is None else column.direction for column in found]
    residuals = torch.tensor([column.residual for column in found], dtype=torch.float64)
    least = math.nan if lowest is None or lowest + damping <= 0 else lowest + damping
    sizes = torch.tensor([norm(side) for side in sides], dtype=torch.float64)
    return Solution(
        x=together([column.x for column in found]),
        residuals=residuals,
        relative_residuals=torch.where(sizes > 0, residuals / sizes, residuals),
        error_bounds=residuals / least,
        methods=[column.method for column in found],
        damping=damping,
        curvatures=torch.tensor([column.curvature for column in found], dtype=torch.float64),
        directions=together(directions) if met else None,
        products=products,
        converged=bool((residuals <= tolerance * sizes).all()),
    )


def rows_as_held(rows: Tensor, operator: SymmetricOperator, device: torch.device) -> Tensor:
    """Rows (k, n) on a device, in the operator's dtype, and sharded as its vectors are."""
    return map_shards(lambda part: part.to(operator.dtype), rows) if sharded(rows) else placed(rows, operator, device)


def refuse_system(
    operator: SymmetricOperator,
    b: Tensor,
    damping: float,
    method: str | None,
    tolerance: float,
    known: Eigenpairs | None,
    lowest: float | None,
    max_products: int | None,
) -> None:
    """Raise ArgumentError if an argument of `solve` is wrong."""
    n = operator.shape[0]
    if not isinstance(b, Tensor):
        raise wrong("b", type(b), f"a torch.Tensor ({n},), or ({n}, k) with one right-hand side per column")
    if b.ndim not in (1, 2) or b.shape[0] != n or not b.numel():
        shape = tuple(b.shape)
        raise ArgumentError(f"`b` of shape {shape}: give ({n},), or ({n}, k) with one right-hand side per column")
    if b.dtype != operator.dtype:
        raise ArgumentError(f"`b` of {b.dtype}: the operator multiplies {operator.dtype}; give b.to({operator.dtype})")
    if sharded(b) and mesh_of(operator) is None:
        raise ArgumentError("`b` is sharded, but the operator's vectors are not: give b.full_tensor()")
    if not all_finite(b):
        raise ArgumentError("`b` contains numbers that are not finite: give finite ones")
    if any(map(squares_overflow, b[None] if b.ndim == 1 else b.T)):
        raise ArgumentError(f"`b`: the norm of a right-hand side is not {WITHIN}; scale it")
    require_number("damping", damping, least=-math.inf, finite=True)
    if method is not None:
        require_choice("method", method, METHODS)
    require_number("tolerance", tolerance)
    if lowest is not None:
        require_number("lowest", lowest, least=-math.inf, finite=True)
    require_integer("max_products", max_products, optional=True)
    if known is not None:
        refuse_pairs(known, n)


def refuse_pairs(known: Eigenpairs, n: int) -> None:
    """Raise ArgumentError if `known` does not hold eigenvectors of a matrix of n rows."""
    if not isinstance(known, Eigenpairs):
        raise wrong("known", type(known), "what `spectra.eigenpairs` returns")
    if known.vectors.shape[1] != n or not known.holds_vectors:
        came = f"eigenvectors of {known.vectors.shape[1]:,} entries" if known.holds_vectors else "no eigenvectors"
        raise ArgumentError(f"`known`: {came}, for a matrix of {n:,} rows; give eigenpairs of this matrix")
