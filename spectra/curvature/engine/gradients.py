"""Gradients of the loss by the parameters, for one batch and for all the data, and outer products of a gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from spectra.curvature.engine.batches import own_batches
from spectra.curvature.engine.differentiation import Apply, explained, gradient, twice_differentiable
from spectra.curvature.engine.memory_plan import with_small_logits
from spectra.devices import device_of_vectors
from spectra.problem.batch import Batch
from spectra.problem.head import loss_of
from spectra.problem.problem import Problem


def batch_gradient(problem: Problem, batch: Batch) -> Tensor:
    """The gradient (n,) of the batch's summed loss."""
    if problem.head is None:
        rows = problem.rows(batch)
        problem.check(rows, batch)
        return problem.vector(gradient(problem.total(rows, batch), problem.leaves))
    return problem.vector(gradient(loss_of(problem, batch), problem.leaves))


def mean_gradient(problem: Problem) -> Tensor:
    """Compute the gradient (n,) of the mean loss over all data, at the current parameters and without weight decay.

    It takes one backward pass over the data.

    Args:
        problem: the model, loss and data.

    Returns:
        The gradient (n,), in the order of `problem.parameters`.

    Raises:
        SpectraError: the model or the loss fails on the data.
    """
    total = torch.zeros(problem.size, dtype=problem.dtype, device=problem.device)
    with twice_differentiable(problem.model), explained():
        problem = with_small_logits(problem)
        for batch in own_batches(problem):
            total += batch_gradient(problem, batch)
    return problem.processes.total(total).to(device_of_vectors(problem.device)) / problem.weight


def with_weight_decay(problem: Problem, gradient: Tensor) -> Tensor:
    """Add the gradient of the problem's weight decay to the gradient (n,) of the mean loss."""
    if not problem.weight_decay:
        return gradient
    return gradient + problem.weight_decay * problem.parameter_vector().to(gradient.device)


def outer_product(problem: Problem, g: Tensor, scale: float) -> Apply:
    """The product with scale g g', as a function of a vector (n,)."""

    def apply(vector: Tensor, leaves: slice | None = None) -> Tensor:
        own = g if leaves is None else problem.vector(problem.tensors(g)[leaves])
        return scale * own * (own @ vector)

    return apply
