"""The jackknife: standard errors of smooth functions of means (Miller 1974, *The jackknife: a review*)."""

from __future__ import annotations

import torch
from torch import Tensor


def jackknife_error(replicates: Tensor) -> Tensor:
    """Standard errors (...) of an estimate, from its values (g, ...) with each of g groups of samples left out.

    They are nan for fewer than two groups.
    """
    g = len(replicates)
    if g < 2:
        return torch.full_like(replicates.sum(dim=0), torch.nan)
    return (g - 1) / g**0.5 * replicates.std(dim=0)
