"""Adagrad, RMSprop and Adadelta: preconditioners from sums or averages of squared gradients.

With the sum or moving average v of squared gradients:

    Adagrad    P = (1 + (t - 1) lr_decay) (sqrt(v) + eps) (Duchi, Hazan and Singer 2011)
    RMSprop    P = sqrt(v) + eps; centered: sqrt(v - a^2) + eps with the moving average a of gradients (Hinton 2012)
    Adadelta   P = sqrt(v + eps) / sqrt(u + eps) with the moving average u of squared steps (Zeiler 2012)

The step is -eta P^-1 g. Adadelta's last step used the u from before that step; P is computed from the current u, which
the next step will use.
"""

from __future__ import annotations

from torch import Tensor

from spectra.optimizer.momentum import Recurrence
from spectra.optimizer.parameter_state import ParameterState


def adagrad(entry: ParameterState) -> Tensor:
    """The diagonal of Adagrad's preconditioner."""
    slowing = 1 + (entry.step - 1) * entry.number("lr_decay")
    return slowing * (entry.tensor("sum").sqrt() + entry.number("eps"))


def rmsprop(entry: ParameterState) -> Tensor:
    """The diagonal of RMSprop's preconditioner."""
    v = entry.tensor("square_avg")
    if entry.on("centered"):
        v = v - entry.tensor("grad_avg").square()
    return v.sqrt() + entry.number("eps")


def rmsprop_momentum(entry: ParameterState) -> Recurrence:
    """The momentum of RMSprop in torch, m' = b m + g: the threshold is (2 + 2b) / eta, 2 / eta without momentum."""
    return Recurrence(decay=entry.number("momentum"))


def adadelta(entry: ParameterState) -> Tensor:
    """The diagonal of Adadelta's preconditioner."""
    eps = entry.number("eps")
    return ((entry.tensor("square_avg") + eps) / (entry.tensor("acc_delta") + eps)).sqrt()


def no_momentum(_entry: ParameterState) -> Recurrence:
    """No momentum: the threshold is 2 / eta."""
    return Recurrence()
