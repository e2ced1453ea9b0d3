"""Predict the memory that a product of one batch takes from the size of the batch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from spectra.curvature.engine.growth import Growth, loss_growth
from spectra.curvature.engine.hoisting import Linearise
from spectra.curvature.engine.meter import Meter
from spectra.errors import SpectraError
from spectra.memory import out_of_memory
from spectra.problem.batch import Batch
from spectra.problem.problem import Problem

FEW = (2, 4)  # examples that are measured


@dataclass(frozen=True)
class Line:
    """The line fixed + each * elements: what belongs to the parameters, and what grows with the data."""

    fixed: float
    each: float

    def __call__(self, elements: float) -> int:
        return int(self.fixed + self.each * elements)

    def within(self, limit: float) -> float:
        """The number of elements at which the line reaches the limit."""
        return (limit - self.fixed) / self.each if self.each > 0 else math.inf


@dataclass(frozen=True)
class Highest:
    """The highest of some lines, plus the memory that the loss takes beyond a line.

    For few data the highest is where vectors of parameters are held, for many it is elsewhere. The loss's memory goes
    by examples, of `each` elements.
    """

    lines: tuple[Line, ...]
    growth: Growth
    each: float

    def __call__(self, elements: float) -> int:
        return max(line(elements) for line in self.lines) + int(self.growth(elements / self.each))

    def within(self, limit: float) -> float:
        """The largest number of elements whose memory stays within the limit."""
        high = min(line.within(limit) for line in self.lines)
        if not self.growth.sizes or high <= 0:
            return high
        low, high = 0.0, min(high, self.each * 2**40)
        while high - low > self.each:  # down to one example
            middle = (low + high) / 2
            low, high = (middle, high) if self(middle) <= limit else (low, middle)
        return low


@dataclass(frozen=True)
class Footprint:
    """The bytes of a batch's product by double backward, besides model and data.

    They are functions of the elements of the batch's inputs.
    """

    kept: Highest  # what does not depend on the vector
    peak: Highest
    operations: int  # that one product calls, from scratch
    scales: bool  # whether the model takes batches of any size


@dataclass(frozen=True)
class Measured:
    """The bytes alive in a product from scratch, after each operation, and those that can be kept for others."""

    elements: int
    kept: int
    history: tuple[int, ...]


def footprint(linearise: Linearise, problem: Problem) -> Footprint:
    """Measure the memory of a product on a few examples and on a few more, and predict it for other sizes.

    Where the model takes no other batches than its own, the whole first batch is measured.
    """
    batch = problem.batches[0]
    _ = problem.weight, problem.examples, problem.writes_inputs  # found now, and not while the first is measured
    if len(batch) > 1:
        counts = FEW if len(batch) > FEW[-1] else (1, len(batch))
        try:
            growth = loss_growth(problem, batch), elements(batch) / len(batch)
            few, more = (measured(linearise, problem, batch.part(slice(count))) for count in counts)
        except (RuntimeError, TypeError, SpectraError) as error:
            if out_of_memory(error):
                raise
        else:
            return through(few, more, *growth, scales=True)
    whole = measured(linearise, problem, batch)
    return through(Measured(0, 0, (0,) * len(whole.history)), whole, Growth(), 1.0, scales=False)


def through(few: Measured, more: Measured, growth: Growth, each: float, scales: bool) -> Footprint:
    """Lines through two measurements, one line for the bytes alive after each operation, plus the loss's `growth`.

    No line falls as the data grow.
    """

    def line(less: int, greater: int) -> Line:
        each = max(0.0, (greater - less) / (more.elements - few.elements))
        return Line(max(0.0, less - each * few.elements), each)

    histories = (few.history, more.history)
    if len(few.history) != len(more.history):  # the model calls other operations for another size
        histories = ([max(history)] for history in histories)
    lines = {line(*pair) for pair in zip(*histories, strict=True)}
    kept, peak = (line(few.kept, more.kept),), tuple(outermost(lines))
    return Footprint(Highest(kept, growth, each), Highest(peak, growth, each), len(more.history), scales)


def outermost(lines: Iterable[Line]) -> Iterator[Line]:
    """Yield the lines that no other exceeds everywhere."""
    highest = -math.inf
    for line in sorted(lines, key=lambda line: (line.each, line.fixed), reverse=True):
        if line.fixed > highest:
            highest = line.fixed
            yield line


def measured(linearise: Linearise, problem: Problem, batch: Batch) -> Measured:
    """Measure the memory of one product of a batch from scratch."""
    model = problem.model
    vector = torch.ones(problem.size, dtype=problem.dtype, device=problem.device)
    with Meter([*model.parameters(), *model.buffers(), *tensors(batch), vector]) as meter:
        apply = linearise(problem, batch)
        kept = meter.bytes
        apply(vector)
    return Measured(elements(batch), kept, tuple(meter.history))


def tensors(batch: Batch) -> list[Tensor]:
    """The tensors of a batch."""
    return [x for x in pytree.tree_leaves((batch.inputs, batch.targets, batch.indices)) if isinstance(x, Tensor)]


def elements(batch: Batch) -> int:
    """The size of a batch: the numbers in its inputs, at least one an example.

    It is meaningful whatever the lengths of the batch's sequences.
    """
    return max(len(batch), sum(x.numel() for x in pytree.tree_leaves(batch.inputs) if isinstance(x, Tensor)))
