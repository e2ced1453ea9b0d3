"""J'M J: the matrices that put another M between the same two products by the Jacobian.

Each function gives M on one batch, block-diagonal over rows; nothing is stored for single examples. With l_i scaled
so that their mean is the loss, M of the batch carries 1/W for curvatures, N/W^2 for products of gradients.
"""

from __future__ import annotations

from torch import Tensor

from spectra.curvature.engine.differentiation import Apply, Jacobian, gradient
from spectra.curvature.random_labels import uniforms
from spectra.problem.problem import Batch, Problem


def sandwich(jacobian: Jacobian, middle: Apply) -> Apply:
    """v -> J'M(J v)."""
    return lambda vector, leaves=None: jacobian.transposed_times(middle(jacobian.times(vector, leaves)), leaves)


def ggn(problem: Problem, batch: Batch) -> Apply:
    """M = d2 l / df2: the generalised Gauss-Newton matrix (Schraudolph 2002)."""
    jacobian = Jacobian(problem, batch)
    leaf, slope = output_gradient(problem, batch, jacobian.rows, create_graph=True)

    def middle(vectors: Tensor) -> Tensor:
        return gradient(slope, (leaf,), vectors)[0] / problem.weight

    return sandwich(jacobian, middle)


def fisher(problem: Problem, batch: Batch) -> Apply:
    """M = s E_{y~p}[r r'], r = d(-log p(y|f)) / df, the expectation taken exactly."""
    jacobian = Jacobian(problem, batch)
    rows, loss = jacobian.rows.detach(), problem.loss
    scales = loss.scales(rows, batch.targets) / problem.weight
    return sandwich(jacobian, lambda vectors: scales * loss.expected(rows, vectors))


def fisher_mc(problem: Problem, batch: Batch) -> Apply:
    """The same with the mean over `mc_samples` labels drawn from p, keyed on the seed and the example's index."""
    jacobian = Jacobian(problem, batch)
    rows, loss = jacobian.rows.detach(), problem.loss
    scales = loss.scales(rows, batch.targets) / (problem.weight * problem.mc_samples)
    draws = [
        loss.draw(rows, uniforms(problem.seed, batch.indices, len(rows), sample))
        for sample in range(problem.mc_samples)
    ]

    def middle(vectors: Tensor) -> Tensor:
        return scales * sum(r * (r * vectors).sum(dim=1, keepdim=True) for r in draws)

    return sandwich(jacobian, middle)


def fisher_empirical(problem: Problem, batch: Batch) -> Apply:
    """M = g g' with g = d l / df for the data's labels."""
    jacobian = Jacobian(problem, batch)
    slope = output_gradient(problem, batch, jacobian.rows)[1]
    slope = slope.reshape(len(slope), -1)
    scale = problem.examples / problem.weight**2

    def middle(vectors: Tensor) -> Tensor:
        along = (slope * vectors.reshape(slope.shape)).sum(dim=1, keepdim=True)
        return (scale * slope * along).view_as(vectors)

    return sandwich(jacobian, middle)


def output_gradient(problem: Problem, batch: Batch, rows: Tensor, create_graph: bool = False) -> tuple[Tensor, Tensor]:
    """The rows cut off from the parameters, and the derivative of the batch's summed loss by them."""
    leaf = rows.detach().requires_grad_()
    return leaf, gradient(problem.loss.total(leaf, batch.targets), (leaf,), create_graph=create_graph)[0]
