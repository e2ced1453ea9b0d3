"""Momentum as a linear recurrence, and the sharpness beyond which it is unstable.

At a parameter x with gradient g = A x, an optimizer with rate eta, preconditioner P and decoupled weight decay w does

    m' = b m + c g
    x' = (1 - eta w) x - eta P^-1 (p g + q m')

Where A is symmetric and P is held fixed, an eigenvector of the recurrence with eigenvalue z has z^2 - T z + D = 0 with

    T = b + 1 - eta w - l (p + q c)        D = b (1 - eta w) - b p l

for l = eta u'P^-1/2 A P^-1/2 u and unit u. Both roots lie inside the unit circle where 1 - T + D > 0, 1 + T + D > 0 and
|D| < 1. For b < 1 and l, w >= 0 (not both zero) the second decides, as the largest l grows:

    l < s (2 - eta w)        s = (1 + b) / ((1 + b) p + q c)

Beyond it a root is below -1: the iterates oscillate, and grow. Without decay the threshold is 2 s: 2 for gradient
descent (b = 0, p = 0, q = c = 1), 2 + 2b for heavy ball (p = 0, q = c = 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Recurrence:
    """The coefficients of an optimizer's momentum; the defaults are those of gradient descent."""

    decay: float = 0.0  # b
    gain: float = 1.0  # c
    direct: float = 0.0  # p
    through: float = 1.0  # q

    @property
    def scale(self) -> float | None:
        """The s of the threshold s (2 - eta w); None if momentum does not decay, or no gradient enters it."""
        weight = (1 + self.decay) * self.direct + self.through * self.gain
        return (1 + self.decay) / weight if 0 <= self.decay < 1 and weight > 0 else None


@dataclass(frozen=True)
class Threshold:
    """The largest eigenvalue at which an optimizer is stable on a quadratic, its preconditioner held fixed.

    It diverges if an eigenvalue is above `upper`, and converges if all are positive and below `value`. Both are the
    same unless the decoupled weight decay differs between parameters. If there is no threshold, both are None, and
    `reason` says why.
    """

    value: float | None = None
    upper: float | None = None
    reason: str | None = None


def threshold(recurrences: Sequence[Recurrence], decays: Sequence[float], rate: float | None) -> Threshold:
    """Compute the threshold of stability, for eigenvalues that include the decoupled weight decay.

    With the decay W, P^-1/2 A P^-1/2 + W has the threshold 2 s / eta - (s - 1) w where W = w I. Where W differs between
    parameters, P^-1/2 A P^-1/2 + s W has the threshold 2 s / eta exactly, and s W lies between W plus (s - 1) times the
    smallest decay, and W plus (s - 1) times the largest (Weyl's inequalities).

    Args:
        recurrences: the recurrence of each parameter.
        decays: the decoupled weight decay w of each parameter; times its rate if rates differ.
        rate: the rate eta that all parameters share; None if rates differ, so that P / eta replaces P.
    """
    if rate == 0:
        return Threshold(reason="the learning rate is 0")
    if len(set(recurrences)) > 1:
        return Threshold(reason="momentum differs between parameters, so there is no single threshold of stability")
    if (scale := recurrences[0].scale) is None:
        return Threshold(reason="with this momentum no learning rate is stable")
    if max(decays) * (1.0 if rate is None else rate) >= 2:
        return Threshold(reason="weight decay alone is unstable, because eta * weight_decay is 2 or more")
    shares = [(scale - 1) * decay for decay in decays]
    without_decay = 2 * scale / (1.0 if rate is None else rate)
    return Threshold(without_decay - max(shares), without_decay - min(shares))
