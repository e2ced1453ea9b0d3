"""Averages over all states of some units, with others fixed: the free and the clamped phase of a small machine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from spectra.errors import SpectraError
from spectra.systems.pair_features import ENTRIES, Pairs, pair_moments, pair_sums, slices
from spectra.wording import outline

LARGEST = 2**22  # states in all


@dataclass(frozen=True)
class Enumeration:
    """All states of the moving units for each row of fixed ones, which come first, under the weights J_ij.

    A state's probability, among those with the same fixed units, is proportional to exp(sum of J_ij s_i s_j).
    """

    pairs: Pairs
    fixed: Tensor  # (rows, a), int8
    moving: Tensor  # (m, b), int8: all their states
    probabilities: Tensor  # (rows, m): each row sums to 1
    log_sums: Tensor  # (rows,): logarithms of the sums of exp(...)

    __repr__ = outline

    def times(self, vectors: Tensor) -> Tensor:
        """The mean over rows of the covariances of s_i s_j, times vectors (n, k): <(D - <D>) s_i s_j>."""
        together = max(1, 8 * ENTRIES // self.probabilities.numel())
        return torch.cat([self._times(some) for some in vectors.split(together, dim=1)], dim=1)

    def _times(self, vectors: Tensor) -> Tensor:
        sums = _sums(self.fixed, self.moving, self.pairs.matrices(vectors))
        sums -= (self.probabilities * sums).sum(2, keepdim=True)
        return self._moments(sums * self.probabilities)

    def means(self) -> Tensor:
        """The means (n,) of s_i s_j over states and rows."""
        return self._moments(self.probabilities[None])[:, 0]

    def _moments(self, coefficients: Tensor) -> Tensor:
        """The sums of c s_i s_j over states, for coefficients c (k, rows, m), over the number of rows: (n, k)."""
        flat, units = coefficients.flatten(1), self.pairs.units
        total = coefficients.new_zeros(len(flat), units, units)
        for part, states in _blocks(self.fixed, self.moving, len(flat), coefficients.dtype):
            total += pair_moments(states, flat[:, part])
        return self.pairs.vectors(total) / len(self.fixed)


def enumerate_states(pairs: Pairs, weights: Tensor, fixed: Tensor, moving: int, low: int) -> Enumeration:
    """Enumerate the states of `moving` units that are `low` or 1, for each row of `fixed` (rows, a).

    The weights (n,) are the J_ij. Raises SpectraError if there are too many states.
    """
    if len(fixed) * 2**moving > LARGEST:
        which = f"{moving} hidden units for {len(fixed):,} examples" if len(fixed) > 1 else f"{moving} units"
        raise SpectraError(
            f"{which}: {len(fixed) * 2**moving:,} states are too many to enumerate (at most {LARGEST:,}); use "
            "`sampled_hessian`, which estimates the Hessian from Gibbs samples"
        )
    states = all_states(moving, low, fixed.device)
    energies = _sums(fixed, states, pairs.matrices(weights[:, None]))[0]
    log_sums = energies.logsumexp(1)
    return Enumeration(pairs, fixed, states, (energies - log_sums[:, None]).exp_(), log_sums)


def all_states(count: int, low: int, device: torch.device) -> Tensor:
    """All states (2^count, count) of units that are `low` or 1, as int8; the last unit changes fastest."""
    index = torch.arange(2**count, device=device)
    bits = [(index >> place & 1).to(torch.int8) for place in reversed(range(count))]
    return torch.stack(bits, 1) * (1 - low) + low if bits else torch.empty(1, 0, dtype=torch.int8, device=device)


def _sums(fixed: Tensor, moving: Tensor, matrices: Tensor) -> Tensor:
    """The sums s'V s (k, rows, m) of all states, for matrices V (k, units, units)."""
    blocks = _blocks(fixed, moving, len(matrices), matrices.dtype)
    return torch.cat([pair_sums(states, matrices) for _, states in blocks], dim=1).view(-1, len(fixed), len(moving))


def _blocks(fixed: Tensor, moving: Tensor, k: int, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    """Yield ranges of all states, row by row, with those states (m, units)."""
    units = fixed.shape[1] + moving.shape[1]
    for part in slices(len(fixed) * len(moving), units * k):
        index = torch.arange(part.start, part.stop, device=fixed.device)
        rows, states = fixed[index // len(moving)], moving[index % len(moving)]
        yield part, torch.cat([rows, states], dim=1).to(dtype)
