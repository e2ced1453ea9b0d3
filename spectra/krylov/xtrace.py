"""XTrace: the exchangeable trace estimator of Epperly, Tropp and Webber (2024).

For test vectors W, with Q an orthonormal basis of A W and Q_i one of A W without column i,

    t_i = tr(Q_i'A Q_i) + c_i w_i' P_i A P_i w_i,   P_i = I - Q_i Q_i',   c_i = (n - q + 1) / |P_i w_i|^2,

is unbiased (w_i is independent of Q_i), and the mean over i is the estimate. All Q_i come from one QR factorisation
A W = Q R: Q_i Q_i' = Q (I - s_i s_i') Q' with s_i the normalised column i of R^-T.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch

from spectra.arguments import chosen_generator
from spectra.defaults import RTOL
from spectra.given_operator import as_operator
from spectra.krylov.dense import dense_trace
from spectra.krylov.hutchinson import FEWEST, affordable, budgeted, deflated_hutchinson, sample
from spectra.krylov.jackknife import jackknife_error
from spectra.krylov.limits import refuse_estimate
from spectra.krylov.placement import fits, placement
from spectra.krylov.results import Progress, TraceEstimate, as_cpu_float64
from spectra.krylov.sketch import Coordinates, Sketch
from spectra.operator import Counting, mesh_of
from spectra.vectors import true_on_all_processes, without_autocast

LARGEST = 2**31  # bytes of the four arrays (vectors, n); a sketch of this size is deflated, and Hutchinson continues
GROUPS = 32  # of the jackknife
ARRAYS = 5  # vectors in memory for each test vector: four arrays, and room for their next rows
SMALL = 4 * FEWEST  # rows up to which the trace is exact, at no more than twice the cost of the first stage


@without_autocast()
def xtrace(
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
    """Estimate the trace of A by XTrace, with its standard error (Epperly, Tropp, Webber 2024).

    The sketch begins with 16 vectors, of two products each, and grows by half until the standard error is below
    rtol |trace|. The trace is computed exactly, from all n diagonal entries, where that takes no more products.
    Where the sketch no longer fits memory (the host's, if the device's is too little), the basis found so far is
    deflated and Hutchinson's estimator takes the rest; where not even the first sketch fits, Hutchinson's estimator
    alone is used.

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
    n = operator.shape[0]
    counted = Counting(operator)
    budget = budgeted(max_products, probes)
    largest = max(FEWEST, LARGEST // (4 * n * torch.finfo(operator.dtype).bits // 8))
    place = placement(operator, ARRAYS * min(probes or FEWEST, n) // 2)  # they may take half the device
    if not (probes or true_on_all_processes(mesh_of(operator), fits(operator, place, ARRAYS * min(FEWEST, n)))):
        return sample(counted, counted, known, rtol, None, generator, budget, progress)
    sketch = Sketch(counted, place.device)
    wanted = probes or FEWEST
    value = error = math.nan
    while True:
        left = budget - counted.products
        predicted = predicted_products(counted.products, error, rtol * abs(value), n)
        cost = 2 * wanted if probes else max(2 * wanted, SMALL, predicted)
        if n <= min(left, cost):
            return replace(dense_trace(counted, known=known, progress=progress), products=counted.products)
        held = len(sketch.tests)
        count = min(held + affordable(wanted - held, left, 2), n - 1)
        if count == len(sketch.tests) == 0 and left >= 1:  # enough for a sample, but not for a sketch
            return sample(counted, counted, known, rtol, None, generator, budget, progress)
        if count == len(sketch.tests):
            return TraceEstimate(value, error, counted.products, converged=False)
        if not probes and wanted > largest:
            return deflated_hutchinson(
                counted, sketch.basis, sketch.basis_images, known, rtol, None, generator, budget, progress
            )
        sketch.grow(count, generator)
        value, error = estimate(sketch)
        value += known
        if progress:
            progress(products=counted.products, trace=value, standard_error=error)
        met = count >= FEWEST and error <= rtol * abs(value)
        if met or count == probes or not math.isfinite(value):
            return TraceEstimate(value, error, counted.products, converged=math.isfinite(error))
        wanted = count + math.ceil(count / 2)


def predicted_products(products: int, error: float, wanted: float, n: int) -> float:
    """Predict the products in all, if the error falls with the square root of their number.

    The prediction is zero before n / 2 products, because the first stages say too little about a decaying spectrum.
    """
    if 2 * products < n:
        return 0
    return products * (error / wanted) ** 2 if wanted > 0 else math.inf


def estimate(sketch: Sketch) -> tuple[float, float]:
    """The mean of t_i, and its standard error by the jackknife over groups of test vectors.

    The t_i share one Q, so their own spread is up to three times too small. The jackknife accounts for this, and is
    biased upwards (Efron, Stein 1981). All is computed in coordinates along Q, without products.
    """
    q, n = sketch.tests.shape
    coordinates = sketch.coordinates()
    if not torch.isfinite(coordinates.projected).all():
        return math.nan, math.nan
    if q == 1:
        return mean(coordinates, n), math.inf
    groups = min(q, GROUPS)
    partial = as_cpu_float64([mean(coordinates.without(range(g, q, groups)), n) for g in range(groups)])
    rounding = torch.finfo(sketch.operator.dtype).eps * coordinates.projected.diagonal().abs().sum()
    return mean(coordinates, n), torch.hypot(jackknife_error(partial), rounding).item()


def mean(c: Coordinates, n: int) -> float:
    """The mean of the t_i over n rows."""
    alone, images = c.alone()
    kept, kept_images = c.left(alone, images)
    rest = c.quadratic - 2 * (kept * c.images_along).sum(dim=0) + (kept * kept_images).sum(dim=0)
    length = n - kept.square().sum(dim=0)  # |P_i w_i|^2, since |w_i|^2 = n
    inside = torch.trace(c.projected) - (alone * images).sum(dim=0)
    rank = len(alone) - c.removed.shape[1] - alone.any(dim=0).double()
    return (inside + (n - rank) * rest / length).mean().item()
