"""Exact eigenpairs and spectral measure of a matrix that its factor can build as a dense matrix.

The operator's method `factor` returns an object that builds the matrix itself (`gram`) and knows its cost in products.
"""

from __future__ import annotations

import torch

from spectra.defaults import TOLERANCE
from spectra.krylov.bounds import true_residuals
from spectra.krylov.convergence import allowed_residuals
from spectra.krylov.gram import refuse_budget
from spectra.krylov.limits import refuse_search
from spectra.krylov.quadrature import pack
from spectra.krylov.results import Eigenpairs, Progress, SpectralMeasure, no_eigenpairs, select
from spectra.operator import Factored, in_ieee, placed
from spectra.vectors import without_autocast


@without_autocast()
def kernel_eigenpairs(
    operator: Factored,
    k: int,
    *,
    which: str = "LM",
    tolerance: float = TOLERANCE,
    generator: torch.Generator | None = None,
    max_products: int | None = None,
    progress: Progress | None = None,
) -> Eigenpairs:
    """Compute `k` exact eigenpairs of the dense matrix, with residuals measured by k products.

    The arguments are those of `gram_eigenpairs`; `factor().gram()` is the matrix itself here.

    Raises:
        SpectraError: k > n, the matrix is too large, or `max_products` is too small.
    """
    refuse_search(operator.shape[0], k, which, tolerance, max_products)
    factor = operator.factor()
    refuse_budget(factor.cost() + k, max_products)
    matrix = factor.gram().cpu()
    if not matrix.isfinite().all():
        return no_eigenpairs(operator, k, products=factor.products)
    if progress:
        progress(products=factor.products, gram_rows=len(matrix))
    values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    size, chosen = values.abs().max().item(), select(values, k, which)
    values, vectors = values[chosen], placed(vectors[:, chosen].T.contiguous(), operator)
    residuals = true_residuals(in_ieee(operator), values, vectors)
    allowed = allowed_residuals(values, size, tolerance, operator.dtype)
    return Eigenpairs(
        values=values,
        vectors=vectors,
        residuals=residuals,
        error_estimates=residuals,
        products=factor.products + k,
        converged=bool((residuals <= allowed).all()),
        complete=True,
    )


@without_autocast()
def kernel_measure(
    operator: Factored,
    *,
    generator: torch.Generator | None = None,
    max_products: int | None = None,
    progress: Progress | None = None,
) -> SpectralMeasure:
    """Compute the spectral measure exactly: every eigenvalue of the dense matrix, with weight 1/n.

    Raises SpectraError if the matrix is too large, or `max_products` is too small.
    """
    factor = operator.factor()
    refuse_budget(factor.cost(), max_products)
    matrix = factor.gram().cpu()
    if progress:
        progress(products=factor.products, gram_rows=len(matrix))
    values = torch.linalg.eigvalsh((matrix + matrix.T) / 2).flip(0)
    none = values[:0]
    return pack([(none, none)], values, len(values), factor.products, converged=bool(values.isfinite().all()))
