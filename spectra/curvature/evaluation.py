"""Evaluate the mean loss and the accuracy of a problem, and choose a batch size that fits memory."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from spectra.arguments import require_integer
from spectra.curvature.checks.loss_checks import no_second_derivative, rows_of
from spectra.curvature.engine.batches import QUARTER, own_batches
from spectra.curvature.engine.differentiation import explained, twice_differentiable
from spectra.curvature.engine.footprint import Footprint, elements
from spectra.curvature.engine.memory_plan import plan_memory, with_small_logits
from spectra.curvature.finite_differences import DifferencedHessian
from spectra.curvature.matrices import definition
from spectra.errors import OutOfMemory, SpectraError
from spectra.memory import memory_share
from spectra.problem.batch import Batch
from spectra.problem.batch_loss import BatchLoss
from spectra.problem.head import rows_by_parts
from spectra.problem.losses import ClassificationLoss, CustomLoss
from spectra.problem.model_inputs import Structured
from spectra.problem.problem import Problem


@dataclass(frozen=True)
class Evaluation:
    """The mean loss and the accuracy of a model on the data."""

    loss: float  # the mean over all examples, without weight decay
    accuracy: float | None  # share of the counted targets predicted correctly; None for losses of real-valued targets


def evaluate(problem: Problem) -> Evaluation:
    """Compute the mean loss and the accuracy by one forward pass over the data.

    The prediction is the largest output for cross entropy, the sign of each output for binary cross entropy. Raises
    SpectraError where the model fails on the data, and where the loss is not finite.
    """
    total, right, counted = 0.0, 0, 0
    with twice_differentiable(problem.model), explained(), torch.no_grad():
        problem = with_small_logits(problem)
        for batch in own_batches(problem):
            for rows, part in rows_by_parts(problem, batch):
                problem.check(rows, part)
                total += problem.total(rows, part).item()
                if isinstance(problem.loss, ClassificationLoss):
                    hits = problem.hits(problem.loss, rows, part)
                    right, counted = right + int(hits.sum()), counted + hits.numel()
    total, right, counted = problem.processes.totals(total, right, counted)
    loss = total / problem.mean_weight
    if not math.isfinite(loss):
        raise SpectraError(
            f"`loss`: the mean loss over the data is {loss}; look for weights or inputs that are not finite, "
            "or try `dtype` float64"
        )
    return Evaluation(loss, right / counted if counted else None)


def mean_loss(problem: Problem) -> float:
    """Compute the mean loss over all examples, without weight decay, by one forward pass over the data.

    Args:
        problem: the model, loss and data.

    Returns:
        The mean loss.

    Raises:
        SpectraError: the model fails on the data, or the loss is not finite.
    """
    return evaluate(problem).loss


def accuracy(problem: Problem) -> float | None:
    """Compute the share of targets that the model's output predicts correctly, by one forward pass over the data.

    Args:
        problem: the model, loss and data.

    Returns:
        The accuracy, from 0 to 1. The prediction is the largest output for cross entropy, the sign of each output for
        binary cross entropy. None for losses of real-valued targets.

    Raises:
        SpectraError: the model fails on the data, or the loss is not finite.
    """
    return evaluate(problem).accuracy


def cut_batches(inputs: Any, targets: Tensor, indices: Tensor, size: int) -> list[Batch]:
    """Cut examples into batches of `size`; the last may be shorter.

    Args:
        inputs: the model's inputs: a tensor (N, ...), or tuples, lists and mappings of such tensors. Inputs that cannot
            be cut, such as a graph, are one batch.
        targets: the targets (N, ...).
        indices: the indices (N,) of the examples in the data set, int64.
        size: the number of examples in a batch.

    Returns:
        The batches, in order.

    Examples:
        >>> import torch, spectra
        >>> x, y = torch.randn(100, 8), torch.randint(10, (100,))
        >>> [len(batch) for batch in spectra.cut_batches(x, y, torch.arange(100), 40)]
        [40, 40, 20]
    """
    require_integer("size", size)
    every = Batch(inputs, targets, indices)
    if isinstance(inputs, Structured) and not inputs.divisible:
        return [every]
    return [every.part(slice(first, first + size)) for first in range(0, len(indices), size)]


def product_footprint(problem: Problem, memory: int | None = None) -> Footprint:
    """The memory of a product with the Hessian, or with what takes its place where it does not exist.

    That is fisher-empirical where a user's loss has no second derivative, and a difference of gradients where a layer
    has none.
    """
    with twice_differentiable(problem.model):
        first = problem.batches[0]
        once = isinstance(problem.loss, CustomLoss) and no_second_derivative(problem, rows_of(problem, first), first)
        if not once:
            try:
                with explained():
                    return plan_memory(definition("hessian").linearise, problem, memory).costs
            except OutOfMemory:
                raise
            except SpectraError:
                if not isinstance(problem.loss, BatchLoss):
                    with explained():
                        return plan_memory(DifferencedHessian.of("central", problem).linearise, problem, memory).costs
        with explained():
            return plan_memory(definition("fisher-empirical").linearise, problem, memory).costs


def fitting_batch_size(problem: Problem, examples: int, memory: int | None = None) -> int:
    """The number of examples in a batch, so that the Hessian's products fit `memory`: all, or a quarter of what fits.

    Where the loss has no second derivative, the products of fisher-empirical have to fit.
    """
    memory = memory_share(problem.device) if memory is None else memory
    costs = product_footprint(problem, memory)
    each = max(elements(batch) / len(batch) for batch in problem.batches)
    if not memory or costs.peak(each * examples) <= memory:
        return examples
    return max(1, int(costs.peak.within(memory) / QUARTER / each))
