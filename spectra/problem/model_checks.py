"""Check that a model's output for an example is the same at every call, and in every batch.

These outputs are compared: two examples at 8 calls, or at 64 if the model draws random numbers; the first batch at two
calls, in halves, in a third and the rest, and in another order; halves of up to three other batches; and the first
merged batch with the given batches that it joins.
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
from spectra.problem.side_effects import global_generator_states, modules, reseed, without_side_effects

CALLS = 8
CALLS_WITH_CHANCE = 64  # an event at one call in ten is missed once in 900 times
FEW = 2
OTHERS = 3  # batches
GENERATORS = (torch.Generator, random.Random, np.random.Generator, np.random.RandomState)


def refuse_random_output(problem: Problem) -> None:
    """Raise SpectraError if the output for the same examples changes from call to call."""
    batch = fewest(problem)
    calls = CALLS if len(batch) <= FEW else 2
    with without_side_effects(problem.model):
        before = global_generator_states()
        expected = by_example(problem, problem.call(batch), batch)
        if global_generator_states() != before or has_generator(problem):
            calls = CALLS_WITH_CHANCE
        for number in range(1, calls):
            reseed(number)
            refuse_change(problem, by_example(problem, problem.call(batch), batch), expected)


def fewest(problem: Problem) -> Batch:
    """The first two examples, or the first batch if the model rejects a part of it."""
    batch = problem.batches[0]
    return batch if attempted(problem, batch, slice(FEW)) is None else batch.part(slice(FEW))


def has_generator(problem: Problem) -> bool:
    """Whether a module holds a random generator of its own."""
    values = (value for module in modules(problem.model) for value in vars(module).values())
    return any(isinstance(value, GENERATORS) for value in values)


def refuse_shared_outputs(problem: Problem) -> None:
    """Raise SpectraError if the output for an example depends on the other examples of its batch.

    Nothing is checked if a batch cannot be split: one example, a model with a fixed batch size, inputs that cannot be
    cut, or outputs that are not per example.
    """
    first, *others = chosen(problem.batches)
    with torch.no_grad():
        whole = called(problem, first)
        refuse_change(problem, called(problem, first), whole)
        if not refuse_parts(problem, first, whole, len(first) // 2) or len(whole) != len(first):
            return
        refuse_parts(problem, first, whole, len(first) // 3 | 1)  # an odd size, too
        order = torch.randperm(len(first), generator=torch.Generator().manual_seed(problem.seed)).to(whole.device)
        refuse_dependence(problem, attempted(problem, first, order), whole[order])
        for batch in others:
            refuse_parts(problem, batch, called(problem, batch), len(batch) // 2)


def chosen(batches: Sequence[Batch]) -> list[Batch]:
    """The first batch, the last, and up to two between."""
    count = min(len(batches), 1 + OTHERS)
    return [batches[round(i * (len(batches) - 1) / max(count - 1, 1))] for i in range(count)]


def refuse_parts(problem: Problem, batch: Batch, whole: Tensor, place: int) -> bool:
    """Run the model on both parts of a batch cut at `place`, and return whether that is possible.

    Raises SpectraError if the outputs differ from `whole`.
    """
    if not place:
        return False
    for cut in (slice(place), slice(place, None)):
        found = attempted(problem, batch, cut)
        if found is None or found.shape != whole[cut].shape:
            return False
        refuse_dependence(problem, found, whole[cut])
    return True


def refuse_other_size(problem: Problem, given: Sequence[Batch], used: Sequence[Batch]) -> None:
    """Raise SpectraError if outputs of the first merged batch differ from those of its examples as given."""
    if not used or len(used[0]) == len(given[0]):
        return
    with torch.no_grad():
        found, expected = called(problem, used[0]), []
        while sum(map(len, expected)) < len(found):
            expected.append(called(problem, given[len(expected)]))
    refuse_dependence(problem, found, torch.cat(expected)[: len(found)])


def called(problem: Problem, batch: Batch) -> Tensor:
    """The model's output for a batch, one row per example."""
    return by_example(problem, problem.output(batch), batch)


def by_example(problem: Problem, output: Any, batch: Batch) -> Tensor:
    """The output in float64 as rows of the loss, reshaped to (b, ...) if its entries divide among the examples."""
    rows = problem.rows_of(output, batch).detach()
    rows = in_float64(rows)
    return rows.reshape(len(batch), -1) if rows.numel() % len(batch) == 0 else rows


def attempted(problem: Problem, batch: Batch, cut: slice | Tensor) -> Tensor | None:
    """The output for some of the examples; None if the batch cannot be cut, or the model fails on the part."""
    try:
        return called(problem, batch.part(cut))
    except (SpectraError, TypeError, IndexError, RuntimeError) as error:
        if out_of_memory(error):
            raise
        return None


def refuse_change(problem: Problem, found: Tensor, expected: Tensor) -> None:
    """Raise SpectraError if the output of a second call differs from the first by more than rounding."""
    if (change := relative_difference(found, expected)) > torch.finfo(problem.dtype).eps ** 0.5:
        if isinstance(problem.loss, BatchLoss):
            raise SpectraError(
                f"`loss` {problem.loss.name}: its value changes from call to call (relative change {change:.1e}), as "
                "with dropout, or with noise, times or pairs that it draws; draw them once, with the data, and call "
                "model.eval()"
            )
        raise SpectraError(
            f"`model`: its output changes from call to call (relative change {change:.1e}), as with dropout, BatchNorm "
            "on batch statistics, or random numbers drawn in forward; make it deterministic, e.g. with model.eval()"
        )


def refuse_dependence(problem: Problem, found: Tensor | None, expected: Tensor) -> None:
    """Raise SpectraError if the output for the same examples differs in another batch by more than rounding."""
    if found is None or found.shape != expected.shape:
        return
    if (change := relative_difference(found, expected)) > torch.finfo(problem.dtype).eps ** 0.5:
        raise SpectraError(
            f"`model`: its output for an example depends on the other examples in the batch (relative change "
            f"{change:.1e}), so the matrix would depend on the split into batches; look for means over dimension 0, "
            "and use layers that treat each example separately, such as GroupNorm"
        )


def relative_difference(found: Tensor, expected: Tensor) -> float:
    """The largest change of an example's output, divided by its norm or the root mean square norm, if larger."""
    changes, sizes = (rows.flatten(1).norm(dim=1) for rows in (found - expected, expected))
    return (changes / sizes.clamp(min=sizes.square().mean().sqrt())).max().item()
