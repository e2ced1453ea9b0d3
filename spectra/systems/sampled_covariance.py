"""The covariance of s_i s_j estimated from Gibbs samples, its products, and their standard errors.

For R chains, with a_c the mean of D - <D> over chain c, the product of the estimate with v is the mean over samples of

    (D - <D> + a_c / (R - 1)) s_i s_j,

where <.> is the mean over all samples. The second term makes it unbiased: together they are the U-statistic (Hoeffding
1948) of (D - D')(s_i s_j - s_i' s_j') / 2 over pairs of samples from different chains. The estimate is symmetric and
positive semidefinite. The contributions of the chains are independent except for <.>, however correlated the samples of
one chain are; the standard error follows from their spread.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from spectra.systems.pair_features import ENTRIES, Pairs
from spectra.wording import outline


@dataclass(frozen=True)
class SampledCovariance:
    """The mean over groups of the covariance of s_i s_j within each.

    The free phase is one group, and each example of the clamped phase is one.
    """

    pairs: Pairs
    states: Tensor  # (chains, groups, count, units), int8
    dtype: torch.dtype

    __repr__ = outline

    def times(self, vectors: Tensor) -> Tensor:
        """The products (n, k) with vectors (n, k)."""
        matrices = self.pairs.matrices(vectors)
        total = torch.zeros_like(matrices)
        for states in self._blocks():
            flat = states.flatten(0, 2)
            for matrix, product in zip(matrices, total, strict=True):
                product += flat.T @ (_centred(states, matrix)[1].reshape(-1, 1) * flat)
        return self.pairs.vectors(total) / self.states[..., 0].numel()

    def with_error(self, vector: Tensor) -> tuple[Tensor, Tensor]:
        """The product (n,) with a vector (n,), and the standard error of each of its entries."""
        (matrix,) = self.pairs.matrices(vector[:, None])
        parts = torch.zeros(len(self.states), *matrix.shape, dtype=self.dtype, device=matrix.device)
        for states in self._blocks():
            coefficients = _centred(states, matrix)[1]
            means = _moments(states, torch.ones_like(coefficients)).mean(0)
            own = _moments(states, coefficients) - coefficients.mean(2)[..., None, None] * means
            parts += own.sum(1)
        values = self.pairs.vectors(parts / self.states.shape[1]).T
        return values.mean(0), spread(values)

    def varying_chains(self) -> Tensor:
        """The number of chains (n,) in which s_i s_j takes the rarer of its two values."""
        _, groups, count, units = self.states.shape
        sums = torch.zeros(len(self.states), units, units, dtype=self.dtype, device=self.states.device)
        for states in self._blocks():
            sums += states.flatten(1, 2).mT @ states.flatten(1, 2)
        all_on = groups * count
        all_off = min(self.states.min().item(), 0) * all_on
        common = torch.where(sums.mean(0) > (all_on + all_off) / 2, all_on, all_off)
        return self.pairs.vectors((sums != common).sum(0)[None])[:, 0]

    def quotient_errors(self, vectors: Tensor) -> Tensor:
        """The standard errors (k,) of the quadratic forms u'Au of vectors u (n, k)."""
        parts = torch.zeros(len(self.states), vectors.shape[1], dtype=self.dtype, device=vectors.device)
        for states in self._blocks():
            for index, matrix in enumerate(self.pairs.matrices(vectors)):
                centred, coefficients = _centred(states, matrix)
                parts[:, index] += (centred * coefficients).mean(2).sum(1)
        return spread(parts / self.states.shape[1])

    def trace_error(self) -> float:
        """The standard error of the trace."""
        parts = torch.zeros(len(self.states), dtype=self.dtype, device=self.states.device)
        ones = self.pairs.matrices(parts.new_ones(len(self.pairs), 1))[0]
        for states in self._blocks():
            squares = ((states.square() @ ones) * states.square()).sum(3).mean(2)
            means = _moments(states, torch.ones_like(states[..., 0])) * ones
            mean = means.mean(0)
            apart = (means - mean).square().sum((2, 3)) / (len(states) - 1)
            parts += (squares - 2 * (means * mean).sum((2, 3)) + apart).sum(1)
        return spread(parts / self.states.shape[1]).item()

    def _blocks(self) -> Iterator[Tensor]:
        """Yield states (chains, some groups, count, units) in the dtype of vectors."""
        chains, _, count, units = self.states.shape
        some = max(1, ENTRIES // (chains * units * max(count, units)))
        yield from (states.to(self.dtype) for states in self.states.split(some, dim=1))


def _centred(states: Tensor, matrix: Tensor) -> tuple[Tensor, Tensor]:
    """D - <D>, and the coefficients of s_i s_j in the product: both (chains, groups, count)."""
    sums = ((states @ matrix) * states).sum(3)
    centred = sums - sums.mean((0, 2), keepdim=True)
    return centred, centred + centred.mean(2, keepdim=True) / (len(states) - 1)


def _moments(states: Tensor, coefficients: Tensor) -> Tensor:
    """The means over the samples of each chain of c s s': (chains, groups, units, units)."""
    return states.mT @ (coefficients[..., None] * states) / states.shape[2]


def spread(parts: Tensor) -> Tensor:
    """The standard error (...) of the mean of parts (chains, ...) that are centred at a common estimate.

    Its square is the sum of squares over R (R - 2): a degree of freedom is lost with the mean, another with the centre.
    So it is unbiased for the variance of independent normal numbers.
    """
    chains = len(parts)
    return ((parts - parts.mean(0)).square().sum(0) / (chains * (chains - 2))).sqrt()
