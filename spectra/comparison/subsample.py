"""Extrapolate leading eigenvalues on random subsets of N examples to infinitely many examples.

A leading eigenvalue of the mean over N random examples out of M is on average a + b / N to first order, with variance
about c (1 / N - 1 / M). A line is fitted to each of several independent chains of nested subsets; the mean and the
spread of the lines give a and b with their errors for these M examples. The variance of the M examples themselves,
c / M, is added in the limit of infinitely many.
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
    """The mean of one eigenvalue for each number N of examples, and the line a + b / N fitted to them."""

    means: list[Estimate]
    at_all: Estimate  # the line at all M examples, to compare with the eigenvalue there
    limit: Estimate  # a: for infinitely many examples


def trend(sizes: Sequence[int], values: np.ndarray, examples: int) -> Trend:
    """Fit the line a + b / N by least squares with weights N, since variances fall as 1 / N.

    Args:
        sizes: the numbers N, at least two different ones.
        values: the eigenvalue (chains, sizes).
        examples: the number M of all examples.
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
class SubsetEigenvalues:
    """The largest eigenvalues of one matrix on subsets, by size and chain, without eigenvectors."""

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
        """The sizes of subsets, in the order in which they were added."""
        return list(self.found)

    @property
    def values(self) -> np.ndarray:
        """The eigenvalues (chains, sizes, k), with the k that all subsets have."""
        k = min(len(values) for chain in self.found.values() for values in chain)
        return np.stack([[values[:k] for values in chain] for chain in self.found.values()], axis=1)

    def trends(self, examples: int) -> list[Trend]:
        """The trend of each eigenvalue, largest first; empty if a number is not finite."""
        values = self.values
        columns = np.moveaxis(values, 2, 0) if np.isfinite(values).all() else ()
        return [trend(self.sizes, column, examples) for column in columns]


def mean(samples: np.ndarray) -> Estimate:
    """The mean of samples (k,) and its standard error."""
    return Estimate(float(samples.mean()), float(samples.std(ddof=1) / math.sqrt(len(samples))))


def chains(problem: Problem, sizes: Sequence[int], seed: int) -> Iterator[tuple[int, int, Problem]]:
    """Yield (chain, size, problem on a random subset of that size); in a chain each subset contains the previous one.

    Raises SpectraError for a size above the number of examples, and for fewer than two sizes.
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
    """Raise SpectraError for a size above the number of examples, and for fewer than two sizes."""
    if max(sizes) > examples:
        raise SpectraError(
            f"`subsample` {max(sizes)}: the data have only {counted(int(examples), 'example')}; give smaller sizes"
        )
    if len(set(sizes)) < 2:
        raise SpectraError(f"`subsample` {sizes[0]}: one size shows no trend; give two or more, such as 256,512,1024")
