"""Hutch++: the trace is exact on the range of a sketch, and random signs estimate the rest.

Hutch++ (Meyer, Musco, Musco, Woodruff 2021) computes the trace exactly on the range Q of a sketch A S, and estimates
only the rest, tr (I - QQ')A(I - QQ'), by `spectra.krylov.hutchinson`, with its standard error.
"""

from __future__ import annotations

from typing import Any

import torch

from spectra.arguments import chosen_generator
from spectra.defaults import RTOL
from spectra.given_operator import as_operator
from spectra.krylov.blocks import products
from spectra.krylov.hutchinson import FEWEST, affordable, budgeted, deflated_hutchinson, sample
from spectra.krylov.limits import refuse_estimate
from spectra.krylov.placement import placement
from spectra.krylov.results import Progress, TraceEstimate
from spectra.operator import Counting, random_signs
from spectra.vectors import orthonormal, without_autocast

ARRAYS = 4  # vectors in memory for each vector of the sketch


@without_autocast()
def hutch_plus_plus(
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
    """Estimate the trace of A by Hutch++, with its standard error (Meyer, Musco, Musco, Woodruff 2021).

    The trace is exact on the range of a sketch of 16 vectors, or half of `probes`; the other random vectors estimate
    it on the orthogonal complement.

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
    sketch = affordable(min(n, FEWEST if probes is None else probes // 2), budget, 3)
    if not sketch:
        return sample(counted, counted, known, rtol, probes, generator, budget, progress)
    place = placement(operator, ARRAYS * sketch // 2).device  # on the device, they may take two quarters of its memory
    signs = random_signs(operator, sketch, generator, place)
    if place.type == operator.device.type:
        basis = orthonormal((counted @ signs.T).T)[0].contiguous()
        images = (counted @ basis.T).T
    else:
        basis = orthonormal(products(counted, signs))[0].contiguous()
        images = products(counted, basis)
    left = probes and probes - sketch
    return deflated_hutchinson(counted, basis, images, known, rtol, left, generator, budget, progress)
