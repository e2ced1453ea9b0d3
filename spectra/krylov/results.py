"""The results of methods: each number with its error and its cost."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from spectra.operator import SymmetricOperator, empty_rows
from spectra.wording import outline

Pairs = TypeVar("Pairs", "Eigenpairs", "BlockEigenpairs")


class Progress(Protocol):
    """A function that a method calls while it runs, with the products so far and other numbers by keyword."""

    def __call__(self, *, products: int, **numbers: float) -> None: ...


@dataclass(frozen=True)
class Eigenpairs:
    """Eigenvalues of a symmetric matrix with unit eigenvectors, their errors and what they cost.

    Within `residuals` of each value there is an eigenvalue: this bound is rigorous. `error_estimates` are usually far
    smaller, but they rest on the gaps between computed values.

    Attributes:
        values: the eigenvalues (k,), float64, in the order asked for.
        vectors: the eigenvectors (k, n), one a row, of norm 1.
        residuals: |A u - lambda u| of each pair (k,).
        error_estimates: the Kato-Temple estimate of each value's error (k,).
        products: the number of matrix-vector products.
        converged: whether all pairs have met the tolerance.
        complete: whether a search of the orthogonal complement excludes missed eigenvalues, with probability 0.99; None
            without a search.
        complement: bounds of the matrix on the orthogonal complement, with probability 0.99; None without a search.
        beside: the smallest and the largest further value that the search found; None without a search.
        sampling_errors: the standard errors of the values (k,), for a matrix that is itself an estimate; else None.
    """

    values: Tensor
    vectors: Tensor
    residuals: Tensor
    error_estimates: Tensor
    products: int
    converged: bool
    complete: bool | None = None
    complement: tuple[float, float] | None = None
    beside: tuple[float, float] | None = None
    sampling_errors: Tensor | None = None

    __repr__ = outline

    @property
    def holds_vectors(self) -> bool:
        """Whether the eigenvectors are present; False if they were dropped to save memory, and `vectors` is nan."""
        return self.vectors.numel() < 2 or any(self.vectors.stride())


@dataclass(frozen=True)
class BlockEigenpairs:
    """The eigenpairs of N diagonal blocks of d rows; the fields are those of `Eigenpairs` with a first dimension N."""

    values: Tensor  # (N, k), float64
    vectors: Tensor  # (N, k, d)
    residuals: Tensor  # (N, k)
    error_estimates: Tensor  # (N, k)
    products: int
    converged: bool
    complete: bool | None = None

    __repr__ = outline

    @property
    def holds_vectors(self) -> bool:
        """Whether the eigenvectors are present; False if they were dropped to save memory, and `vectors` is nan."""
        return self.vectors.numel() < 2 or any(self.vectors.stride())


def without_vectors(pairs: Pairs) -> Pairs:
    """Replace the eigenvectors of pairs by nan of the same shape, which takes no memory."""
    return replace(pairs, vectors=torch.tensor(math.nan, dtype=pairs.vectors.dtype).expand(pairs.vectors.shape))


def no_eigenpairs(operator: SymmetricOperator, count: int, products: int) -> Eigenpairs:
    """The result if products are not finite: `count` pairs of nan."""
    missing = torch.full((count,), float("nan"), dtype=torch.float64)
    vectors = empty_rows(operator, count)
    return Eigenpairs(missing, vectors.fill_(math.nan), missing, missing, products, converged=False)


@dataclass(frozen=True)
class TraceEstimate:
    """An estimate of a trace, its standard error and its cost.

    Attributes:
        value: the estimate.
        standard_error: its standard error; 0.0 if the trace is exact.
        products: the number of matrix-vector products.
        converged: whether the standard error has met the tolerance.
        sampling_error: the part of the standard error that comes from a matrix that is itself an estimate.
    """

    value: float
    standard_error: float
    products: int
    converged: bool
    sampling_error: float = 0.0


@dataclass(frozen=True)
class BlockTraces:
    """The traces of N diagonal blocks, with their standard errors, which are 0.0 for exact traces."""

    values: Tensor  # (N,), float64
    errors: Tensor  # (N,)
    spread: float  # standard deviation over blocks, corrected for the errors
    spread_error: float
    products: int
    converged: bool
    method: str = "dense"  # of TRACE_BLOCKS

    __repr__ = outline

    @property
    def mean(self) -> float:
        """The mean over blocks."""
        return self.values.mean().item()

    @property
    def error(self) -> float:
        """The standard error of the mean; the samples of different blocks are independent."""
        return self.errors.square().sum().sqrt().item() / len(self.errors)


def exact_trace(value: float, products: int) -> TraceEstimate:
    """An exact trace; nan if a product was not finite."""
    finite = math.isfinite(value)
    return TraceEstimate(value, 0.0 if finite else math.nan, products, converged=finite)


@dataclass(frozen=True)
class Solution:
    """The solution x of (A + damping I) x = b, for one or several right-hand sides, with the residual of each.

    Attributes:
        x: the solution, (n,) or (n, k) as b.
        residuals: |b - (A + damping I) x| of each right-hand side (k,), float64, measured by a further product.
        relative_residuals: the residuals over |b| (k,).
        error_bounds: bounds on |x - x*|, with x* the exact solution (k,): the residual over a lower bound on the lowest
            eigenvalue; nan if no such bound is known.
        methods: the method of each right-hand side, cg or minres.
        damping: the damping.
        curvatures: the negative d'(A + damping I)d that cg found along a direction d of norm 1 (k,), which shows that
            the matrix is not positive definite; nan where it found none.
        directions: these d, (n,) or (n, k), zero where cg found none; None if it found none for any right-hand side.
        products: the number of matrix-vector products.
        converged: whether all right-hand sides have met the tolerance.
    """

    x: Tensor
    residuals: Tensor
    relative_residuals: Tensor
    error_bounds: Tensor
    methods: list[str]
    damping: float
    curvatures: Tensor
    directions: Tensor | None
    products: int
    converged: bool

    __repr__ = outline

    @property
    def negative_curvature(self) -> bool:
        """Whether cg found a direction of negative curvature."""
        return self.directions is not None

    @property
    def least_damping(self) -> float:
        """The damping below which A + damping I is not positive definite, from the curvature that cg found, or nan.

        `spectra.damping_for` computes a damping that is large enough, from the lowest eigenvalue.
        """
        met = self.curvatures[~self.curvatures.isnan()]
        return self.damping - met.min().item() if len(met) else math.nan

    @property
    def note(self) -> str:
        """One line on why columns have not converged, and what to do; empty if all have converged."""
        if self.converged:
            return ""
        if not self.residuals.isfinite().all():
            return "a product is not finite; check what `operator` returns"
        if self.negative_curvature and "cg" in self.methods:
            return (
                "cg found negative curvature, so A + damping I is not positive definite: give `damping` above "
                f"{self.least_damping:.6g} (`damping_for` computes one that is enough), or `method` minres"
            )
        return (
            f"the relative residual is {self.relative_residuals.max():.1e}, above `tolerance`: raise `max_products`, "
            "`damping` or `tolerance`; with a singular matrix there may be no solution, and if rounding is the limit, "
            "use float64"
        )


def select(values: Tensor, k: int, which: str) -> Tensor:
    """The indices of k of the values (m,): LM by falling |value|, LA falling, SA rising, BE half from either end."""
    if which == "LM":
        return values.abs().argsort(descending=True, stable=True)[:k]
    rising = values.argsort(stable=True)
    if which == "SA":
        return rising[:k]
    if which == "LA":
        return rising.flip(0)[:k]
    k = min(k, len(values))
    return torch.cat([rising.flip(0)[: k - k // 2], rising[: k // 2]])


@dataclass(frozen=True)
class SpectralMeasure:
    """The distribution of a matrix's eigenvalues, as nodes and weights of a quadrature, one row for each random vector.

    Row l is the measure sum_i weights[l, i] delta(nodes[l, i]), with mass 1. Rows shorter than the longest are padded
    with nodes of weight zero. Densities, ranks and log-determinants are all computed from these numbers.

    Attributes:
        nodes: the nodes (probes, steps), float64, in units of the eigenvalues.
        weights: their weights (probes, steps), float64.
        dimension: the number of rows n of the matrix.
        deflated: the number of eigenvalues found beforehand; they are the first nodes of every row, each with weight
            1/dimension.
        products: the number of matrix-vector products.
        noise: for products of lower precision, the norm of the error of the matrix that a row describes; else 0.
        converged: whether every probe asked for took all its steps, or ended early because it was exact.
    """

    nodes: Tensor
    weights: Tensor
    dimension: int
    deflated: int = 0
    products: int = 0
    noise: float = 0.0
    converged: bool = True

    __repr__ = outline

    @property
    def probes(self) -> int:
        """The number of probes."""
        return self.nodes.shape[0]

    def mean(self, function: Callable[[Tensor], Tensor] = lambda x: x) -> tuple[float, float]:
        """Estimate (1/n) tr f(A), with its standard error.

        Args:
            function: f, which maps nodes to values of the same shape; by default the identity.

        Returns:
            The mean over probes, and its standard error (nan for one probe).
        """
        values = (self.weights * function(self.nodes)).sum(dim=1)
        spread = values.std().item() if self.probes > 1 else float("nan")
        return values.mean().item(), spread / self.probes**0.5


def as_cpu_float64(values) -> Tensor:
    """Values as a float64 tensor on the CPU."""
    return torch.as_tensor(values, dtype=torch.float64, device="cpu")
