"""Numbers with standard errors by the jackknife over probes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch

from spectra.krylov.jackknife import jackknife_error
from spectra.wording import brief


class Estimate(NamedTuple):
    """A number and its standard error: 0.0 if it is exact, nan for a single probe."""

    value: float
    standard_error: float

    def __str__(self) -> str:
        return brief(*self)


def jackknife(value: float, left_out: Sequence[float] | np.ndarray) -> Estimate:
    """The `value` of all probes with its standard error, from the values (m,) with each probe left out."""
    replicates = torch.as_tensor(np.asarray(left_out, dtype=np.float64))
    return Estimate(float(value), jackknife_error(replicates).item())


def jackknife_of_means(
    statistic: Callable[[np.ndarray], np.ndarray], exact: np.ndarray, samples: np.ndarray
) -> Estimate:
    """Estimate a statistic of `exact` (...) plus the mean of `samples` (m, ...); without samples it is exact.

    The `statistic` takes arrays with leading dimensions.
    """
    if not len(samples):
        return Estimate(float(statistic(exact)), 0.0)
    mean = samples.mean(axis=0)
    left_out = (len(samples) * mean - samples) / max(len(samples) - 1, 1)
    return jackknife(float(statistic(exact + mean)), statistic(exact + left_out))
