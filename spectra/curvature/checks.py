"""What is refused before the first product, in words that say how to put it right."""

from __future__ import annotations

import torch

from spectra.curvature.losses import CustomLoss
from spectra.curvature.model_checks import fewest, refuse_chance, refuse_shared_outputs
from spectra.curvature.problem import Problem
from spectra.curvature.reached import output_depends
from spectra.errors import SpectraError


def refuse_unfit(problem: Problem) -> None:
    """Raise SpectraError where the output is random, a constant, of other examples too, or does not fit the targets.

    A graph that is kept holds one draw of whatever is random, so its products agree with each other.
    """
    if problem.batches:
        refuse_misfit(problem)
        refuse_chance(problem)
        refuse_shared_outputs(problem)
    if len(problem.batches) > 1:
        refuse_split_loss(problem)
    if problem.weight and not output_depends(problem):
        some = ", ".join(list(problem.parameters)[:4]) + (", ..." if len(problem.parameters) > 4 else "")
        raise SpectraError(
            f"--params: the model's output does not depend on any chosen parameter ({some}); choose some that it is "
            "computed from, or look for detach() and no_grad() in the model, and for weights that its eval() merges"
        )


def refuse_misfit(problem: Problem) -> None:
    """Raise SpectraError where a batch's targets do not fit the output."""
    batch = fewest(problem)
    rows = problem.loss.rows(problem.output(batch), batch.targets).detach()
    for each in problem.batches:
        problem.loss.check(rows, each.targets)


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
