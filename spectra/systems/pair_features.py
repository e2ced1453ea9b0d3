"""Products s_i s_j of the states of connected units, summed over pairs or averaged over states without being stored.

With V_ij = v_ij for the connected pairs, D = sum of v_ij s_i s_j = s'V s, and the sum of c s_i s_j over states is an
entry of S' diag(c) S. Both take a matrix product with the states, for any number of pairs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from spectra.wording import outline

ENTRIES = 2**21  # of an array of intermediate results: 16 MB in float64


@dataclass(frozen=True)
class Pairs:
    """The connected pairs of units (first, second), in the order of the parameters."""

    first: Tensor  # (n,), indices of units
    second: Tensor  # (n,)
    units: int

    __repr__ = outline

    def __len__(self) -> int:
        return len(self.first)

    def matrices(self, vectors: Tensor) -> Tensor:
        """Vectors (n, k) as matrices (k, units, units), zero where units are not connected."""
        made = vectors.new_zeros(vectors.shape[1], self.units, self.units)
        made[:, self.first, self.second] = vectors.T
        return made

    def vectors(self, matrices: Tensor) -> Tensor:
        """The entries (n, k) of matrices (k, units, units) at the connected pairs."""
        return matrices[:, self.first, self.second].T.contiguous()


def all_pairs(units: int, device: torch.device) -> Pairs:
    """All pairs i < j, row by row."""
    first, second = torch.triu_indices(units, units, 1, device=device)
    return Pairs(first, second, units)


def pair_sums(states: Tensor, matrices: Tensor) -> Tensor:
    """The sums s'V s (k, m) for states (m, units) and matrices V (k, units, units)."""
    return ((states @ matrices) * states).sum(-1)


def pair_moments(states: Tensor, coefficients: Tensor) -> Tensor:
    """The sums of c s s' over states (m, units), for coefficients c (k, m): (k, units, units)."""
    return states.T @ (coefficients[:, :, None] * states)


def slices(length: int, width: int) -> Iterator[slice]:
    """Yield ranges of `length` rows, such that `width` numbers a row fill an array of `ENTRIES`."""
    step = max(1, ENTRIES // max(1, width))
    yield from (slice(first, min(first + step, length)) for first in range(0, length, step))


def with_always_on(states: Tensor) -> Tensor:
    """States with a unit in front of the others that is always 1."""
    return torch.cat([states.new_ones(*states.shape[:-1], 1), states], dim=-1)
