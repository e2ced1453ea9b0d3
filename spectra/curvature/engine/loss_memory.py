"""Measure how the memory of a user's own loss grows with the batch.

It grows with the square for a loss of pairs, and with the cube for one of triplets. It is measured in output space at a
few sizes, each twice the one before, and continued as a polynomial.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from spectra.curvature.engine.differentiation import gradient
from spectra.curvature.engine.meter import Meter
from spectra.errors import SpectraError
from spectra.memory import out_of_memory
from spectra.problem.batch import Batch
from spectra.problem.losses import CustomLoss
from spectra.problem.outputs import tensors_of
from spectra.problem.problem import Problem

SIZES = (2, 4, 8, 16, 32)  # examples
ROUNDING = 0.05  # of the measured bytes: less may be the rounding of sizes to whole numbers


@dataclass(frozen=True)
class LossMemoryGrowth:
    """Bytes beyond a line, for any number of examples: Newton's polynomial through the measurements."""

    sizes: tuple[int, ...] = ()
    differences: tuple[float, ...] = ()  # divided differences of order 0, 1, ...

    def __call__(self, examples: float) -> float:
        total, factor = 0.0, 1.0
        for size, difference in zip(self.sizes, self.differences, strict=True):
            total, factor = total + difference * factor, factor * (examples - size)
        return max(0.0, total)


def loss_growth(problem: Problem, batch: Batch) -> LossMemoryGrowth:
    """The bytes that the second derivative of the loss takes beyond a line, as a function of the number of examples.

    It is zero for built-in losses, and for a user's loss that accepts whole batches only, which is not measured.
    """
    sizes = [size for size in SIZES if size <= len(batch)]
    if not isinstance(problem.loss, CustomLoss) or len(sizes) < 3:
        return LossMemoryGrowth()
    try:
        parts = [batch.part(slice(size)) for size in sizes]
        with torch.no_grad():
            rows = [problem.rows(part) for part in parts]
        bytes_taken = [loss_peak(problem, *pair) for pair in zip(rows, parts, strict=True)]
    except (RuntimeError, TypeError, SpectraError) as error:
        if out_of_memory(error):
            raise
        return LossMemoryGrowth()
    return beyond_line(sizes, bytes_taken)


def loss_peak(problem: Problem, rows: Tensor, batch: Batch) -> int:
    """The largest number of bytes that a product with the loss's second derivative takes, given a batch's rows."""
    with torch.enable_grad(), Meter([rows, *tensors_of(batch.targets)]) as meter:
        leaf = rows.detach().requires_grad_()
        slope = gradient(problem.total(leaf, batch), (leaf,), create_graph=True)[0]
        gradient(slope, (leaf,), torch.ones_like(leaf))
    return meter.peak


def beyond_line(sizes: Sequence[int], measured: Sequence[int]) -> LossMemoryGrowth:
    """The growth beyond the line through the first two sizes: a cubic that the last size confirms, or a square."""
    each = (measured[1] - measured[0]) / (sizes[1] - sizes[0])
    beyond = [taken - measured[0] - each * (size - sizes[0]) for size, taken in zip(sizes, measured, strict=True)]
    cubic = newton(sizes[:4], beyond[:4])
    if len(sizes) > 4 and abs(cubic(sizes[-1]) - beyond[-1]) <= 0.1 * beyond[-1]:
        return cubic
    if beyond[-1] <= ROUNDING * measured[-1]:
        return LossMemoryGrowth()
    return newton(sizes[-3:], beyond[-3:])


def newton(sizes: Sequence[int], values: Sequence[float]) -> LossMemoryGrowth:
    """Newton's polynomial through the given values."""
    row, differences = list(values), []
    for order in range(1, len(sizes) + 1):
        differences.append(row[0])
        row = [(b - a) / (sizes[i + order] - sizes[i]) for i, (a, b) in enumerate(pairwise(row))]
    return LossMemoryGrowth(tuple(sizes), tuple(differences))
