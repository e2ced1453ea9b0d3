"""Adam, AdamW, NAdam and RAdam: preconditioners from the moving average v of squared gradients.

With decays b1 and b2 and t steps taken, and the moving average m of gradients:

    Adam, AdamW   P = (1 - b1^t) (sqrt(v / (1 - b2^t)) + eps), and the step is -eta P^-1 m (Kingma and Ba 2015;
                  amsgrad: v is its own maximum over the steps, Reddi, Kale and Kumar 2018)
    RAdam         P = (1 - b1^t) (sqrt(v) + eps) / (sqrt(1 - b2^t) r) with the rectification r (Liu et al. 2020);
                  P = (1 - b1^t) I in the first steps, where r is undefined and nothing is adapted
    NAdam         P = (1 - M) (sqrt(v / (1 - b2^t)) + eps) with the product M of mu_1 to mu_t, and the step is
                  -eta P^-1 ((1 - mu_t) g + mu_(t+1) (1 - M) / (1 - M mu_(t+1)) m) (Dozat 2016)
"""

from __future__ import annotations

import torch
from torch import Tensor

from spectra.optimizer.momentum import Recurrence
from spectra.optimizer.parameter_state import ParameterState

LEAST_LENGTH = 5  # of the average in RAdam, below which nothing is adapted


def adam(entry: ParameterState) -> Tensor:
    """The diagonal of Adam's and AdamW's preconditioner."""
    first, second = entry.betas()
    v = entry.tensor("max_exp_avg_sq" if entry.on("amsgrad") else "exp_avg_sq")
    return (1 - first**entry.step) * ((v / (1 - second**entry.step)).sqrt() + entry.number("eps"))


def adam_momentum(entry: ParameterState) -> Recurrence:
    """Adam's momentum m' = b1 m + (1 - b1) g: the threshold is (2 + 2 b1) / ((1 - b1) eta), 38 / eta for b1 = 0.9."""
    first, _ = entry.betas()
    return Recurrence(decay=first, gain=1 - first)


def radam(entry: ParameterState) -> Tensor:
    """The diagonal of RAdam's preconditioner."""
    first, second = entry.betas()
    t = entry.step
    correction = 1 - second**t
    longest = 2 / (1 - second) - 1
    length = longest - 2 * t * second**t / correction
    if length <= LEAST_LENGTH:
        return torch.full(entry.shape, 1 - first**t, dtype=torch.float64)
    share = (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)
    scale = (1 - first**t) / (correction * share) ** 0.5
    return scale * (entry.tensor("exp_avg_sq").sqrt() + entry.number("eps"))


def nadam(entry: ParameterState) -> Tensor:
    """The diagonal of NAdam's preconditioner."""
    _, second = entry.betas()
    root = (entry.tensor("exp_avg_sq") / (1 - second**entry.step)).sqrt()
    return (1 - entry.scalar("mu_product")) * (root + entry.number("eps"))


def nadam_momentum(entry: ParameterState) -> Recurrence:
    """NAdam's momentum, with the coefficients of its last step.

    They grow during training. In the limit mu = b1, and the threshold is (2 + 2 b1) / ((1 - b1) (1 + 2 b1) eta).
    """
    (first, _), t = entry.betas(), entry.step
    now, after = (first * (1 - 0.5 * 0.96 ** (s * entry.number("momentum_decay"))) for s in (t, t + 1))
    product = entry.scalar("mu_product")
    through = after * (1 - product) / (1 - product * after)
    return Recurrence(decay=first, gain=1 - first, direct=1 - now, through=through)
