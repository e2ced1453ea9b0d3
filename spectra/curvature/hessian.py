"""The Hessian of the mean loss: the derivative of its gradient, reverse over reverse (Pearlmutter 1994)."""

from __future__ import annotations

from torch import Tensor

from spectra.curvature.differentiation import Apply, gradient
from spectra.curvature.problem import Batch, Problem


def linearise(problem: Problem, batch: Batch) -> Apply:
    """The batch's part of the Hessian, as a function of a vector (n,)."""
    rows = problem.loss.rows(problem.output(batch), batch.targets)
    loss = problem.loss.total(rows, batch.targets) / problem.weight
    slope = problem.vector(gradient(loss, problem.leaves, create_graph=True))

    def apply(vector: Tensor) -> Tensor:
        return problem.vector(gradient(slope, problem.leaves, vector))

    return apply
