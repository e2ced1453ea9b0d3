"""A trace and a signal as they are on N examples, for a larger population of which these are a sample."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from spectra.steps.ratio import Ratio

ROUNDINGS = 10.0  # units in the last place of gradients of single examples, to which their mean may be zero


@dataclass(frozen=True)
class Sampled:
    """A trace t = tr(HC) and a signal q = g'Hg on N examples, with what each example does to them.

    The rows of `influences` differ by the noise of independent random vectors, where they are estimated. Where the
    gradient is about zero, no example has an influence of first order on q, and `second_order` is left.
    """

    examples: int  # N
    trace: float
    signal: float
    error: float  # the standard error of the trace, by random vectors; 0 where it is exact
    eps: float = 0.0  # of the gradients of single examples, relative: what is left of their mean below it is rounding
    influences: np.ndarray | None = None  # (K, N), on t; (1, N) where they are exact
    about: np.ndarray | None = None  # (N,), on q
    second_order: float = 0.0  # 2 tr(HCHC) / N^2, the variance that q has at a gradient of zero

    def ratio(self, population: bool) -> Ratio:
        """t / q where the examples are the whole population, else t N / (N - 1) over q - t / (N - 1)."""
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
        """The covariance (2, 2) of (t, q) over samples of N examples; None where influences are not known.

        The noise in the influences by two random vectors is independent: so the mean product of two such, each less its
        mean over examples, is the variance without that noise. It is 0 where it comes out below that.
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
    """Values less their mean over the last dimension."""
    return values - values.mean(axis=-1, keepdims=True)
