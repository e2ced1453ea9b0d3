"""Fit of a power law to the leading eigenvalues: its exponent, and tests of the fit.

    p(x) = (a - 1) / x_min (x / x_min)^-a    for x >= x_min

Clauset, Shalizi, Newman 2009, *Power-law distributions in empirical data*: the exponent by maximum likelihood, x_min
where the Kolmogorov-Smirnov distance is least, a test of the fit by samples of the law, and likelihood ratios against
other laws (Vuong 1989). All of these assume independent samples. Eigenvalues repel each other and are spread more
evenly, so the test rejects too rarely, if anything. If the j-th eigenvalue falls as j^-s, then a = 1 + 1/s.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.special import log_ndtr

from spectra.errors import ArgumentError

FEWEST = 20  # eigenvalues; the standard error of the exponent is then at best a fifth of a - 1
TAIL = 10  # eigenvalues from x_min on, at least
MOST = 1000  # leading eigenvalues that are used
CANDIDATES = 200  # for x_min: every eigenvalue, or this many, evenly among more
SAMPLES = 400  # of the law; the standard error of a p-value of 0.1 is then 0.015
REJECTED = 0.1  # p-value below which a law is rejected, as in the paper


@dataclass(frozen=True)
class Alternative:
    """The log-likelihood ratio of the power law to another law; positive if the power law is more likely."""

    name: str
    ratio: float  # the log-likelihood ratio over its standard deviation
    p_value: float  # the probability of such a ratio by chance


@dataclass(frozen=True)
class PowerLaw:
    """A power law fitted to the leading eigenvalues, with tests of the fit."""

    exponent: float  # a
    standard_error: float  # for the x_min chosen
    smallest: float  # x_min, in units of the eigenvalues
    count: int  # of eigenvalues from x_min on
    of: int  # the number of leading eigenvalues that were used
    distance: float  # Kolmogorov-Smirnov
    p_value: float  # the share of samples of the law that fit it less well
    alternatives: list[Alternative]

    @property
    def rejected(self) -> bool:
        """Whether the fit is poor, or another law is significantly more likely."""
        others = any(one.ratio < 0 and one.p_value < REJECTED for one in self.alternatives)
        return self.p_value < REJECTED or others


def power_law(values: np.ndarray, smallest: float | None = None, generator: torch.Generator | None = None) -> PowerLaw:
    """Fit a power law to the tail of positive `values` (m,), and test it.

    Args:
        values: leading eigenvalues, without any left out between them; the MOST largest are used.
        smallest: the cut-off x_min; None: the one with the best fit. A tail that is chosen for its fit is rarely
            rejected.
        generator: a CPU generator for the samples of the test; None: one with seed 0.

    Raises:
        ArgumentError: fewer than FEWEST are positive, or they are all the same.
    """
    generator = generator or torch.Generator().manual_seed(0)
    values = np.sort(values[values >= (smallest or 0)])
    values = values[values > 0][-MOST:]
    if len(values) < FEWEST:
        raise ArgumentError(f"`values`: a power law needs {FEWEST} known leading eigenvalues, got {len(values)}")
    if values[0] == values[-1]:
        raise ArgumentError("`values`: all leading eigenvalues are the same")
    candidates = np.unique(np.linspace(0, len(values) - TAIL, CANDIDATES).round().astype(int))
    candidates = candidates if smallest is None else candidates[:1]
    (exponent,), (distance,), (start,) = fits(values[None], candidates)
    tail, samples = values[start:], samples_like(values, int(start), float(exponent), generator)
    sampled = np.concatenate([fits(some, candidates)[1] for some in samples])
    return PowerLaw(
        exponent=float(exponent),
        standard_error=float(exponent - 1) / math.sqrt(len(tail)),
        smallest=float(tail[0]),
        count=len(tail),
        of=len(values),
        distance=float(distance),
        p_value=float(np.mean(sampled >= distance)),
        alternatives=alternatives(tail, float(exponent)),
    )


def fits(values: np.ndarray, candidates: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The best exponent, distance and index of x_min for each row of rising values (r, m)."""
    rows, logs = len(values), np.log(values)
    best = np.full((3, rows), math.inf)
    for start in candidates:
        above = logs[:, start:] - logs[:, start, None]
        total = above.sum(axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            exponent = 1 + above.shape[1] / total
            law = 1 - np.exp(above * (1 - exponent[:, None]))
        steps = np.arange(above.shape[1] + 1) / above.shape[1]
        distance = np.maximum(np.abs(law - steps[:-1]), np.abs(law - steps[1:])).max(axis=1)
        better = (total > 0) & (distance < best[1])
        best[:, better] = np.stack([exponent, distance, np.full(rows, start)])[:, better]
    return best[0], best[1], best[2].astype(int)


def samples_like(values: np.ndarray, start: int, exponent: float, generator: torch.Generator) -> list[np.ndarray]:
    """Draw rows of rising values of the size of `values`: from the law above x_min, from the values below it."""
    size, rows = len(values), max(1, 10**6 // len(values))
    blocks = []
    for first in range(0, SAMPLES, rows):
        shape = (min(rows, SAMPLES - first), size)
        which, uniform = (torch.rand(shape, generator=generator, dtype=torch.float64).numpy() for _ in range(2))
        drawn = values[start] * (1 - uniform) ** (1 / (1 - exponent))
        below = values[(uniform * start).astype(int)]
        blocks.append(np.sort(np.where(which < (size - start) / size, drawn, below), axis=1))
    return blocks


def alternatives(tail: np.ndarray, exponent: float) -> list[Alternative]:
    """Compare the power law of a rising tail (k,) with a lognormal and an exponential law, both truncated at x_min."""
    logs = np.log(tail / tail[0])
    law = np.log((exponent - 1) / tail[0]) - exponent * logs
    rate = 1 / (tail.mean() - tail[0])
    others = {"lognormal": lognormal(logs) - np.log(tail), "exponential": np.log(rate) - rate * (tail - tail[0])}
    return [vuong(name, law - other) for name, other in others.items()]


def vuong(name: str, differences: np.ndarray) -> Alternative:
    """Vuong's test of differences of log-likelihoods (k,)."""
    spread = differences.std() * math.sqrt(len(differences))
    ratio = float(differences.sum() / spread) if spread else 0.0
    return Alternative(name, ratio, math.erfc(abs(ratio) / math.sqrt(2)))


def lognormal(logs: np.ndarray) -> np.ndarray:
    """Log-densities of y = log(x / x_min) >= 0 (k,) under the most likely normal distribution truncated at 0."""

    def densities(mean: float, log_deviation: float) -> np.ndarray:
        standard = (logs - mean) / math.exp(log_deviation)
        mass = log_ndtr(mean / math.exp(log_deviation))
        return -0.5 * standard**2 - log_deviation - 0.5 * math.log(2 * math.pi) - mass

    def cost(parameters: np.ndarray) -> float:
        return -densities(parameters[0], float(np.clip(parameters[1], -30, 5))).sum()  # 5: practically a power law

    start = [logs.mean(), math.log(logs.std())]
    found = minimize(cost, start, method="Nelder-Mead", options={"maxiter": 2000, "maxfev": 4000}).x
    return densities(found[0], float(np.clip(found[1], -30, 5)))
