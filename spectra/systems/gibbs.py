"""Gibbs sampling of units with two states (Geman, Geman 1984), by parallel chains, and errors of its averages.

Samples of one chain are correlated, but samples of different chains are not. The means of whole chains are independent,
so the standard error of their mean is valid for any correlation, once the chains are independent of their start.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from spectra.arguments import require_integer

FEWEST_CHAINS = 4  # for an error from their spread
WINDOW = 5  # autocorrelation times over which correlations are summed (Sokal 1997)


@dataclass(frozen=True)
class Schedule:
    """The sampling schedule: `count` samples from each of `chains`, `thin` sweeps apart, after `burn_in` sweeps.

    A sweep draws each unit once. Raises ArgumentError if a number is too small.
    """

    chains: int
    count: int
    burn_in: int
    thin: int

    def __post_init__(self):
        require_integer("chains", self.chains, FEWEST_CHAINS)
        require_integer("count", self.count)
        require_integer("burn_in", self.burn_in, 0)
        require_integer("thin", self.thin)


def gibbs(
    couplings: Tensor,
    states: Tensor,
    blocks: Sequence[Tensor],
    low: int,
    schedule: Schedule,
    generator: torch.Generator,
) -> Tensor:
    """Sample units that are `low` or 1, in parallel chains.

    Args:
        couplings: J (units, units), symmetric with a zero diagonal: log p = sum over i < j of J_ij s_i s_j + constant.
        states: the states (chains, units) in which the chains begin.
        blocks: the indices of units that are drawn together, which must not be coupled; other units keep their state.
        low: the lower state.
        schedule: burn-in, thinning and the number of samples; its number of chains is not used.
        generator: a CPU generator, so that all devices draw the same numbers.

    Returns:
        The states (chains, count, units), int8.
    """
    states = states.to(couplings.dtype, copy=True)
    kept = torch.empty(len(states), schedule.count, states.shape[1], dtype=torch.int8, device=states.device)
    columns = [(1 - low) * couplings[:, block] for block in blocks]
    for sweep in range(schedule.burn_in + schedule.thin * schedule.count):
        for block, column in zip(blocks, columns, strict=True):
            uniform = torch.rand(len(states), len(block), generator=generator, dtype=states.dtype)
            on = uniform.to(states.device) < torch.sigmoid(states @ column)
            states[:, block] = low + (1 - low) * on.to(states.dtype)
        past = sweep - schedule.burn_in + 1
        if past > 0 and past % schedule.thin == 0:
            kept[:, past // schedule.thin - 1] = states.to(torch.int8)
    return kept


def random_states(chains: int, units: int, low: int, generator: torch.Generator) -> Tensor:
    """States (chains, units) of units that are `low` or 1 with equal probability, int8 on the CPU."""
    return low + (1 - low) * torch.randint(2, (chains, units), generator=generator, dtype=torch.int8)


def mean_with_error(values: Tensor) -> tuple[Tensor, Tensor]:
    """The mean (...) of samples (chains, count, ...), and its standard error by the spread of the chains' means."""
    means = values.mean(1)
    return means.mean(0), means.std(0) / math.sqrt(len(means))


def autocorrelation_time(series: Tensor) -> Tensor:
    """The integrated autocorrelation times (m,) of m series (chains, count, m), in samples.

    An average of `count` samples is worth count / time independent ones. Correlations are averaged over chains and
    summed up to the first lag that is 5 times the sum (Sokal 1997). The result is at least 1. It is too small if chains
    are not much longer than it.
    """
    count = series.shape[1]
    centred = series - series.mean((0, 1))
    spectrum = torch.fft.rfft(centred, n=2 * count, dim=1).abs().square()
    products = torch.fft.irfft(spectrum, n=2 * count, dim=1)[:, :count].mean(0)
    covariances = products / torch.arange(count, 0, -1, device=series.device)[:, None]
    correlations = torch.where(covariances[0] > 0, covariances / covariances[0], 0)
    times = 1 + 2 * (correlations.cumsum(0) - correlations[0])
    enough = torch.arange(count, device=series.device)[:, None] >= WINDOW * times
    enough[-1] = True
    return times.gather(0, enough.to(torch.int8).argmax(0)[None])[0].clamp(min=1)


def drift(series: Tensor) -> Tensor:
    """The change of the mean of each series (chains, count, m) from its first to its second half, in standard errors.

    It is 0 for a constant series, and rarely above 3 if the chains are independent of their start.
    """
    half = series.shape[1] // 2
    change = series[:, half:].mean(1) - series[:, :half].mean(1)
    mean, error = mean_with_error(change[:, None])
    return torch.where(mean == 0, 0, mean.abs() / error)
