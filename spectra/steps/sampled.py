"""Correct a trace and a signal on a sample of N examples for the population from which it is drawn."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from spectra.steps.ratio import Ratio

ROUNDINGS = 10.0  # units in the last place of single gradients; a smaller mean is zero up to rounding


@dataclass(frozen=True)
class Sampled:
    """A trace t = tr(HC) and a signal q = g'Hg on N examples, with the influence of each example on them.

    The rows of `influences` are estimates with independent random vectors, unless they are exact. At a gradient of
    about zero, no example has an influence of first order on q, and its variance is `second_order`.
    """

    examples: int  # N
    trace: float
    signal: float
    error: float  # the standard error of the trace from random vectors; 0 if it is exact
    eps: float = 0.0  # the relative rounding error of single gradients
    influences: np.ndarray | None = None  # (K, N), on t; (1, N) if they are exact
    about: np.ndarray | None = None  # (N,), influences on q
    second_order: float = 0.0  # 2 tr(HCHC) / N^2, the variance of q at a gradient of zero

    def ratio(self, population: bool) -> Ratio:
        """The ratio t / q for the whole population, else the unbiased t N / (N - 1) over q - t / (N - 1)."""
        probes = np.diag([self.error**2, 0.0])
        if population:
            rounding = (ROUNDINGS * self.eps) ** 2 * abs(self.trace)
            return Ratio(self.trace, self.signal, probes, np.zeros((2, 2)), rounding)
        n = self.examples
        corrected = np.array([[n / (n - 1), 0.0], [-1 / (n - 1), 1.0]])
        top, bottom = (corrected @ [self.trace, self.signal]).tolist()
        sampling = self._sampling()
        if sampling is not None:
            sampling = corrected @ sampling @ corrected.T
        return Ratio(top, bottom, corrected @ probes @ corrected.T, sampling)

    def _sampling(self) -> np.ndarray | None:
        """The covariance (2, 2) of (t, q) over samples of N examples; None if influences are unknown.

        The noise of the influences is independent between random vectors, so the mean product of two centred rows is
        the variance without that noise. A negative estimate is replaced by 0.
        """
        if self.influences is None or self.about is None:
            return None
        k, n = self.influences.shape
        each, about = centred(self.influences), centred(self.about)
        total, other = each.sum(axis=0), about @ about
        square = total @ total
        if k > 1:
            square = max(0.0, (square - np.square(each).sum()) / (k * (k - 1)))
        most = (square * other) ** 0.5
        mixed = np.clip(total @ about / k, -most, most)
        found = np.array([[square, mixed], [mixed, other]]) / (n * (n - 1))
        found[1, 1] = max(found[1, 1], self.second_order)
        return found


def centred(values: np.ndarray) -> np.ndarray:
    """Values minus their mean over the last dimension."""
    return values - values.mean(axis=-1, keepdims=True)
