"""The empirical Fisher matrix: J'M J with M = g g', g = dl / df for the data's labels.

It is the mean outer product of the gradients of single examples, and not the Fisher matrix unless the model fits the
data.
"""

from __future__ import annotations

from torch import Tensor

from spectra.curvature.definition import Definition, loss_gradient
from spectra.curvature.engine.differentiation import Apply
from spectra.curvature.roots import by_example
from spectra.problem.batch import Batch
from spectra.problem.problem import Problem


class EmpiricalFisher(Definition):
    """The mean outer product of the gradients of single examples."""

    derivatives = ("jacobian", "loss gradient")
    loss_power = 2

    def middle(self, problem: Problem, batch: Batch, rows: Tensor) -> Apply:
        """M u = N/W^2 g (g'u) for each row, where g is the derivative of the loss by the row."""
        slope = loss_gradient(problem, batch, rows)[1]
        slope = slope.reshape(len(slope), -1)
        scale = problem.examples / problem.weight**2

        def middle(vectors: Tensor) -> Tensor:
            along = (slope * vectors.reshape(slope.shape)).sum(dim=1, keepdim=True)
            return (scale * slope * along).view_as(vectors)

        return middle

    def root(self, problem: Problem, batch: Batch, rows: Tensor) -> Tensor:
        """One row sqrt(N)/W g for each example."""
        scale = problem.examples**0.5 / problem.weight
        return by_example(scale * loss_gradient(problem, batch, rows)[1][None], batch)

    def most_root_rows(self, problem: Problem, rows: Tensor) -> int:
        """One row for each example."""
        return 1
