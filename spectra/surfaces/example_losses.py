"""The loss of every example, for standard errors of means over examples."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from spectra.curvature.engine.batches import own_batches
from spectra.curvature.engine.differentiation import explained, twice_differentiable
from spectra.directions.spread import by_row, gathered
from spectra.problem.batch import Batch
from spectra.problem.batch_loss import BatchLoss
from spectra.problem.losses import CustomLoss, values_of
from spectra.problem.output_loss import OutputLoss
from spectra.problem.problem import Problem
from spectra.problem.weights import Weighable, weights_of

NO_EXAMPLES = "the loss is one number for a batch, so single examples have no loss"


def example_losses(problem: Problem) -> np.ndarray | None:
    """The losses (N,) of all examples, in float64; None if the loss is one number for a batch.

    Their mean is the mean loss without weight decay. An example is a target of cross entropy, or else a row. It takes
    one forward pass over the data. Raises SpectraError if the model fails.
    """
    parts, whole = [torch.zeros(0, dtype=torch.float64)], 0
    with twice_differentiable(problem.model), explained(), torch.no_grad():
        for batch in own_batches(problem):
            rows = problem.rows(batch)
            values = values_by_example(problem, rows, batch)
            whole += len(values) < problem.examples_of(batch)
            parts.append(values.detach().cpu().double())
    if any(problem.processes.totals(whole)):
        return None
    every = gathered(torch.cat(parts)[None, None], problem.processes)[0, 0]
    return (problem.examples / problem.weight * every).numpy()


def values_by_example(problem: Problem, rows: Tensor, batch: Batch) -> Tensor:
    """The loss of each example (b,) in the sum over a batch, or (1,) if only the sum is known."""
    loss = problem.loss
    if isinstance(loss, BatchLoss | OutputLoss):
        return by_row(rows)
    if isinstance(loss, CustomLoss):
        return values_of(loss.called(problem.restored(rows, batch), batch.targets), len(batch), loss)
    labels, weights = problem.labels(batch), weights_of(loss, batch.targets)
    if not isinstance(loss, Weighable):
        return problem.total(rows, batch).reshape(1)
    values = loss.values(rows, labels)
    if weights is not None:
        values = (weights.to(rows) * values).where(weights != 0, 0)
    return by_row(values)[problem.counted(rows, batch)]
