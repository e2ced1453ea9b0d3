"""Numbers with their standard errors, by the jackknife over probes. Knows arrays, nothing of matrices."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np


class Estimate(NamedTuple):
    """A number and its standard error: 0.0 where it is exact, nan where one probe cannot tell."""

    value: float
    standard_error: float

    def __str__(self) -> str:
        return brief(*self)


def brief(value: float, error: float) -> str:
    """`0.6488 ± 2e-4`: four digits at most, none below that of the error; four such fit a line of 80."""
    if not (math.isfinite(value) and math.isfinite(error) and value):
        return f"{value:.3g}"
    shown = f"{error:.1g}" if error >= 1e-3 or not error else f"{error:.0e}".replace("e-0", "e-")
    if 10 <= float(shown) < 1e5:
        shown = f"{float(shown):.0f}"
    leading, last = (math.floor(math.log10(abs(x))) if x else -99 for x in (value, float(f"{error:.0e}")))
    digits = max(1, min(4, leading - last + 1))
    if not 1e-4 <= abs(value) < 1e5:
        return f"{value:.{digits - 1}e} ± {shown}"
    return f"{value:.{max(0, digits - 1 - leading)}f} ± {shown}"


def jackknife(value: float, left_out: Sequence[float] | np.ndarray) -> Estimate:
    """`value` of all probes, with the spread of the values (m,) that come out as each probe is left out.

    Miller 1974, *The jackknife: a review*: for smooth functions of means.
    """
    m, left_out = len(left_out), np.asarray(left_out, dtype=np.float64)
    if m < 2:
        return Estimate(float(value), math.nan)
    return Estimate(float(value), float(np.sqrt((m - 1) / m * np.square(left_out - left_out.mean()).sum())))


def of_means(statistic: Callable[[np.ndarray], np.ndarray], exact: np.ndarray, samples: np.ndarray) -> Estimate:
    """`statistic` of `exact` (...) plus the mean of `samples` (m, ...); it takes arrays with leading dimensions.

    Without samples all is exact.
    """
    if not len(samples):
        return Estimate(float(statistic(exact)), 0.0)
    mean = samples.mean(axis=0)
    left_out = (len(samples) * mean - samples) / max(len(samples) - 1, 1)
    return jackknife(float(statistic(exact + mean)), statistic(exact + left_out))
