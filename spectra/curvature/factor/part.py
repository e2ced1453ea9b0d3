"""The rows of the root S for one batch. F = S J is then a factor of J'M J."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from spectra.errors import SpectraError
from spectra.problem.batch import Batch


@dataclass(frozen=True)
class BatchRoot:
    """The rows of S for one batch; rows of zeros are left out."""

    batch: Batch
    roots: Tensor  # (units, s, positions, D)

    @cached_property
    def kept(self) -> Tensor:
        """Which rows are not zero: (units, s, positions), in the order of rows in F."""
        return (self.roots != 0).any(dim=3)

    @cached_property
    def size(self) -> int:
        """The number of rows."""
        return int(self.kept.sum())

    @cached_property
    def kinds(self) -> list[list[int]]:
        """The pairs (i, position) for which some unit has a row; one pass J'u over the batch gives a pair's rows."""
        return self.kept.any(dim=0).nonzero().tolist()

    def of_kind(self, i: int, position: int) -> Tensor:
        """The sum of the rows of S of one kind, in the shape (units, positions, D) of the model's rows."""
        rows = torch.zeros_like(self.roots[:, i])
        rows[:, position] = self.roots[:, i, position]
        return rows

    def times(self, rows: Tensor) -> Tensor:
        """S u, (size,), for the model's rows u."""
        return (self.roots * rows.reshape(len(self.roots), 1, self.roots.shape[2], -1)).sum(dim=3)[self.kept]

    def transposed_times(self, weights: Tensor) -> Tensor:
        """S'w for weights (size,), in the shape (units, positions, D) of the model's rows."""
        full = self.roots.new_zeros(self.kept.shape)
        full[self.kept] = weights.to(full)
        return (full[..., None] * self.roots).sum(dim=1)

    def units(self) -> Iterator[BatchRoot]:
        """Yield each unit that has rows separately, in order; each with the whole batch where that cannot be cut."""
        whole, count = self.batch, len(self.roots)
        try:
            singles = [whole] if count == 1 else [whole.part(slice(unit, unit + 1)) for unit in range(count)]
        except SpectraError:
            units = (BatchRoot(whole, self.only(unit)) for unit in range(count))
        else:
            units = (BatchRoot(single, roots[None]) for single, roots in zip(singles, self.roots, strict=True))
        return (unit for unit in units if unit.size)

    def only(self, unit: int) -> Tensor:
        """The rows of S with those of all other units set to zero."""
        alone = torch.zeros_like(self.roots)
        alone[unit] = self.roots[unit]
        return alone


def first_of(batch: Batch, count: int) -> Batch:
    """The first examples of a batch, or all where it cannot be cut."""
    try:
        return batch.part(slice(0, count))
    except SpectraError:
        return batch
