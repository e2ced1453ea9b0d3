"""Find the parameters on which an output depends, by autograd's graph."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from itertools import chain
from typing import Any

from spectra.errors import SpectraError
from spectra.problem.autograd_graph import leaf_of, nodes_behind
from spectra.problem.batch import Batch
from spectra.problem.outputs import tensors_of
from spectra.problem.problem import Problem

ENOUGH = 1024  # examples after which a parameter that none of them depends on counts as unused
TOGETHER = 64  # examples in one forward pass


def output_depends_on_parameters(problem: Problem) -> bool:
    """Whether any output depends on the chosen parameters.

    Two examples of each batch are tried first, then whole batches, for models that branch.
    """
    wanted = {id(p) for p in problem.leaves}
    outputs = chain(outputs_of_two(problem), map(problem.output, problem.batches))
    return any(wanted & leaves_behind(output) for output in outputs)


def unused_parameters(problem: Problem) -> list[str]:
    """The names of the chosen parameters on which no output of the first thousand examples depends."""
    missing = {id(p): name for name, p in problem.parameters.items()}
    for output in chain(outputs_of_two(problem), outputs_of_many(problem)):
        for found in leaves_behind(output):
            missing.pop(found, None)
        if not missing:
            break
    return list(missing.values())


def leaves_behind(output: Any) -> set[int]:
    """The ids of the leaves on which the tensors of an output depend."""
    return {id(leaf) for node in nodes_behind(tensors_of(output)) if (leaf := leaf_of(node)) is not None}


def outputs_of_two(problem: Problem) -> Iterator[Any]:
    """Yield the outputs for the first two examples of each batch, where the model takes them alone."""
    for batch in problem.batches:
        with suppress(SpectraError, TypeError):
            yield problem.output(batch.part(slice(2)))


def outputs_of_many(problem: Problem) -> Iterator[Any]:
    """Yield the outputs for the first thousand examples, few at a time where that is possible."""
    seen = 0
    for batch in problem.batches:
        if seen >= ENOUGH:
            return
        seen += len(batch)
        yield from outputs_in_parts(problem, batch)


def outputs_in_parts(problem: Problem, batch: Batch) -> Iterator[Any]:
    """Yield the outputs for the examples of a batch, few at a time, or for the whole batch where it cannot be cut."""
    for first in range(0, min(len(batch), ENOUGH), TOGETHER):
        try:
            yield problem.output(batch.part(slice(first, first + TOGETHER)))
        except (SpectraError, TypeError):
            yield problem.output(batch)
            return
