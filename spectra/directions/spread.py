"""The distribution over examples of curvature and slope along a direction.

The terms of d'Ad for single examples need no matrix for each example. With f(t) the outputs (E, K) at theta + t d,

    d'H_i d = f_i'(0) . M_i f_i'(0)  +  (dl_i / df_i) . f_i''(0)

where M = d2 l / df2. The first term alone is that of the GGN. Directional derivatives, their means and their noise are
described in Dangel, Tatzel, Hennig 2022, *ViViT: curvature access through the generalized Gauss-Newton's low-rank
structure*.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from spectra.curvature.definition import Definition, loss_gradient
from spectra.curvature.engine.batches import own_batches
from spectra.curvature.engine.differentiation import Jacobian, explained, gradient, twice_differentiable
from spectra.curvature.matrices import definition
from spectra.devices import in_float64
from spectra.problem.batch import Batch
from spectra.problem.problem import Problem, Processes
from spectra.spectrum.curves import NOISE

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True)
class Spread:
    """The distribution of a number over examples."""

    mean: float
    standard_deviation: float  # 0 for one example
    standard_error: float  # of the mean, as for examples drawn at random
    negative: float  # share of examples that are below zero by more than rounding
    quantiles: list[float]  # at QUANTILES

    @property
    def signal_to_noise(self) -> float | None:
        """The ratio |mean| / standard deviation; None if all examples are equal."""
        return abs(self.mean) / self.standard_deviation if self.standard_deviation else None


def spread(values: np.ndarray) -> Spread:
    """The distribution of values (N,)."""
    deviation = values.std(ddof=1) if len(values) > 1 else 0.0
    error, negative = deviation / len(values) ** 0.5, (values < -NOISE * np.abs(values).max()).mean()
    quantiles = np.quantile(values, QUANTILES).tolist()
    return Spread(float(values.mean()), float(deviation), float(error), float(negative), quantiles)


def per_example(problem: Problem, name: str, directions: Sequence[Tensor]) -> tuple[np.ndarray, np.ndarray]:
    """The curvatures d'A_i d and slopes g_i'd of all examples for k directions, (k, N) each, in float64.

    Their means are d'Ad and g'd, with weight decay. An example is a target of cross entropy, or a row for other losses.
    For gradient-covariance A_i is the outer product of g_i - g. It takes a few backward passes for each direction.
    Raises SpectraError if a layer has no third derivative, and ValueError for fisher-batch, which is made of batches.
    """
    matrix = definition(name)
    if matrix.depends_on_batches:
        raise ValueError(f"{name} is not a mean over examples")
    parts = [torch.zeros(2, len(directions), 0, dtype=torch.float64)]
    with twice_differentiable(problem.model), explained():
        for batch in own_batches(problem):
            parts.append(of_batch(problem, matrix, batch, directions))
    curvatures, slopes = problem.examples * gathered(torch.cat(parts, dim=2), problem.processes).numpy()
    if matrix.subtracts_mean_gradient:
        curvatures = np.square(slopes - slopes.mean(axis=1, keepdims=True))
    shift, theta = problem.weight_decay, in_float64(problem.parameter_vector())
    for j, d in enumerate(directions):
        curvatures[j] += shift * d.double().square().sum().item()
        slopes[j] += shift * (theta @ d.double()).item()
    return curvatures, slopes


def of_batch(problem: Problem, matrix: Definition, batch: Batch, directions: Sequence[Tensor]) -> Tensor:
    """Curvatures and slopes (2, k, examples) of the batch's examples, divided by the number of all examples."""
    jacobian = Jacobian(problem, batch)
    middle = matrix.middle(problem, batch, jacobian.rows)
    residual = loss_gradient(problem, batch, jacobian.rows)[1] / problem.weight
    kept = problem.counted(jacobian.rows, batch)
    found = []
    for d in directions:
        d = d.to(problem.device)
        velocity = jacobian.times(d)
        bend = by_row(velocity * middle(velocity))
        if matrix.has_model_curvature:
            bend = bend + by_row(residual * acceleration(jacobian, d))
        found.append(torch.stack([bend, by_row(residual * velocity)])[:, kept].detach().cpu().double())
    return torch.stack(found, dim=1)


def acceleration(jacobian: Jacobian, d: Tensor) -> Tensor:
    """The second derivative by t of the rows at theta + t d, in their shape: the factor of u in d/dtheta (u'J d) d."""
    leaves, along = jacobian.problem.leaves, d.clone().requires_grad_()  # else once_differentiable goes unnoticed
    moved = jacobian.problem.vector(gradient(jacobian.transposed, leaves, along, create_graph=True))
    return gradient(moved, (jacobian.dummy,), d)[0]


def by_row(products: Tensor) -> Tensor:
    """Sums over all but the first dimension."""
    return products.flatten(1).sum(dim=1) if products.ndim > 1 else products


def gathered(part: Tensor, processes: Processes) -> Tensor:
    """The parts of all processes, concatenated along the last dimension."""
    if processes.count == 1:
        return part
    sizes = [0.0] * processes.count
    sizes[processes.rank] = part.shape[2]
    sizes = [int(size) for size in processes.totals(*sizes)]
    full, first = part.new_zeros(*part.shape[:2], sum(sizes)), sum(sizes[: processes.rank])
    full[:, :, first : first + part.shape[2]] = part
    return processes.total(full)
