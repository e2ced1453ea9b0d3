"""The slopes g'd of the loss along directions, with rounding errors from a second way to compute them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from spectra.curvature.definition import loss_gradient
from spectra.curvature.engine.batches import own_batches
from spectra.curvature.engine.differentiation import Jacobian, explained, twice_differentiable
from spectra.curvature.engine.memory_plan import LARGE, largest_logits
from spectra.devices import in_float64
from spectra.errors import SpectraError
from spectra.problem.problem import Problem
from spectra.vectors import dot, norm


def slopes(problem: Problem, gradient: Tensor, vectors: Sequence[Tensor]) -> tuple[list[float], list[float | None]]:
    """The slopes g'd of the loss along vectors (n,), each with its rounding error.

    The error is the difference from (dl/df)'(J d), with the model's outputs f and their derivative J, which has other
    rounding errors; it is at least one unit in the last place of |g||d|. It is None for a model or loss without such
    products, and if the logits of a batch are large.

    Args:
        problem: the problem, at the current parameters.
        gradient: the gradient g (n,) of the mean loss with the problem's weight decay.
        vectors: the directions d (n,).
    """
    found, eps = [dot(gradient, d) for d in vectors], torch.finfo(problem.dtype).eps
    if largest_logits(problem) > LARGE:
        return found, [None for _ in vectors]
    try:
        again = by_outputs(problem, vectors)
    except SpectraError:
        return found, [None for _ in vectors]
    pairs = zip(found, again, vectors, strict=True)
    return found, [max(abs(one - other), eps * norm(gradient) * norm(d)) for one, other, d in pairs]


def by_outputs(problem: Problem, vectors: Sequence[Tensor]) -> list[float]:
    """The slopes as sums over outputs, (dl/df)'(J d), weight decay included; a few backward passes over the data.

    Raises SpectraError if a layer has no second derivative.
    """
    totals = [0.0] * len(vectors)
    with twice_differentiable(problem.model), explained():
        for batch in own_batches(problem):
            jacobian = Jacobian(problem, batch)
            residual = loss_gradient(problem, batch, jacobian.rows)[1]
            for i, d in enumerate(vectors):
                velocity = jacobian.times(d.to(problem.device))
                totals[i] += (in_float64(residual) * in_float64(velocity)).sum().item()
    theta = in_float64(problem.parameter_vector())
    decay = [problem.weight_decay * (theta @ in_float64(d)).item() for d in vectors]
    return [total / problem.weight + more for total, more in zip(problem.processes.totals(*totals), decay, strict=True)]
