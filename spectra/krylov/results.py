"""The results of methods: each number with its error and its cost."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from spectra.operator import SymmetricOperator, empty_rows
from spectra.wording import outline

Pairs = TypeVar("Pairs", "Eigenpairs", "BlockEigenpairs")


class Progress(Protocol):
    """A function that a method calls as it goes on, with the products so far and other numbers by keyword."""

    def __call__(self, *, products: int, **numbers: float) -> None: ...


@dataclass(frozen=True)
class Eigenpairs:
    """Eigenvalues in the order asked for, with unit eigenvectors.

    Some eigenvalue lies within `residuals` of each value: that is rigorous. `error_estimates` are usually far smaller,
    but rest on gaps between computed values.
    """

    values: Tensor  # (k,), float64
    vectors: Tensor  # (k, n), rows of norm 1
    residuals: Tensor  # (k,), |A u - lambda u|
    error_estimates: Tensor  # (k,), Kato-Temple
    products: int
    converged: bool
    complete: bool | None = None  # whether a search of the complement excludes missed copies; None: no search
    complement: tuple[float, float] | None = None  # bounds of the matrix on the complement, probability 0.99
    beside: tuple[float, float] | None = None  # the least and the largest value that the search has found beside these
    sampling_errors: Tensor | None = None  # (k,), standard errors of values, of a matrix that is itself an estimate

    __repr__ = outline

    @property
    def holds_vectors(self) -> bool:
        """Whether the eigenvectors are there, and not what `without_vectors` puts in their place."""
        return self.vectors.numel() < 2 or any(self.vectors.stride())


@dataclass(frozen=True)
class BlockEigenpairs:
    """The eigenpairs of N diagonal blocks of d rows, as `Eigenpairs` has those of one matrix."""

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
        """Whether the eigenvectors are there, and not what `without_vectors` puts in their place."""
        return self.vectors.numel() < 2 or any(self.vectors.stride())


def without_vectors(pairs: Pairs) -> Pairs:
    """The pairs with nan in place of their eigenvectors, of the same shape, which takes no memory."""
    return replace(pairs, vectors=torch.tensor(math.nan, dtype=pairs.vectors.dtype).expand(pairs.vectors.shape))


def no_eigenpairs(operator: SymmetricOperator, count: int, products: int) -> Eigenpairs:
    """The result for a matrix whose products are not finite: `count` pairs of nan."""
    missing = torch.full((count,), float("nan"), dtype=torch.float64)
    vectors = empty_rows(operator, count)
    return Eigenpairs(missing, vectors.fill_(math.nan), missing, missing, products, converged=False)


@dataclass(frozen=True)
class TraceEstimate:
    """An estimate of tr A with its standard error, which is 0.0 where the trace is exact."""

    value: float
    standard_error: float
    products: int
    converged: bool
    sampling_error: float = 0.0  # the part in it of a matrix that is itself an estimate


@dataclass(frozen=True)
class BlockTraces:
    """The traces of N diagonal blocks, with their standard errors, which are 0.0 where they are exact."""

    values: Tensor  # (N,), float64
    errors: Tensor  # (N,)
    spread: float  # standard deviation over blocks, less what the errors add to it
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
    """A trace without error; nan where a product was not finite."""
    finite = math.isfinite(value)
    return TraceEstimate(value, 0.0 if finite else math.nan, products, converged=finite)


@dataclass(frozen=True)
class Solution:
    """x with (A + damping I) x = b, for one right-hand side or several columns, with the residual of each.

    `residuals` are true ones, by a product of their own, up to its rounding. Where `cg` has met a direction d of
    negative curvature, d'(A + damping I)d < 0, the matrix is not positive definite.
    """

    x: Tensor  # (n,) or (n, k), as b
    residuals: Tensor  # (k,), float64: |b - (A + damping I) x|
    relative_residuals: Tensor  # (k,), over |b|
    error_bounds: Tensor  # (k,), of |x - x*|: residuals over the lowest eigenvalue; nan where no bound on that is known
    methods: list[str]  # (k,), cg or minres
    damping: float
    curvatures: Tensor  # (k,), d'(A + damping I)d for d of norm 1; nan where none was negative
    directions: Tensor | None  # such d, (n,) or (n, k), zero where none was met; None where none was met at all
    products: int
    converged: bool

    __repr__ = outline

    @property
    def negative_curvature(self) -> bool:
        """Whether a direction of negative curvature was met."""
        return self.directions is not None

    @property
    def least_damping(self) -> float:
        """The damping above which alone A + damping I can be positive definite, by the curvature met; nan without it.

        What is enough follows from the lowest eigenvalue (`spectra.damping_for`).
        """
        met = self.curvatures[~self.curvatures.isnan()]
        return self.damping - met.min().item() if len(met) else math.nan

    @property
    def note(self) -> str:
        """What has kept columns from convergence, and the way out, on one line; empty where all have converged."""
        if self.converged:
            return ""
        if not self.residuals.isfinite().all():
            return "a product is not finite: look at what `operator` returns"
        if self.negative_curvature and "cg" in self.methods:
            return (
                f"negative curvature was met: give `damping` above {self.least_damping:.6g} at least (`damping_for` "
                "finds what is enough), or `method` minres"
            )
        return (
            f"a residual of {self.relative_residuals.max():.1e} of |b| is left: raise `max_products` or `damping`, or "
            "give a larger `tolerance`; a singular matrix has no solution for some b, and a higher precision helps "
            "where rounding is the limit"
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
    """Quadrature of the spectral distribution, one row a probe; every quantity of a density is computed from it.

    Row l stands for the measure sum_i weights[l, i] delta(nodes[l, i]), whose mass is 1. Rows shorter than the longest
    end in nodes of weight zero. The first `deflated` nodes of every row are eigenvalues found beforehand, each of
    weight exactly 1/dimension.
    """

    nodes: Tensor  # (probes, steps), float64
    weights: Tensor  # (probes, steps), float64
    dimension: int  # n of the matrix
    deflated: int = 0
    products: int = 0
    noise: float = 0.0  # of products of lower precision: each row is the measure of a matrix that is off by so much
    converged: bool = True  # every probe asked for took every step asked for, or ended exactly

    __repr__ = outline

    @property
    def probes(self) -> int:
        """The number of probes."""
        return self.nodes.shape[0]

    def mean(self, function=lambda x: x) -> tuple[float, float]:
        """The estimate (1/n) tr f(A): its mean over probes, and its standard error (nan for one probe)."""
        values = (self.weights * function(self.nodes)).sum(dim=1)
        spread = values.std().item() if self.probes > 1 else float("nan")
        return values.mean().item(), spread / self.probes**0.5


def as_cpu_float64(values) -> Tensor:
    """Values as a float64 tensor on the CPU."""
    return torch.as_tensor(values, dtype=torch.float64, device="cpu")
