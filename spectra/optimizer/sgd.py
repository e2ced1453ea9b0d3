"""Stochastic gradient descent, with and without momentum: P = I."""

from __future__ import annotations

import torch
from torch import Tensor

from spectra.optimizer.momentum import Recurrence
from spectra.optimizer.parameter_state import ParameterState


def identity(entry: ParameterState) -> Tensor:
    """The diagonal of the identity."""
    return torch.ones(entry.shape, dtype=torch.float64)


def heavy_ball(entry: ParameterState) -> Recurrence:
    """The momentum m' = b m + (1 - d) g of torch's SGD with dampening d.

    The step is -eta m', and the threshold (2 + 2b) / ((1 - d) eta). With `nesterov` the step is -eta (g + b m'), and
    the threshold (2 + 2b) / ((1 + 2b) eta). Without momentum it is 2 / eta.
    """
    if not (momentum := entry.number("momentum")):
        return Recurrence()
    if entry.on("nesterov"):
        return Recurrence(decay=momentum, direct=1.0, through=momentum)
    return Recurrence(decay=momentum, gain=1 - entry.number("dampening"))
