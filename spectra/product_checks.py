"""Check that products are repeatable and symmetric, and measure the noise of products in lower precision."""

from __future__ import annotations

import math
from typing import Any

import torch

from spectra.arguments import chosen_generator
from spectra.errors import SpectraError
from spectra.given_operator import as_operator
from spectra.operator import (
    Noise,
    SymmetricOperator,
    checkpointed,
    find_on,
    in_ieee,
    only_measured,
    random_vectors,
    reference,
)
from spectra.vectors import WITHIN, all_finite, distance, dot, norm, squares_overflow, without_autocast

CHECKS = 3  # products that `check_operator` takes, and one more where they differ by more than their precision
SINGLE = torch.finfo(torch.float32).eps ** 0.5  # the largest relative error that may be rounding in float32
ROUNDINGS = 100  # the asymmetry allowed, in units of the deviation from linearity
DIFFERENCES = 10  # likewise for finite differences; `measure_noise` refuses those with much noise


@without_autocast()
def check_operator(operator: Any, generator: torch.Generator | None = None, *, seed: int = 0) -> float:
    """Check by three products that a matrix is symmetric and repeatable, and return the relative noise of a product.

    The noise is max(|Av - Av again|, |u'Av - v'Au|) over |Av|, for random vectors u and v. For random u the second term
    is as large as |(A - A')v|, whatever the dimension. A matrix of lower precision is checked by products in full
    precision, since its own are asymmetric by their noise.

    Args:
        operator: the matrix (n, n), in any form that `spectra.as_operator` takes.
        generator: a torch.Generator on the CPU, from which u and v are drawn.
        seed: the seed, used where no `generator` is given.

    Returns:
        The noise, relative to |Av|; nan where a product is not finite.

    Raises:
        SpectraError: the matrix changes from product to product, or is not symmetric. No method gives a meaningful
            number then.
    """
    generator, operator = chosen_generator(seed, generator), in_ieee(as_operator(operator, symmetric=False))
    return checkpointed(operator, lambda: _noise(operator, generator), generator)


NOISE_PRODUCTS = 6  # products that `measure_noise` takes, half of them in ieee
LARGEST_NOISE = 0.5  # relative; products with more are refused


def noise_of(operator: SymmetricOperator, generator: torch.Generator) -> Noise:
    """The noise of the products: as the operator or one that it wraps has it, else measured now."""
    noise = find_on("noise", operator)
    return measure_noise(operator, generator) if noise is None else noise


@without_autocast()
def measure_noise(operator: SymmetricOperator, generator: torch.Generator) -> Noise:
    """Measure the error of products in lower precision, by three products that are made in ieee too.

    The first vector is random, each other one is the product before: they lean towards the largest eigenvalues, so that
    the norm of the noise can be compared with |A|. The measurement is one checkpointed step of a run.

    Raises:
        SpectraError: products are off by more than half of their size.
    """
    exact = reference(operator)
    if exact is operator:
        return Noise()
    noise = Noise(*checkpointed(operator, lambda: _differences(operator, exact, generator), generator))
    if noise.relative > LARGEST_NOISE:
        refusal = find_on("too_noisy", operator) or "`precision`: products are off by {}; use a higher one, or ieee"
        raise SpectraError(refusal.format(f"{100 * noise.relative:.0f} % of their size"))
    return noise


def _differences(
    operator: SymmetricOperator, exact: SymmetricOperator, generator: torch.Generator
) -> tuple[float, ...]:
    vector = random_vectors(operator, 1, generator)[0]
    relative = absolute = random = 0.0
    for i in range(NOISE_PRODUCTS // 2):
        image = exact @ vector
        error, size, length = norm((operator @ vector) - image), norm(image), norm(vector)
        if not 0 < size < math.inf:
            return (math.inf, math.inf, math.inf) if error > 0 else (relative, absolute, random)
        if not math.isfinite(error):  # an overflow in the lower precision alone
            return math.inf, math.inf, math.inf
        relative, absolute = max(relative, error / size), max(absolute, error / length)
        random = random if i else relative
        vector = image / size
    return relative, absolute, random


def _noise(operator: SymmetricOperator, generator: torch.Generator) -> float:
    u, v = random_vectors(operator, 2, generator)
    first = operator @ v
    change = distance(first, operator @ v)
    other = operator @ u
    if not (all_finite(first) and all_finite(other)):
        return float("nan")
    size = max(norm(first), norm(other))
    if squares_overflow(first) or squares_overflow(other):
        subject = find_on("subject", operator) or "the matrix"
        raise SpectraError(f"{subject} has products with a norm that is not {WITHIN}; scale the loss or the matrix")
    if size == 0:
        return 0.0
    repeat = change / size
    asymmetry = abs(dot(u, first) - dot(v, other)) / size
    # Rounding grows with the number of terms summed; the square root of epsilon is far above it
    # (3e-4 in float32) and far below what dropout, batch statistics or shuffling change.
    allowed = torch.finfo(operator.dtype).eps ** 0.5
    most, times = (math.inf, DIFFERENCES) if only_measured(operator) else (SINGLE, ROUNDINGS)
    if allowed < max(repeat, asymmetry) < most:
        # A model that computes parts in float32, as norms of language models do, has products of that precision; so do
        # finite differences. Such products deviate from linearity in the vector about as much as from symmetry.
        curved = norm(operator @ (u + v) - first - other) / size
        allowed = max(allowed, min(most, times * curved))
    if max(repeat, asymmetry) > allowed and (suspect := suspect_of(operator)):
        what = "changes from product to product" if repeat > allowed else "is not symmetric"
        subject = find_on("subject", operator) or "the matrix"
        raise SpectraError(f"{subject} {what} (by {max(repeat, asymmetry):.1e} of its size): {suspect}")
    if repeat > allowed:
        raise SpectraError(
            f"the matrix changes from product to product (by {repeat:.1e} of its size): possible causes are dropout, "
            "BatchNorm on batch statistics, or random numbers drawn in forward; make it deterministic, as "
            "model.eval() does"
        )
    if asymmetry > allowed:
        cause = find_on("asymmetry", operator) or (
            "possible causes are a custom autograd function with a wrong derivative, or a hook that changes gradients; "
            "check such layers, or try `dtype` float64"
        )
        raise SpectraError(f"the matrix is not symmetric (by {asymmetry:.1e} of its size): {cause}")
    return max(repeat, asymmetry)


def suspect_of(operator: SymmetricOperator) -> str | None:
    """The likely cause of bad products and the way out, by the method `suspect` of the operator or one that it wraps.

    It is None where they have no such method, or it finds no cause.
    """
    suspect = find_on("suspect", operator)
    return suspect() if suspect else None
