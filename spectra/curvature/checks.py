"""What is refused before the first product, in words that say how to put it right."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from itertools import chain

import torch
from torch import Tensor

from spectra.curvature.differentiation import reaches
from spectra.curvature.losses import CustomLoss
from spectra.curvature.problem import Batch, Problem
from spectra.errors import SpectraError


def refuse_unfit(problem: Problem) -> None:
    """Raise SpectraError where the output is random, a constant, of other examples too, or does not fit the targets.

    A graph that is kept holds one draw of whatever is random, so its products agree with each other.
    """
    for batch in problem.batches[:1]:
        with torch.no_grad():
            first, again = (rows(problem, batch) for _ in range(2))
        for each in problem.batches:
            problem.loss.check(first, each.targets)
        change = relative_difference(again, first)
        if change > torch.finfo(problem.dtype).eps ** 0.5:
            raise SpectraError(
                f"--model: its output changes from call to call (by {change:.1e} of its size): dropout, BatchNorm on "
                "batch statistics, or other chance in its forward do this; make it deterministic, as model.eval() does"
            )
        refuse_shared_output(problem, batch, first)
    if len(problem.batches) > 1:
        refuse_split_loss(problem)
    if problem.weight and not output_depends(problem):
        some = ", ".join(list(problem.parameters)[:4]) + (", ..." if len(problem.parameters) > 4 else "")
        raise SpectraError(
            f"--params: the model's output does not depend on any chosen parameter ({some}); choose some that it is "
            "computed from, or look for detach() and no_grad() in the model"
        )


def output_depends(problem: Problem) -> bool:
    """Whether any output is computed from the chosen parameters; two examples show it, but for models that branch."""
    outputs = chain(outputs_of_two(problem), map(problem.output, problem.batches))
    return any(reaches(problem.leaves, output) for output in outputs)


def outputs_of_two(problem: Problem) -> Iterator[Tensor]:
    """Outputs for the first examples of each batch, where they can be had alone."""
    for batch in problem.batches:
        with suppress(SpectraError, TypeError):
            yield problem.output(batch.part(slice(2)))


def refuse_shared_output(problem: Problem, batch: Batch, together: Tensor) -> None:
    """Raise SpectraError where half the examples alone have other rows than `together`, those of the whole batch.

    Nothing is said where half cannot be had: one example, a model of one size of batch, inputs that are not cut.
    """
    if not (half := len(batch) // 2):
        return
    try:
        with torch.no_grad():
            alone = rows(problem, batch.part(slice(half)))
    except (SpectraError, TypeError):
        return
    same = together[: len(alone)]
    change = relative_difference(alone, same) if alone.shape == same.shape else 0.0
    if change > torch.finfo(problem.dtype).eps ** 0.5:
        raise SpectraError(
            f"--model: its output for an example depends on the others of its batch (by {change:.1e} of its size), so "
            "the matrix would depend on the split; look for means over dimension 0, and let each example stand alone, "
            "as GroupNorm does"
        )


def rows(problem: Problem, batch: Batch) -> Tensor:
    return problem.loss.rows(problem.output(batch), batch.targets).double()


def relative_difference(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()


def refuse_split_loss(problem: Problem) -> None:
    """Raise SpectraError where the loss of a batch is not the sum of its parts', as a user's mean with weights."""
    batch = problem.batches[0]
    half = len(batch) // 2
    if not isinstance(problem.loss, CustomLoss) or not half:
        return
    with torch.no_grad():
        rows = problem.loss.rows(problem.output(batch), batch.targets)
        parts = [problem.loss.total(rows[cut], batch.targets[cut]) for cut in (slice(half), slice(half, None))]
        whole, split = problem.loss.total(rows, batch.targets).item(), sum(parts).item()
    if abs(whole - split) > torch.finfo(torch.float32).eps ** 0.5 * sum(part.abs() for part in parts):
        raise SpectraError(
            f"--loss {problem.loss.name}: its value for a batch ({whole / len(batch):.6g}) is not the mean of its "
            f"halves' ({split / len(batch):.6g}), so it would depend on the batches (sums, weights and ignored targets "
            "do this); return one value for each example, or give a --batch-size that takes all in one"
        )


def refuse_one_example(problem: Problem) -> None:
    """Raise SpectraError where a covariance would be zero by definition, and rounding is all that is left."""
    if problem.examples < 2:
        raise SpectraError("--curvature gradient-covariance: one example has no covariance; take more --samples")
