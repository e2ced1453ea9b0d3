"""Traces and diagonals from products of lower precision, corrected by a few products in full precision.

    tr A = tr A_low + E w'(A w - A_low w),    diag A = diag A_low + E w o (A w - A_low w),    w of random signs

The difference of the two products of one vector varies with the noise alone, so a few differences are enough (two-level
Monte Carlo: Giles 2008). Their mean is added to the estimate, which removes its bias of first order, and their standard
error is added to its standard error. If an operator has more precise products for measurements only (`only_measured`),
the estimate is not changed, and the mean is added to the standard error too.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from spectra.defaults import RTOL
from spectra.krylov.dense import dense_trace
from spectra.krylov.diagonal import DiagonalEstimate, Enough, Sums
from spectra.krylov.hutchinson import mean, standard_error
from spectra.krylov.jackknife import jackknife_error
from spectra.krylov.results import TraceEstimate
from spectra.operator import (
    Counting,
    Deflated,
    SymmetricOperator,
    checkpointed,
    find_on,
    in_ieee,
    only_measured,
    random_signs,
    random_vectors,
    reference,
)
from spectra.product_checks import noise_of
from spectra.vectors import dot, map_shards, norm

FEWEST, MOST = 8, 64  # differences
ROUNDINGS = 1e4  # times eps: far above the rounding of the sums in a product
SHARE = 0.9  # of the requested error is left to the method, and sqrt(1 - SHARE^2) to the differences


def with_correction(method: Callable[..., TraceEstimate], basis_share: float = 0.0) -> Callable[..., TraceEstimate]:
    """Wrap a trace estimator: correct its estimate from products of lower precision by a few in full precision.

    Args:
        method: the estimator.
        basis_share: the share of its products that multiply an orthonormal basis. Their noise may differ from that of
            random vectors; if the noise is only measured, each of these counts with the largest noise seen.
    """

    def estimate(
        operator: SymmetricOperator,
        *,
        rtol: float,
        generator: torch.Generator,
        max_products: int | None = None,
        **options,
    ) -> TraceEstimate:
        if reference(operator) is operator:
            return method(operator, rtol=rtol, generator=generator, max_products=max_products, **options)
        counted = Counting(operator)
        left = None if max_products is None else max(1, max_products - 2 * FEWEST)
        found = method(counted, rtol=SHARE * rtol, generator=generator, max_products=left, **options)

        whole = found.standard_error == 0 and found.products >= counted.shape[0]
        if only_measured(operator) and whole:  # a sum over a basis, in which every vector has its own error
            return compared(found, counted, rtol, max_products)

        def enough(samples: list[float]) -> bool:
            wanted = max(SHARE * rtol * abs(found.value), found.standard_error)
            return student(samples) <= wanted * (1 / SHARE**2 - 1) ** 0.5

        samples: list[float] = []
        limit = math.inf if max_products is None else max_products
        while len(samples) < MOST and counted.products + 2 <= limit and math.isfinite(found.value):
            samples += checkpointed(counted, partial(differences, counted, 1, generator), generator)
            if len(samples) >= FEWEST and enough(samples):
                break
        if not samples:
            return replace(found, standard_error=math.inf, products=counted.products, converged=False)
        value, error = found.value + mean(samples), math.hypot(found.standard_error, student(samples))
        met = found.converged and len(samples) >= min(FEWEST, MOST) and (bool(options.get("probes")) or enough(samples))
        if only_measured(operator):
            vectors = basis_share * found.products + (len(operator.basis) if isinstance(operator, Deflated) else 0)
            bias = abs(mean(samples)) + student(samples) + vectors * noise_of(operator, generator).norm
            value, error = found.value, math.hypot(found.standard_error, bias)
            met &= bool(options.get("probes")) or error <= rtol * abs(value)
        return TraceEstimate(value, error, counted.products, converged=met and math.isfinite(value))

    return estimate


def compared(found: TraceEstimate, counted: Counting, rtol: float, max_products: int | None) -> TraceEstimate:
    """Set the error of a trace over a whole basis to its distance from the trace of the reference, plus rounding.

    Random samples are not enough: a single vector that crosses a kink of the loss may have a larger error than all
    others together. The error is infinite if `max_products` leaves fewer than n products.
    """
    if max_products is not None and counted.products + counted.shape[0] > max_products:
        return replace(found, standard_error=math.inf, products=counted.products, converged=False)
    exact = dense_trace(reference(counted)).value
    error = abs(exact - found.value) + torch.finfo(counted.dtype).eps * abs(exact)
    met = found.converged and error <= rtol * abs(found.value)
    return replace(found, standard_error=error, products=counted.products, converged=met)


def differences(operator: SymmetricOperator, count: int, generator: torch.Generator) -> list[float]:
    """Draw `count` samples of w'(A w - A_low w)."""
    return [dot(w, difference(operator, w)) for w in random_signs(operator, count, generator)]


def difference(operator: SymmetricOperator, vector: Tensor) -> Tensor:
    """The product in full precision, or of the reference, minus the product of lower precision."""
    return (reference(operator) @ vector) - (operator @ vector)


def student(samples: list[float]) -> float:
    """The standard error of the mean of few samples, times about the ratio of Student's t to the normal quantile."""
    return standard_error(samples) * (1 + 1.5 / max(len(samples) - 1, 1))


def with_corrected_diagonal(method: Callable[..., DiagonalEstimate]) -> Callable[..., DiagonalEstimate]:
    """Wrap an estimator of the diagonal: correct its estimate as `with_correction` corrects a trace."""

    def estimate(
        operator: SymmetricOperator,
        sums: Sums,
        enough: Enough,
        *,
        generator: torch.Generator,
        max_products: int | None = None,
        **options,
    ) -> DiagonalEstimate:
        if in_ieee(operator) is operator:
            return method(operator, sums, enough, generator=generator, max_products=max_products, **options)
        counted = Counting(operator)

        def nearly(values: Tensor, errors: Tensor) -> bool:
            return enough(values, errors / SHARE)

        left = None if max_products is None else max(1, max_products - 2 * FEWEST)
        found = method(counted, sums, nearly, generator=generator, max_products=left, **options)
        total: Tensor | None = None
        reads: list[Tensor] = []
        limit = math.inf if max_products is None else max_products
        corrected = found
        while len(reads) < MOST and (counted.products + 2 <= limit or not reads) and found.finite:
            (signs,) = random_signs(operator, 1, generator)
            each = map_shards(lambda w, image: w * image, signs, difference(counted, signs))
            total = each if total is None else total + each
            reads.append(sums(each))
            if len(reads) >= FEWEST:
                corrected = added(found, total / len(reads), torch.stack(reads))
                if enough(corrected.sums, corrected.sum_errors):
                    break
        met = corrected is not found and found.converged and enough(corrected.sums, corrected.sum_errors)
        return replace(corrected, products=counted.products, converged=met)

    return estimate


def added(found: DiagonalEstimate, correction: Tensor, reads: Tensor) -> DiagonalEstimate:
    """Add a mean `correction` (n,) to an estimate; `reads` (r, m) are the sums over each of the r samples of it."""
    few = 1 + 1.5 / (len(reads) - 1)
    shift = reads.mean(dim=0)
    without = (reads.sum(dim=0) - reads) / (len(reads) - 1)
    replicates = found.replicates if len(found.replicates) else (found.sums + without)
    if len(found.replicates):
        replicates = replicates + shift
    return replace(
        found,
        values=found.values + correction,
        sums=found.sums + shift,
        replicates=replicates,
        rounding=torch.hypot(found.rounding, few * jackknife_error(without)),
    )


def with_rounding_noise(method: Callable[..., TraceEstimate]) -> Callable[..., TraceEstimate]:
    """Wrap a trace estimator: add the noise that products have even in full precision to its standard error.

    The products of a function that computes in float32, or that draws random numbers, are noisy, and products with the
    vectors of a basis do not show it. The error of a product Av is `unsteady` |Av|, where |Av| is about |A|_F for a
    random v. The trace has an error of that size if the errors of the diagonal entries add up. Measuring |Av| takes one
    more product.
    """

    def estimate(
        operator: SymmetricOperator, *, generator: torch.Generator, max_products: int | None = None, **options
    ) -> TraceEstimate:
        eps = torch.finfo(operator.dtype).eps
        unsteady, limit = find_on("unsteady", operator), min(ROUNDINGS * eps, eps**0.5)
        if unsteady is None or not unsteady > limit or find_on("noise", operator):
            return method(operator, generator=generator, max_products=max_products, **options)
        most = None if max_products is None else max(max_products - 1, 0)
        found = method(operator, generator=generator, max_products=most, **options)
        size = norm(operator @ random_vectors(operator, 1, generator)[0])
        error = math.hypot(found.standard_error, unsteady * size)
        enough = options.get("probes") is not None or error <= options.get("rtol", RTOL) * abs(found.value)
        return replace(found, standard_error=error, products=found.products + 1, converged=found.converged and enough)

    return estimate
