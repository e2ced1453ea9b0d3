"""Exact methods that build the dense matrix by products with the identity, for up to some thousands of rows."""

from __future__ import annotations

import torch
from torch import Tensor

from spectra.defaults import RTOL, TOLERANCE
from spectra.given_operator import as_operator
from spectra.krylov.convergence import allowed_residuals
from spectra.krylov.limits import refuse_dense, refuse_search
from spectra.krylov.measured import with_measured_residuals
from spectra.krylov.results import Eigenpairs, Progress, TraceEstimate, exact_trace, no_eigenpairs, select
from spectra.operator import Counting, SymmetricOperator, in_ieee, placed
from spectra.vectors import full_tensor, without_autocast

BLOCK = 64


def columns(operator: SymmetricOperator, progress: Progress | None = None):
    """Yield the index of a first column, and a block of columns (n, width) from there on, in float64 on the CPU."""
    n = operator.shape[0]
    refuse_dense(n)
    for first in range(0, n, BLOCK):
        width = min(BLOCK, n - first)
        identity = torch.zeros(width, n)
        identity[torch.arange(width), first + torch.arange(width)] = 1
        yield first, full_tensor(operator @ placed(identity, operator).T.contiguous()).detach().double().cpu()
        if progress:
            progress(products=first + width, wanted=n)


def dense_matrix(operator: SymmetricOperator, progress: Progress | None = None) -> Tensor:
    """Compute the dense matrix (n, n) in float64, by n products; it is symmetric up to rounding."""
    return torch.cat([block for _, block in columns(operator, progress)], dim=1)


@without_autocast()
@with_measured_residuals
def dense_eigenpairs(
    operator: SymmetricOperator,
    k: int,
    *,
    which: str = "LM",
    tolerance: float = TOLERANCE,
    generator: torch.Generator | None = None,
    max_products: int | None = None,
    progress: Progress | None = None,
) -> Eigenpairs:
    """Compute `k` eigenpairs of the dense matrix's symmetric part, by n products.

    All products are in full precision. The residuals are those of the matrix before it is made symmetric, so that they
    include the rounding of products.

    Args:
        operator: the matrix (n, n).
        k: the number of eigenpairs.
        which: LM (largest magnitude), LA (largest), SA (smallest) or BE (half from either end).
        tolerance: the relative residual of a converged pair.
        generator: not used; all methods take one.
        max_products: the largest number of products; None for no limit.
        progress: called after each block of columns.

    Raises:
        SpectraError: k > n, n is too large, or n products are more than `max_products`.
    """
    operator = as_operator(operator)
    refuse_search(operator.shape[0], k, which, tolerance, max_products)
    n = operator.shape[0]
    refuse_dense(n, max_products)
    matrix = dense_matrix(in_ieee(operator), progress)
    if not torch.isfinite(matrix).all():
        return no_eigenpairs(operator, k, products=n)
    values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    size, chosen = values.abs().max().item(), select(values, k, which)
    values, vectors = values[chosen], vectors[:, chosen]
    residuals = torch.linalg.vector_norm(matrix @ vectors - vectors * values, dim=0)
    return Eigenpairs(
        values=values,
        vectors=placed(vectors.T, operator),
        residuals=residuals,
        error_estimates=residuals,
        products=n,
        converged=bool((residuals <= allowed_residuals(values, size, tolerance, operator.dtype)).all()),
        complete=True,
    )


@without_autocast()
def dense_trace(
    operator: SymmetricOperator,
    *,
    rtol: float = RTOL,
    probes: int | None = None,
    known: float = 0.0,
    generator: torch.Generator | None = None,
    max_products: int | None = None,
    progress: Progress | None = None,
) -> TraceEstimate:
    """Compute tr A + known exactly, as the sum of the diagonal, by n products."""
    refuse_dense(operator.shape[0], max_products)
    counted = Counting(operator)
    value = sum(torch.trace(block[first:]).item() for first, block in columns(counted, progress))
    return exact_trace(known + value, counted.products)
