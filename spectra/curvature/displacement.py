"""Evaluate the mean loss at displaced parameters; the model's own are restored afterwards."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from spectra.curvature.engine.batches import own_batches
from spectra.curvature.engine.differentiation import explained, twice_differentiable
from spectra.devices import in_float64
from spectra.problem.problem import Problem


@contextmanager
def displaced(parameters: Sequence[Tensor], steps: Sequence[Tensor], times: float = 1.0) -> Iterator[None]:
    """Move the parameters to theta + times * steps inside this context; each step has the shape of its parameter.

    Their memory is not written to: inside, each parameter holds another tensor.
    """
    own = [p.data for p in parameters]
    try:
        for p, here, step in zip(parameters, own, steps, strict=True):
            p.data = here.add(step.to(here.device), alpha=times)
        yield
    finally:
        for p, here in zip(parameters, own, strict=True):
            p.data = here


def losses(
    problem: Problem, directions: Tensor, coordinates: np.ndarray, watch: Callable[[], None] = lambda: None
) -> list[float]:
    """The mean loss, weight decay included, at theta + z'D for each z of `coordinates` (points, k); D is (k, n).

    Costs, values and errors are those of `displaced_losses`.
    """
    return displaced_losses(problem, (z @ directions for z in torch.as_tensor(coordinates).to(directions)), watch)


def displaced_losses(
    problem: Problem, steps: Iterable[Tensor], watch: Callable[[], None] = lambda: None
) -> list[float]:
    """The mean loss, weight decay included, at theta + s for each step s (n,).

    Each step takes one forward pass over the data, after a call of `watch`. A loss that is not finite, as may happen
    far away, is nan. Raises SpectraError where the model fails.
    """
    totals, shrinkage = [], []
    with twice_differentiable(problem.model), explained(), torch.no_grad():
        for step in steps:
            watch()
            with displaced(problem.leaves, problem.tensors(step)):
                totals.append(total_loss(problem))
                shrinkage.append(problem.weight_decay * square(problem) / 2 if problem.weight_decay else 0.0)
    means = [total / problem.weight for total in problem.processes.totals(*totals)]
    values = [mean + more for mean, more in zip(means, shrinkage, strict=True)]
    return [value if math.isfinite(value) else math.nan for value in values]


def total_loss(problem: Problem) -> float:
    """The loss summed over this process's share of the examples."""
    return sum(problem.total(problem.rows(batch), batch).item() for batch in own_batches(problem))


def square(problem: Problem) -> float:
    """|theta|^2 over the chosen parameters, in float64."""
    return sum(in_float64(p.detach()).square().sum().item() for p in problem.leaves)
