"""Traces and diagonals from products of lower precision, whose noise is estimated and taken out by a few in ieee.

    tr A = tr A_low + E w'(A w - A_low w),    diag A = diag A_low + E w o (A w - A_low w),    w of random signs

A difference of two products of one vector varies by the noise alone, so a few are enough (two levels of Monte Carlo:
Giles 2008). The mean of these is added, so that the answer has no bias of first order, and its standard error goes into
the stated one. Where an operator has others for measurements alone (`only_measured`), the answer stays as it is, and
the mean goes into the error too.
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
ROUNDINGS = 1e4  # times epsilon: far above what sums of a product are rounded by
SHARE = 0.9  # of the error that is asked for, for the method; sqrt(1 - SHARE^2) is left for the differences


def with_correction(method: Callable[..., TraceEstimate], of_a_basis: float = 0.0) -> Callable[..., TraceEstimate]:
    """Wrap a trace estimator, so that what it finds by products of lower precision is corrected by some in ieee.

    Args:
        method: the estimator.
        of_a_basis: the share of its products that are of an orthonormal basis. Their noise, of products that are only
            measured, need not be that of random vectors: each counts with the largest that was seen.
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
        if only_measured(operator) and whole:  # a sum over a basis, each vector of which has an error of its own
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
            vectors = of_a_basis * found.products + (len(operator.basis) if isinstance(operator, Deflated) else 0)
            bias = abs(mean(samples)) + student(samples) + vectors * noise_of(operator, generator).norm
            value, error = found.value, math.hypot(found.standard_error, bias)
            met &= bool(options.get("probes")) or error <= rtol * abs(value)
        return TraceEstimate(value, error, counted.products, converged=met and math.isfinite(value))

    return estimate


def compared(found: TraceEstimate, counted: Counting, rtol: float, max_products: int | None) -> TraceEstimate:
    """A trace over a whole basis, with its distance from that by the reference as its error, plus the rounding.

    Samples would not do: where one vector crosses a kink of the loss, its difference alone may be off by more than
    all the others. The error is infinite where `max_products` leave too few.
    """
    if max_products is not None and counted.products + counted.shape[0] > max_products:
        return replace(found, standard_error=math.inf, products=counted.products, converged=False)
    exact = dense_trace(reference(counted)).value
    error = abs(exact - found.value) + torch.finfo(counted.dtype).eps * abs(exact)
    met = found.converged and error <= rtol * abs(found.value)
    return replace(found, standard_error=error, products=counted.products, converged=met)


def differences(operator: SymmetricOperator, count: int, generator: torch.Generator) -> list[float]:
    """Samples w'(A w - A_low w), as many as `count`."""
    return [dot(w, difference(operator, w)) for w in random_signs(operator, count, generator)]


def difference(operator: SymmetricOperator, vector: Tensor) -> Tensor:
    """The product in ieee, or of the reference, less that of lower precision."""
    return (reference(operator) @ vector) - (operator @ vector)


def student(samples: list[float]) -> float:
    """The standard error of the mean of few samples, larger by about what Student's t is than the normal quantile."""
    return standard_error(samples) * (1 + 1.5 / max(len(samples) - 1, 1))


def with_corrected_diagonal(method: Callable[..., DiagonalEstimate]) -> Callable[..., DiagonalEstimate]:
    """Wrap an estimator of the diagonal in the same way."""

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
    """The estimate with a correction (n,) of its diagonal, the mean of some whose sums are the `reads` (r, m)."""
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


def with_unsteadiness(method: Callable[..., TraceEstimate]) -> Callable[..., TraceEstimate]:
    """Wrap a trace estimator: its standard error holds the noise that products in ieee have all the same.

    A function that computes in float32, or that draws random numbers, has products that are off. Vectors of a basis
    show no spread that tells of it. A product Av is off by `unsteady` |Av|, which is |A|_F on average for a random v,
    and a trace by as much, if the errors of the entries of its diagonal add up. That takes one more product.
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
