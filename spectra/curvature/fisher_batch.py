"""Outer products of the gradients of whole batches: the sum over batches of (|b| / N) G G', G a batch's mean gradient.

It is often mistaken for the empirical Fisher matrix. It depends on the split: about g g' + covariance / |b|.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spectra.curvature.definition import Definition, loss_gradient
from spectra.curvature.engine.differentiation import Apply
from spectra.curvature.engine.gradients import batch_gradient, outer_product
from spectra.problem.batch import Batch
from spectra.problem.problem import Problem


class BatchFisher(Definition):
    """The sum of outer products of the gradients of whole batches."""

    derivatives = ("gradient",)
    loss_power = 2
    depends_on_batches = True

    def middle(self, problem: Problem, batch: Batch, rows: Tensor) -> Apply:
        """M = s s', with s the derivative of the scaled loss by all rows of the batch, which M couples."""
        slope = scale(problem, batch) * loss_gradient(problem, batch, rows)[1]
        return lambda vectors: slope * (slope * vectors).sum()

    def linearise(self, problem: Problem, batch: Batch) -> Apply:
        """The batch's term g g', from its gradient g: one backward pass, after which products are free."""
        count = problem.examples_of(batch)
        if not count:
            return lambda vector, leaves=None: torch.zeros_like(vector)
        return outer_product(problem, batch_gradient(problem, batch), problem.examples / (count * problem.weight**2))

    def root(self, problem: Problem, batch: Batch, rows: Tensor) -> Tensor:
        """One row for all of the batch."""
        return scale(problem, batch) * loss_gradient(problem, batch, rows)[1].reshape(1, 1, 1, -1)

    def most_root_rows(self, problem: Problem, rows: Tensor) -> int:
        """One row for the batch."""
        return 1


def scale(problem: Problem, batch: Batch) -> float:
    """The factor of the derivative of the batch's summed loss with which its square is the batch's term."""
    count = problem.examples_of(batch)
    return (problem.examples / count) ** 0.5 / problem.weight if count else 0.0
