"""The generalised Gauss-Newton matrix (GGN): J'M J with M = d2 l / df2 (Schraudolph 2002)."""

from __future__ import annotations

from torch import Tensor

from spectra.curvature.definition import Definition, loss_hessian
from spectra.curvature.engine.differentiation import Apply
from spectra.problem.batch import Batch
from spectra.problem.problem import Problem


class GaussNewton(Definition):
    """The generalised Gauss-Newton matrix."""

    derivatives = ("jacobian", "loss hessian")
    root_is_of_full_rank = True

    def middle(self, problem: Problem, batch: Batch, rows: Tensor) -> Apply:
        """M u with M the second derivative of the loss by the outputs, over W."""
        return loss_hessian(problem, batch, rows)
