"""Eigenpairs from noisy products alone, such as finite differences, with residuals measured by reference products.

The pairs keep the noise of the products (`spectra.krylov.polishing` would reduce it), and their residuals |A u -
lambda u|, with the A of the reference, include it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from typing import Any

from spectra.defaults import TOLERANCE
from spectra.krylov.blocks import products
from spectra.krylov.bounds import residual_norms
from spectra.krylov.convergence import allowed_residuals
from spectra.krylov.eigensolver import are_outside
from spectra.krylov.results import Eigenpairs
from spectra.operator import SymmetricOperator, only_measured, reference


def with_measured_residuals(solve: Callable[..., Eigenpairs]) -> Callable[..., Eigenpairs]:
    """Wrap an eigensolver: measure the residuals of pairs from noisy products by one reference product per pair."""

    @wraps(solve)
    def solved(operator: SymmetricOperator, k: int, *, max_products: int | None = None, **options: Any) -> Eigenpairs:
        if not only_measured(operator):
            return solve(operator, k, max_products=max_products, **options)
        left = None if max_products is None else max(1, max_products - k)
        pairs = solve(operator, k, max_products=left, **options)
        if not len(pairs.values) or not pairs.values.isfinite().all():
            return pairs
        tolerance, which = options.get("tolerance", TOLERANCE), options.get("which", "LM")
        return measured(pairs, operator, k, which, tolerance)

    return solved


def measured(pairs: Eigenpairs, operator: SymmetricOperator, k: int, which: str, tolerance: float) -> Eigenpairs:
    """Set the residuals of pairs to |A u - lambda u| for the reference A, and update all that depends on them.

    The error estimates are the residuals, because the values are not Rayleigh quotients of A. The bounds on other
    eigenvalues are widened by the largest residual.
    """
    residuals = residual_norms(products(reference(operator), pairs.vectors), pairs.values, pairs.vectors)
    off, complete = residuals.max().item(), pairs.complete
    if complete and len(pairs.values) < operator.shape[0]:
        ends = [*(pairs.complement or ()), *(pairs.beside or ())]
        complete = bool(ends) and are_outside(pairs.values, (min(ends) - off, max(ends) + off), which)
    allowed = allowed_residuals(pairs.values, pairs.values.abs().max().item(), tolerance, operator.dtype)
    return replace(
        pairs,
        residuals=residuals,
        error_estimates=residuals,
        products=pairs.products + len(pairs.values),
        converged=len(pairs.values) == k and bool((residuals <= allowed).all()),
        complete=complete,
    )
