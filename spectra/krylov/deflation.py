"""Deflation of eigenpairs saved by an earlier run: each is verified by one product, then projected out."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from spectra.krylov.blocks import products
from spectra.krylov.bounds import residual_norms
from spectra.krylov.placement import placement
from spectra.krylov.results import Eigenpairs, TraceEstimate, as_cpu_float64
from spectra.operator import Deflated, SymmetricOperator, find_on, in_ieee, only_measured, placed
from spectra.vectors import map_shards, orthonormal, row_dots

CONVERGED = 1e-3  # largest relative residual of a pair that is projected out; the error is of the order of its square


def known_pairs(
    operator: SymmetricOperator, values: Tensor, vectors: Tensor, residuals: Tensor, most: int | None = None
) -> Eigenpairs | None:
    """Verify the converged pairs among stored eigenpairs, by one product each; None if they are not this matrix's.

    The vectors are orthonormalised. The returned values are u'Au, and the returned residuals |Au - (u'Au) u|. A pair
    with a residual above the stored one belongs to another matrix.

    Args:
        operator: the matrix (n, n).
        values: stored eigenvalues (k,).
        vectors: stored eigenvectors (k, n).
        residuals: stored residuals (k,).
        most: the largest number of pairs to take.
    """
    values, residuals = as_cpu_float64(values), as_cpu_float64(residuals)
    good = (residuals <= CONVERGED * values.abs()).nonzero().flatten()
    good = good[values[good].abs().argsort(descending=True, stable=True)[:most].sort().values]
    values, residuals = values[good], residuals[good]
    precision = max(torch.finfo(kind).eps for kind in (vectors.dtype, operator.dtype))
    if not len(values) or vectors.shape[1] != operator.shape[0]:
        return None
    place = placement(operator, 2 * len(good)).device  # for them and their images
    basis, triangle = orthonormal(placed(vectors[good], operator, place))  # in this dtype, whatever they were stored in
    if not (triangle.diagonal().abs() - 1).abs().max() <= precision**0.5:
        return None
    signs = triangle.diagonal().sign()
    basis = map_shards(lambda rows: (rows.T * signs).T.contiguous(), basis)
    images = products(in_ieee(operator), basis)
    found = row_dots(images, basis).cpu()
    left = residual_norms(images, found, basis)
    allowed = residuals + precision ** (2 / 3) * values.abs().max()
    if only_measured(operator) and (noise := find_on("noise", operator)):
        allowed += 2 * noise.norm
    if not ((left <= allowed) & ((found - values).abs() <= allowed)).all():
        return None
    return Eigenpairs(found, basis, left, left, products=len(values), converged=True)


def with_deflation(method: Callable[..., TraceEstimate]) -> Callable[..., TraceEstimate]:
    """Wrap a trace estimator: deflate known eigenpairs, and add their eigenvalues to the estimate of the rest.

    For any orthonormal U and P = I - U'U, tr A = sum of u_i'A u_i + tr PAP; the known values are u_i'A u_i.
    """

    def estimate(operator: SymmetricOperator, known: Eigenpairs | None, **options) -> TraceEstimate:
        if known is None:
            return method(operator, **options)
        return method(Deflated(operator, known.vectors), known=known.values.sum().item(), **options)

    return estimate
