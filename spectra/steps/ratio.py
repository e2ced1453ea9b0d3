"""The ratio of two estimates, with its standard error and Fieller's interval, which may have no upper end."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

NORMAL = 1.96  # standard errors on either side of a 95 % interval


@dataclass(frozen=True)
class Ratio:
    """The ratio T / q of two estimates, with the covariances of their errors from two independent sources.

    One source is the sample of data, the other the random vectors. `sampling` is None if the first is unknown.
    """

    numerator: float  # T
    denominator: float  # q
    probes: np.ndarray = field(repr=False)  # (2, 2), of (T, q)
    sampling: np.ndarray | None = field(repr=False)  # (2, 2)
    rounding: float = 0.0  # of q; smaller values of q are noise

    @property
    def covariance(self) -> np.ndarray:
        """The covariance (2, 2) of the errors of (T, q), from both sources."""
        return self.probes if self.sampling is None else self.probes + self.sampling

    @property
    def errors(self) -> tuple[float, float]:
        """The standard errors of T and of q."""
        first, second = np.sqrt(np.diag(self.covariance).clip(min=0)).tolist()
        return first, second

    @property
    def resolved(self) -> bool:
        """Whether q is above zero by more than its random error (95 %) and its rounding."""
        return self.denominator > NORMAL * self.errors[1] + self.rounding

    @property
    def value(self) -> float | None:
        """The ratio T / q; None if q is not resolved, or the ratio is below zero."""
        return self.numerator / self.denominator if self.resolved and self.numerator >= 0 else None

    @property
    def standard_error(self) -> float | None:
        """The standard error of T / q to first order, from both sources; None without a value."""
        return None if self.value is None else self._error(self.covariance)

    @property
    def sampling_error(self) -> float | None:
        """The part of the standard error from the sample of data; None if it is unknown."""
        return None if self.value is None or self.sampling is None else self._error(self.sampling)

    def _error(self, covariance: np.ndarray) -> float:
        along = np.array([1.0, -self.numerator / self.denominator]) / self.denominator
        return math.sqrt(max(0.0, along @ covariance @ along))

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of ratios from 0 on, by Fieller's theorem (1954).

        It contains the ratios r with |T - r q| at most 1.96 times the standard error of T - r q. The upper end is
        infinite if q may be zero: then the data only say that the ratio is at least the lower end. Both ends are nan if
        q or the ratio is below zero by more than its random error.
        """
        top, bottom = self.numerator, self.denominator
        (tt, tq), (_, qq) = (NORMAL**2 * self.covariance).tolist()
        a, b, c = bottom**2 - qq, top * bottom - tq, top**2 - tt
        inside = top**2 * qq - 2 * top * bottom * tq + bottom**2 * tt - (tt * qq - tq**2)  # b^2 - a c, no cancellation
        roots = roots_of(a, b, c, inside)
        if a <= 0:  # q may be zero: the interval starts at the larger root, or at 0 if T may be zero too
            return (0.0 if c <= 0 else max(roots, default=math.inf)), math.inf
        low, high = roots or (b / a, b / a)
        return (max(0.0, low), high) if self.resolved and high >= 0 else (math.nan, math.nan)


def roots_of(a: float, b: float, c: float, inside: float) -> tuple[float, ...]:
    """The real roots of a r^2 - 2 b r + c, in rising order, given b^2 - a c."""
    if a == 0:
        return (c / (2 * b),) if b else ()
    if inside < 0:
        return ()
    far = b + math.copysign(math.sqrt(inside), b)  # avoids cancellation
    return tuple(sorted((far / a, c / far))) if far else (0.0, 0.0)
