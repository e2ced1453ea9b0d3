"""The Hessian of the mean loss: the derivative of its gradient, reverse over reverse (Pearlmutter 1994)."""

from __future__ import annotations

from torch import Tensor

from spectra.curvature.engine.differentiation import Apply, combined_gradient, gradient
from spectra.problem.problem import Batch, Problem


def linearise(problem: Problem, batch: Batch) -> Apply:
    """The batch's part of the Hessian, as a function of a vector (n,)."""
    rows = problem.loss.rows(problem.output(batch), batch.targets)
    loss = problem.loss.total(rows, batch.targets) / problem.weight
    slopes = gradient(loss, problem.leaves, create_graph=True)
    slope = problem.vector(slopes)

    def apply(vector: Tensor, leaves: slice | None = None) -> Tensor:
        if leaves is None:
            return problem.vector(gradient(slope, problem.leaves, vector))
        own = problem.leaves[leaves]
        return problem.vector(combined_gradient(slopes[leaves], own, problem.tensors(vector, leaves)))

    return apply
