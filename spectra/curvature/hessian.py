"""The Hessian of the mean loss: the derivative of its gradient, reverse over reverse (Pearlmutter 1994).

It is the GGN plus the model's own curvature, the sum over rows of (dl / df) d2f / dtheta2, so it is not of the form
J'M J.
"""

from __future__ import annotations

from torch import Tensor

from spectra.curvature.definition import Definition, loss_hessian
from spectra.curvature.engine.differentiation import Apply, combined_gradient, gradient
from spectra.problem.batch import Batch
from spectra.problem.head import loss_of
from spectra.problem.problem import Problem


class Hessian(Definition):
    """The second derivative of the mean loss."""

    derivatives = ("hessian",)
    has_model_curvature = True

    def middle(self, problem: Problem, batch: Batch, rows: Tensor) -> Apply:
        """M u of the GGN, the part of the Hessian that is of the form J'M J."""
        return loss_hessian(problem, batch, rows)

    def linearise(self, problem: Problem, batch: Batch) -> Apply:
        """The batch's term of the Hessian, as the derivative of the gradient's product with a vector."""
        loss = loss_of(problem, batch) / problem.weight
        slopes = gradient(loss, problem.leaves, create_graph=True)
        slope = problem.vector(slopes)

        def apply(vector: Tensor, leaves: slice | None = None) -> Tensor:
            if leaves is None:
                return problem.vector(gradient(slope, problem.leaves, vector))
            own = problem.leaves[leaves]
            return problem.vector(combined_gradient(slopes[leaves], own, problem.tensors(vector, leaves)))

        return apply
