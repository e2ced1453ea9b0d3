"""The current point of parameter space: its norm, and the loss and gradient there."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from spectra.curvature.displacement import square
from spectra.curvature.engine.gradients import mean_gradient, with_weight_decay
from spectra.curvature.evaluation import mean_loss
from spectra.problem.problem import Problem


@dataclass(frozen=True)
class Point:
    """The current point theta: its norm, and the loss and gradient there, with weight decay."""

    loss: float
    gradient: Tensor  # (n,), whole
    norm: float  # |theta|

    @classmethod
    def of(cls, problem: Problem) -> Point:
        """The point of a problem's current parameters."""
        loss, squared = mean_loss(problem), square(problem)
        gradient = with_weight_decay(problem, mean_gradient(problem))
        return cls(loss + problem.weight_decay * squared / 2, gradient, squared**0.5)
