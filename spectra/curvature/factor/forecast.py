"""Predict the time and memory of a factor's Gram matrix and trace, from a few of its rows."""

from __future__ import annotations

import time
from dataclasses import replace

import torch

from spectra.curvature.factor.gram import Factor
from spectra.curvature.factor.inner_products import COLUMNS, TILE, add_gram
from spectra.curvature.factor.part import first_of
from spectra.devices import device_of_vectors

EXAMPLES = 256  # in a sample; fewer would not show what a batch saves
FEW = 8  # in a sample where rows are computed one by one


def gram_seconds(factor: Factor) -> float:
    """Predict the seconds that `gram` takes. Raises SpectraError where `gram` would."""
    start = time.perf_counter()
    rows = factor.rows  # makes S, all of it
    roots = time.perf_counter() - start
    few, share = sample(factor)
    made, each = few.rows, inner_product_seconds(factor)
    start = time.perf_counter()
    few.gram()
    making = time.perf_counter() - start - made**2 * each
    return roots + max(making, 0) / share + rows**2 * each


def inner_product_seconds(factor: Factor) -> float:
    """Measure the seconds of an inner product of two rows, on many of them."""
    width = min(factor.columns, COLUMNS)
    vectors = torch.ones(2 * TILE, width, dtype=factor.problem.dtype, device=factor.problem.device)
    total = torch.zeros(len(vectors), len(vectors), dtype=torch.float64, device=device_of_vectors(vectors.device))
    start = time.perf_counter()
    add_gram(total, vectors)
    total[0, 0].item()  # waits for the device
    return (time.perf_counter() - start) / total.numel() * factor.columns / max(width, 1)


def gram_bytes(factor: Factor) -> int:
    """Predict the peak bytes of `gram` besides S: those of F F', of a copy for LAPACK, and of making F."""
    making = min(factor.memory, factor.rows * factor.columns * factor.problem.dtype.itemsize)
    return 2 * torch.float64.itemsize * factor.rows**2 + making


def trace_seconds(factor: Factor) -> float:
    """Predict the seconds that `trace` takes. Raises SpectraError where `trace` would."""
    few, share = sample(factor)
    start = time.perf_counter()
    few.trace()
    return (time.perf_counter() - start) / share


def sample(factor: Factor) -> tuple[Factor, float]:
    """A factor of a few examples, or of one batch if rows belong to batches, and their share of all the data."""
    problem, batch = factor.problem, factor.problem.batches[0]
    few = batch
    if not factor.definition.depends_on_batches:
        few = first_of(batch, FEW if factor.one_by_one else EXAMPLES)
    share = len(few) / sum(map(len, problem.batches))
    return Factor(replace(problem, batches=[few]), factor.name, factor.memory), share
