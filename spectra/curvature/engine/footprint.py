"""Predict the memory of a product of one batch from the size of the batch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from spectra.curvature.engine.hoisting import Linearise
from spectra.curvature.engine.loss_memory import LossMemoryGrowth, loss_growth
from spectra.curvature.engine.meter import Meter
from spectra.errors import SpectraError
from spectra.memory import out_of_memory
from spectra.problem.batch import Batch
from spectra.problem.problem import Problem

FEW = (2, 4)  # examples that are measured


@dataclass(frozen=True)
class Line:
    """The line fixed + each * elements: bytes for the parameters, and bytes that grow with the data."""

    fixed: float
    each: float

    def __call__(self, elements: float) -> int:
        return int(self.fixed + self.each * elements)

    def within(self, limit: float) -> float:
        """The number of elements at which the line reaches the limit."""
        return (limit - self.fixed) / self.each if self.each > 0 else math.inf


@dataclass(frozen=True)
class MaximumOfLines:
    """The maximum of some lines, plus the memory that the loss takes beyond a line.

    A product has one line for the memory after each of its operations. The loss's memory is a function of the number of
    examples, which have `each` elements.
    """

    lines: tuple[Line, ...]
    growth: LossMemoryGrowth
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
    """The bytes of a batch's product by double backward, as functions of the elements of the batch's inputs.

    Model and data are not counted.
    """

    kept: MaximumOfLines  # of tensors that do not depend on the vector
    peak: MaximumOfLines
    operations: int  # called by one product from scratch
    scales: bool  # whether the model takes batches of any size


@dataclass(frozen=True)
class Measured:
    """The bytes alive after each operation of a product from scratch, and those that can be kept for other products."""

    elements: int
    kept: int
    history: tuple[int, ...]


def footprint(linearise: Linearise, problem: Problem) -> Footprint:
    """Measure the memory of a product on a few examples and on a few more, and predict it for other sizes.

    Where the model takes only its own batches, the whole first batch is measured.
    """
    batch = problem.batches[0]
    _ = problem.weight, problem.examples, problem.writes_inputs  # computed now, so that they are not measured
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
    return through(Measured(0, 0, (0,) * len(whole.history)), whole, LossMemoryGrowth(), 1.0, scales=False)


def through(few: Measured, more: Measured, growth: LossMemoryGrowth, each: float, scales: bool) -> Footprint:
    """Lines through two measurements, one line for the bytes alive after each operation, plus the loss's `growth`.

    No line falls as the data grow.
    """

    def line(less: int, greater: int) -> Line:
        each = max(0.0, (greater - less) / (more.elements - few.elements))
        return Line(max(0.0, less - each * few.elements), each)

    histories = (few.history, more.history)
    if len(few.history) != len(more.history):  # the model's operations depend on the size
        histories = ([max(history)] for history in histories)
    lines = {line(*pair) for pair in zip(*histories, strict=True)}
    kept, peak = (line(few.kept, more.kept),), tuple(outermost(lines))
    return Footprint(MaximumOfLines(kept, growth, each), MaximumOfLines(peak, growth, each), len(more.history), scales)


def outermost(lines: Iterable[Line]) -> Iterator[Line]:
    """Yield the lines that no other exceeds everywhere."""
    highest = -math.inf
    for line in sorted(lines, key=lambda line: (line.each, line.fixed), reverse=True):
        if line.fixed > highest:
            highest = line.fixed
            yield line


def measured(linearise: Linearise, problem: Problem, batch: Batch) -> Measured:
    """Measure the memory of one product with a batch's matrix from scratch."""
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
    """The size of a batch: the count of numbers in its inputs, at least one for each example.

    Unlike the number of examples, it shows the lengths of sequences.
    """
    return max(len(batch), sum(x.numel() for x in pytree.tree_leaves(batch.inputs) if isinstance(x, Tensor)))
