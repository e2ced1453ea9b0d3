"""Hutchinson's estimator of the trace, by random signs: on the whole space, or on the complement of a known basis.

For a vector w of random signs, E w'Aw = tr A, with variance 2 (|A|_F^2 - sum of A_ii^2) (Girard 1989, Hutchinson 1989).
The samples are independent, so the standard error follows from their spread.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

from spectra.arguments import chosen_generator
from spectra.defaults import RTOL
from spectra.given_operator import as_operator
from spectra.krylov.blocks import columns, fitting_vectors
from spectra.krylov.limits import refuse_estimate
from spectra.krylov.results import Progress, TraceEstimate, exact_trace
from spectra.operator import Counting, Deflated, SymmetricOperator, checkpointed, random_signs
from spectra.vectors import row_dots, sum_pieces, without_autocast

FEWEST = 16  # samples; with fewer, the standard error itself is off by half in one run of twenty
EACH = 5  # vectors in memory for each sample on a complement, at the peak
PRODUCTS = 10_000  # budget, unless `max_products` or `probes` is given


@without_autocast()
def hutchinson(
    operator: Any,
    *,
    rtol: float = RTOL,
    probes: int | None = None,
    known: float = 0.0,
    seed: int = 0,
    generator: torch.Generator | None = None,
    max_products: int | None = None,
    progress: Progress | None = None,
) -> TraceEstimate:
    """Estimate the trace of A, with its standard error, by the mean of w'Aw over random sign vectors w (Hutchinson).

    Vectors are drawn until the standard error is below rtol |trace|; `probes` fixes their number instead. The source is
    Hutchinson (1990).

    Args:
        operator: the matrix A (n, n), in any form that `spectra.as_operator` takes.
        rtol: the standard error over |trace| at which the estimate has converged.
        probes: the exact number of random vectors, instead of as many as `rtol` needs.
        known: a number that is added to the trace, such as the sum of deflated eigenvalues.
        seed: the seed of the random vectors, used where no `generator` is given.
        generator: a torch.Generator on the CPU, used instead of the seed.
        max_products: the largest number of products.
        progress: a function that is called with products, trace and standard error.

    Returns:
        A `TraceEstimate` of tr A + known.

    Raises:
        ArgumentError: an argument is wrong; it is a SpectraError and a ValueError.
    """
    operator = as_operator(operator)
    refuse_estimate(rtol, probes, known, max_products)
    generator = chosen_generator(seed, generator)
    counted = Counting(operator)
    budget = budgeted(max_products, probes)
    return sample(counted, counted, known, rtol, probes, generator, budget, progress)


def budgeted(max_products: int | None, probes: int | None) -> float:
    """The budget of products: `max_products` if given, else infinite if `probes` is given, else PRODUCTS."""
    if max_products is not None:
        return max_products
    return PRODUCTS if probes is None else math.inf


def affordable(wanted: int, products: float, each: int = 1) -> int:
    """The number of vectors, at most `wanted`, that a budget of `products` allows at `each` products per vector."""
    return wanted if each * wanted <= products else int(products // each)


def deflated_hutchinson(
    counted: Counting,
    basis: Tensor,
    images: Tensor,
    known: float,
    rtol: float,
    probes: int | None,
    generator: torch.Generator,
    budget: float,
    progress: Progress | None,
) -> TraceEstimate:
    """Estimate `known`, plus the exact trace on a basis, plus the trace on its complement by Hutchinson's method.

    The `basis` (q, n) is orthonormal, and `images` (q, n) are its products.
    """
    inside = known + sum_pieces(lambda u, v: (u * v).sum(dtype=torch.float64), basis, images).item()
    if len(basis) == counted.shape[0]:
        return exact_trace(inside, counted.products)
    return sample(counted, Deflated(counted, basis), inside, rtol, probes, generator, budget, progress)


def sample(
    counted: Counting,
    operator: SymmetricOperator,
    known: float,
    rtol: float,
    probes: int | None,
    generator: torch.Generator,
    budget: float,
    progress: Progress | None,
) -> TraceEstimate:
    """Estimate `known` plus the mean of w'Aw, with its standard error.

    Samples are multiplied in blocks that are small compared with their number, so that few are drawn beyond need.
    """
    samples: list[float] = []
    value = error = math.nan
    widest = columns(fitting_vectors(operator), EACH)

    def draw(count: int) -> list[float]:
        signs = random_signs(operator, count, generator)
        return row_dots(signs, (operator @ signs.T).T).tolist()

    while counted.products < budget and (probes is None or len(samples) < probes):
        wanted = max(FEWEST - len(samples), len(samples) // 8, 1) if probes is None else probes - len(samples)
        count = affordable(min(wanted, widest), budget - counted.products)
        samples += checkpointed(operator, partial(draw, count), generator)
        value, error = known + mean(samples), standard_error(samples)
        if progress:
            progress(products=counted.products, trace=value, standard_error=error)
        if not math.isfinite(value) or (probes is None and len(samples) >= FEWEST and error <= rtol * abs(value)):
            break
    enough = len(samples) >= FEWEST and error <= rtol * abs(value)
    met = enough if probes is None else len(samples) == probes
    return TraceEstimate(value, error, counted.products, converged=bool(met and math.isfinite(error)))


def mean(samples: list[float]) -> float:
    """The mean of samples; nan if one is not finite."""
    return math.fsum(samples) / len(samples) if all(map(math.isfinite, samples)) else math.nan


def standard_error(samples: list[float]) -> float:
    """The standard error of the mean; infinite for fewer than two samples."""
    if len(samples) < 2:
        return math.inf
    centre = mean(samples)
    return math.sqrt(math.fsum((x - centre) ** 2 for x in samples) / (len(samples) - 1) / len(samples))
