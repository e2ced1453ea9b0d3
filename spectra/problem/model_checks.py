"""Check that a model gives each example an output of its own, and the same one at every call.

Compared are: two examples at 8 calls, or at 64 where the model draws random numbers; the first batch at two calls, in
halves, in a third and the rest, and in another order; halves of up to three other batches; and the first batch that
products are made of with those that were given.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spectra.devices import in_float64
from spectra.errors import SpectraError
from spectra.memory import out_of_memory
from spectra.problem.batch import Batch
from spectra.problem.batch_loss import BatchLoss
from spectra.problem.problem import Problem
from spectra.problem.side_effects import draws, modules, reseed, without_side_effects

CALLS = 8
CALLS_WITH_CHANCE = 64  # what happens at one call in ten is missed once in 900 times
FEW = 2
OTHERS = 3  # batches
GENERATORS = (torch.Generator, random.Random, np.random.Generator, np.random.RandomState)


def refuse_chance(problem: Problem) -> None:
    """Raise SpectraError where the output for the same examples changes from call to call."""
    batch = fewest(problem)
    calls = CALLS if len(batch) <= FEW else 2
    with without_side_effects(problem.model):
        before = draws()
        expected = by_example(problem, problem.call(batch), batch)
        if draws() != before or keeps_generator(problem):
            calls = CALLS_WITH_CHANCE
        for number in range(1, calls):
            reseed(number)
            refuse_change(problem, by_example(problem, problem.call(batch), batch), expected)


def fewest(problem: Problem) -> Batch:
    """The first two examples, or the first batch where the model takes no part of it."""
    batch = problem.batches[0]
    return batch if attempted(problem, batch, slice(FEW)) is None else batch.part(slice(FEW))


def keeps_generator(problem: Problem) -> bool:
    """Whether a module holds a random generator of its own."""
    values = (value for module in modules(problem.model) for value in vars(module).values())
    return any(isinstance(value, GENERATORS) for value in values)


def refuse_shared_outputs(problem: Problem) -> None:
    """Raise SpectraError where the output for an example depends on the other examples of its batch.

    Nothing is said where parts cannot be had: one example, a model of one size of batch, inputs that are not cut,
    outputs that are not of single examples.
    """
    first, *others = chosen(problem.batches)
    with torch.no_grad():
        whole = called(problem, first)
        refuse_change(problem, called(problem, first), whole)
        if not refuse_parts(problem, first, whole, len(first) // 2) or len(whole) != len(first):
            return
        refuse_parts(problem, first, whole, len(first) // 3 | 1)  # of an odd size, too
        order = torch.randperm(len(first), generator=torch.Generator().manual_seed(problem.seed)).to(whole.device)
        refuse_dependence(problem, attempted(problem, first, order), whole[order])
        for batch in others:
            refuse_parts(problem, batch, called(problem, batch), len(batch) // 2)


def chosen(batches: Sequence[Batch]) -> list[Batch]:
    """The first, the last, and some between."""
    count = min(len(batches), 1 + OTHERS)
    return [batches[round(i * (len(batches) - 1) / max(count - 1, 1))] for i in range(count)]


def refuse_parts(problem: Problem, batch: Batch, whole: Tensor, place: int) -> bool:
    """Whether both parts of a batch that is cut there can be had; raise SpectraError where they differ from `whole`."""
    if not place:
        return False
    for cut in (slice(place), slice(place, None)):
        found = attempted(problem, batch, cut)
        if found is None or found.shape != whole[cut].shape:
            return False
        refuse_dependence(problem, found, whole[cut])
    return True


def refuse_other_size(problem: Problem, given: Sequence[Batch], used: Sequence[Batch]) -> None:
    """Raise SpectraError where the first of the batches used has other outputs than the same examples as given."""
    if not used or len(used[0]) == len(given[0]):
        return
    with torch.no_grad():
        found, expected = called(problem, used[0]), []
        while sum(map(len, expected)) < len(found):
            expected.append(called(problem, given[len(expected)]))
    refuse_dependence(problem, found, torch.cat(expected)[: len(found)])


def called(problem: Problem, batch: Batch) -> Tensor:
    """The model's output for a batch, one row an example."""
    return by_example(problem, problem.output(batch), batch)


def by_example(problem: Problem, output: Any, batch: Batch) -> Tensor:
    """The output as rows of the loss, one (b, ...) for each example where there are as many for each."""
    rows = problem.rows_of(output, batch).detach()
    rows = in_float64(rows)
    return rows.reshape(len(batch), -1) if rows.numel() % len(batch) == 0 else rows


def attempted(problem: Problem, batch: Batch, cut: slice | Tensor) -> Tensor | None:
    """The output for some of the examples; None where the batch cannot be cut, or the model does not take the part."""
    try:
        return called(problem, batch.part(cut))
    except (SpectraError, TypeError, IndexError, RuntimeError) as error:
        if out_of_memory(error):
            raise
        return None


def refuse_change(problem: Problem, found: Tensor, expected: Tensor) -> None:
    """Raise SpectraError where the output of a second call differs from the first by more than rounding."""
    if (change := relative_difference(found, expected)) > torch.finfo(problem.dtype).eps ** 0.5:
        if isinstance(problem.loss, BatchLoss):
            raise SpectraError(
                f"`loss` {problem.loss.name}: its value changes from call to call (by {change:.1e} of its size): "
                "dropout, noise, times or pairs that are drawn in it or in the model do this; draw them once, beside "
                "the data, and take model.eval()"
            )
        raise SpectraError(
            f"`model`: its output changes from call to call (by {change:.1e} of its size): dropout, BatchNorm on "
            "batch statistics, or other chance in its forward do this; make it deterministic, as model.eval() does"
        )


def refuse_dependence(problem: Problem, found: Tensor | None, expected: Tensor) -> None:
    """Raise SpectraError where the output for the same examples differs in another batch by more than rounding."""
    if found is None or found.shape != expected.shape:
        return
    if (change := relative_difference(found, expected)) > torch.finfo(problem.dtype).eps ** 0.5:
        raise SpectraError(
            f"`model`: its output for an example depends on the others of its batch (by {change:.1e} of its size), so "
            "the matrix would depend on the split; look for means over dimension 0, and let each example stand alone, "
            "as GroupNorm does"
        )


def relative_difference(found: Tensor, expected: Tensor) -> float:
    """The largest change of an example's output, over its size or the root mean square of all."""
    changes, sizes = (rows.flatten(1).norm(dim=1) for rows in (found - expected, expected))
    return (changes / sizes.clamp(min=sizes.square().mean().sqrt())).max().item()
