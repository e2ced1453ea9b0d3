"""Eigenpairs that an earlier run has left: taken on the evidence of one product, then projected out."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from spectra.krylov.results import Eigenpairs, TraceEstimate, as_cpu_float64
from spectra.operator import Deflated, SymmetricOperator, placed
from spectra.vectors import mapped, norm, orthonormal

CONVERGED = 1e-3  # relative residual of a pair that may be projected out; its square enters what is measured


def known_pairs(operator: SymmetricOperator, values: Tensor, vectors: Tensor, residuals: Tensor) -> Eigenpairs | None:
    """The converged ones of stored pairs, values (k,) and vectors (k, n), or None if they are not this matrix's.

    One product tells: A times the sum of the vectors lies within the sum of the residuals of what the pairs predict.
    """
    values, residuals = as_cpu_float64(values), as_cpu_float64(residuals)
    good = residuals <= CONVERGED * values.abs()
    values, residuals = values[good], residuals[good]
    precision = max(torch.finfo(kind).eps for kind in (vectors.dtype, operator.dtype))
    if not len(values) or vectors.shape[1] != operator.shape[0]:
        return None
    basis, triangle = orthonormal(placed(vectors[good], operator))  # in this dtype, whatever they were stored in
    if not (triangle.diagonal().abs() - 1).abs().max() <= precision**0.5:
        return None
    signs = triangle.diagonal().sign()
    basis = mapped(lambda rows: (rows.T * signs).T.contiguous(), basis)
    ones = torch.ones(len(values), dtype=operator.dtype, device=operator.device)
    image = operator @ mapped(ones.matmul, basis)
    departure = norm(image - mapped(values.to(ones).matmul, basis))
    rounding = precision ** (2 / 3) * values.abs().sum().item()
    if not departure <= residuals.sum().item() + rounding:
        return None
    return Eigenpairs(values, basis, residuals, residuals, products=1, converged=True)


def trace_beside(method: Callable[..., TraceEstimate]) -> Callable[..., TraceEstimate]:
    """The method on what known pairs leave, plus their eigenvalues.

    For P = I - U'U, tr A = sum of u_i'A u_i + tr PAP, eigenvectors or not; Ritz values are u_i'A u_i.
    """

    def estimate(operator: SymmetricOperator, known: Eigenpairs | None, **options) -> TraceEstimate:
        if known is None:
            return method(operator, **options)
        return method(Deflated(operator, known.vectors), known=known.values.sum().item(), **options)

    return estimate
