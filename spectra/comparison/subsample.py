"""Eigenvalues on fewer examples, and their limit for ever more.

A leading eigenvalue of the mean over N random examples out of M is on average a + b / N to first order, with variance
about c (1 / N - 1 / M). Chains of nested random subsets, each on its own, give lines; their mean and spread tell a
and b as far as the M examples do. What these themselves owe to chance, c / M, is added for infinitely many.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from spectra.curvature.engine.batches import joined
from spectra.curvature.evaluation import cut_batches
from spectra.errors import SpectraError
from spectra.krylov.results import Eigenpairs
from spectra.problem.problem import Problem
from spectra.spectrum.estimates import Estimate
from spectra.wording import counted

CHAINS = 4


@dataclass(frozen=True)
class Trend:
    """The mean of one eigenvalue at every number N of examples, and the line a + b / N through them."""

    means: list[Estimate]
    at_all: Estimate  # the line at all M examples, to be held against what it is there
    limit: Estimate  # a: for infinitely many examples


def trend(sizes: Sequence[int], values: np.ndarray, examples: int) -> Trend:
    """Fit the line to values (chains, sizes), at two different sizes or more, of subsets out of so many examples.

    Lines by least squares with weights N, for variances that fall as 1 / N.
    """
    inverse = 1 / np.asarray(sizes, dtype=np.float64)
    rows, weights = np.stack([np.ones_like(inverse), inverse], axis=1), np.sqrt(1 / inverse)
    lines = (values * weights) @ np.linalg.pinv(rows * weights[:, None]).T
    at_all, limit = mean(lines @ [1, 1 / examples]), mean(lines[:, 0])
    smaller = inverse > 1 / examples
    c = np.var(values[:, smaller], axis=0, ddof=1) / (inverse[smaller] - 1 / examples) if smaller.any() else [math.nan]
    own = math.sqrt(float(np.mean(c)) / examples)
    return Trend(
        [mean(column) for column in values.T], at_all, limit._replace(standard_error=math.hypot(limit[1], own))
    )


@dataclass
class BySize:
    """The largest eigenvalues of one matrix on subsets, by size, chain after chain; vectors are not kept."""

    found: dict[int, list[np.ndarray]] = field(default_factory=dict)
    products: int = 0
    converged: bool = True

    def add(self, size: int, pairs: Eigenpairs) -> None:
        """Add the eigenpairs of one subset of this size."""
        self.found.setdefault(size, []).append(pairs.values.numpy())
        self.products += pairs.products
        self.converged &= pairs.converged

    @property
    def sizes(self) -> list[int]:
        """The sizes of subsets, in the order in which they were met."""
        return list(self.found)

    @property
    def values(self) -> np.ndarray:
        """The eigenvalues (chains, sizes, k), k as many as all subsets have."""
        k = min(len(values) for chain in self.found.values() for values in chain)
        return np.stack([[values[:k] for values in chain] for chain in self.found.values()], axis=1)

    def trends(self, examples: int) -> list[Trend]:
        """The trend of each eigenvalue, largest first; none where a number is not finite."""
        values = self.values
        columns = np.moveaxis(values, 2, 0) if np.isfinite(values).all() else ()
        return [trend(self.sizes, column, examples) for column in columns]


def mean(samples: np.ndarray) -> Estimate:
    """The mean of samples (k,) and its standard error."""
    return Estimate(float(samples.mean()), float(samples.std(ddof=1) / math.sqrt(len(samples))))


def chains(problem: Problem, sizes: Sequence[int], seed: int) -> Iterator[tuple[int, int, Problem]]:
    """Subsets as (chain, size, the problem on so many examples); in a chain each subset lies inside the next.

    Raises SpectraError: a size above the number of examples, fewer than two sizes.
    """
    every, generator = joined(problem.batches), torch.Generator().manual_seed(seed)
    sizes, width = sorted(set(sizes)), max(map(len, problem.batches))
    refuse_sizes(sizes, len(every))
    for chain in range(CHAINS):
        order = torch.randperm(len(every), generator=generator).to(every.indices.device)
        for size in sizes:
            chosen = every.part(order[:size].sort().values)
            batches = cut_batches(chosen.inputs, chosen.targets, chosen.indices, width)
            yield chain, size, replace(problem, batches=batches)


def refuse_sizes(sizes: Sequence[int], examples: float = math.inf) -> None:
    """Raise SpectraError where subsets of these sizes, out of so many examples, show no trend."""
    if max(sizes) > examples:
        raise SpectraError(
            f"`subsample` {max(sizes)}: the data hold {counted(int(examples), 'example')}; name smaller numbers"
        )
    if len(set(sizes)) < 2:
        raise SpectraError(f"`subsample` {sizes[0]}: one size shows no trend; name two or more, as 256,512,1024")
