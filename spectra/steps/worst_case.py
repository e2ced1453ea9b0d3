"""Worst-case sharpness: the largest rise of the loss within a distance rho of the parameters.

    max of  L(theta + d) - L(theta)   over  |d| <= rho,   or  |d / theta| <= rho  with an entrywise quotient (adaptive)

With d = t e, where t = 1 or the entries of |theta| (adaptive), the first step of ascent is e = rho (t g) / |t g|. It is
the step of SAM (Foret, Kleiner, Mobahi, Neyshabur 2021), or of ASAM (Kwon, Kim, Park, Choi 2021), where the ball does
not change if layers of a ReLU network are rescaled against each other. Each further step uses the gradient at the point
that the last one reached.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from spectra.arguments import require_boolean, require_integer, require_number
from spectra.cluster.distributed import distributed
from spectra.curvature.displacement import displaced, displaced_losses
from spectra.curvature.engine.gradients import mean_gradient, with_weight_decay
from spectra.curvature.operator import Curvature
from spectra.defaults import ADAPTIVE_RHO, ASCENT_STEPS, RHO
from spectra.devices import device_of_vectors
from spectra.krylov.trust_region import BallMaximum, maximise_in_ball
from spectra.operator import Counting, SymmetricOperator, placed
from spectra.optimizer.preconditioned import Preconditioned
from spectra.problem.problem import Problem, require_problem
from spectra.steps.line_search import Losses, rounding_of
from spectra.steps.noise_scale import refuse_matrix
from spectra.vectors import norm, without_autocast
from spectra.wording import outline

RTOL, MOST = 0.01, 30  # relative error and largest number of products for the quadratic model
STATIONARY = "the gradient is zero, so there is no direction of ascent"
NOT_FINITE = "the loss is not finite at the first step of ascent"


@dataclass(frozen=True)
class WorstCase:
    """The rises of the loss that gradient ascent found in a ball, which are lower bounds of the largest rise.

    If there is no step of ascent, `rises` are nan, `direction` is None, and `reason` says why.
    """

    rho: float
    adaptive: bool
    rises: list[float]  # the largest L(theta + d) - L(theta) so far, after each step of ascent
    rounding: float  # standard deviation of a rise
    direction: Tensor | None  # d (n,) of the largest rise
    forward: int  # passes over the data
    backward: int
    model: BallMaximum | None = None  # the largest rise of the quadratic model, in coordinates e
    reason: str | None = None

    __repr__ = outline

    @property
    def first(self) -> float:
        """The rise after the first step of ascent, the step of SAM."""
        return self.rises[0]

    @property
    def rise(self) -> float:
        """The largest rise found."""
        return self.rises[-1]


@without_autocast()
def worst_case(
    problem: Problem,
    rho: float | None = None,
    *,
    adaptive: bool = False,
    steps: int = ASCENT_STEPS,
    name: str | None = "hessian",
    memory: int | None = None,
    check: bool = True,
) -> WorstCase:
    """Search a ball around the parameters for the largest rise of the mean loss, by gradient ascent as in SAM.

    The rise that is found is a lower bound of the largest one. Each step uses all data, whereas sharpness-aware
    minimization (SAM; Foret et al. 2021; adaptive: Kwon et al. 2021) uses a batch.

    Args:
        problem: the model, loss and data.
        rho: the radius of the ball; None: 0.05, or 0.5 for an adaptive one.
        adaptive: measure distances relative to each parameter's size, |d / theta| <= rho; zeros stay zeros.
        steps: the number of ascent steps, 1 or more; the first alone is SAM's.
        name: the matrix of the quadratic model, a second derivative in `spectra.MATRICES`; None: no quadratic model.
        memory: bytes for products beyond model and data; None: a quarter of the device's.
        check: compare derivatives with finite differences first.

    Returns:
        The rises after each step with their rounding error, the direction, and the largest rise of the quadratic
        `model`.

    Raises:
        SpectraError: the model or the loss fails, or the matrix is not a second derivative.
    """
    require_problem(problem)
    rho = (ADAPTIVE_RHO if adaptive else RHO) if rho is None else rho
    require_number("rho", rho, above=0.0, finite=True)
    require_boolean("adaptive", adaptive)
    require_integer("steps", steps)
    if name is not None:
        refuse_matrix(name)
    ball = Ball(problem, rho, adaptive)
    found = search_ball(ball, steps)
    if name is None:
        return found
    operator = Counting(distributed(Curvature(problem, name, memory, MOST, check=check)))
    return replace(found, model=ball.model(operator))


def search_ball(ball: Ball, steps: int) -> WorstCase:
    """Search a ball for the largest rise by this number of ascent steps, without the quadratic model."""
    nothing, length = [math.nan] * steps, norm(ball.origin)
    if length == 0:
        return ball.result(nothing, math.nan, None, STATIONARY)
    best = ball.origin * (ball.rho / length)
    along = Losses(ball.problem, ball.displacement(best), ball.watch)
    start, eps = along(0.0), torch.finfo(ball.problem.dtype).eps
    rounding = math.sqrt(2) * rounding_of(along, 1.0, eps)
    ball.forward += len(along.known)
    rise = ball.rise(best, start)
    if not math.isfinite(rise):
        return ball.result(nothing, rounding, None, NOT_FINITE)
    rises, shift, here = [rise], 0.0, None
    for _ in range(steps - 1):
        here = ball.slope(best) if here is None else here
        towards = shift * best + here
        if (length := norm(towards)) > 0:
            candidate = towards * (ball.rho / length)
            found = ball.rise(candidate, start)
            if found > rise:
                best, rise, here = candidate, found, None
            else:
                shift = max(2 * shift, norm(here) / ball.rho)  # a shorter step along the same gradient
        rises.append(rise)
    return ball.result(rises, rounding, ball.displacement(best), None)


@dataclass
class Ball:
    """The ball |e| <= rho around the parameters, in coordinates e with d = t e, and the passes spent in it."""

    problem: Problem
    rho: float
    adaptive: bool
    watch: Callable[[], None] = lambda: None
    forward: int = 0
    backward: int = 0

    def __post_init__(self) -> None:
        theta = self.problem.parameter_vector()
        scale = theta.abs() if self.adaptive else torch.ones_like(theta)
        self.scale = scale.to(device_of_vectors(theta.device))

    @cached_property
    def origin(self) -> Tensor:
        """The gradient (n,) with respect to e at the parameters, e = 0."""
        return self.slope(torch.zeros_like(self.scale))

    def model(self, operator: SymmetricOperator, max_products: int = MOST) -> BallMaximum | None:
        """The largest rise of the quadratic model with this matrix; None if the gradient is zero."""
        if norm(self.origin) == 0:
            return None
        matrix = Preconditioned(operator, placed(self.scale, operator)) if self.adaptive else operator
        return maximise_in_ball(matrix, placed(self.origin, operator), self.rho, rtol=RTOL, max_products=max_products)

    def displacement(self, e: Tensor) -> Tensor:
        """The displacement d = t e (n,) of the parameters."""
        return self.scale * e

    def slope(self, e: Tensor) -> Tensor:
        """The gradient (n,) with respect to e, by a forward and a backward pass."""
        self.watch()
        problem = self.problem
        with displaced(problem.leaves, problem.tensors(self.displacement(e))):
            gradient = with_weight_decay(problem, mean_gradient(problem))
        self.forward, self.backward = self.forward + 1, self.backward + 1
        return self.scale * gradient

    def rise(self, e: Tensor, start: float) -> float:
        """The rise L(theta + d) - L(theta), by a forward pass; nan if it is not finite."""
        self.forward += 1
        return displaced_losses(self.problem, [self.displacement(e)], self.watch)[0] - start

    def result(self, rises: list[float], rounding: float, d: Tensor | None, reason: str | None) -> WorstCase:
        """The result, with the number of passes over the data."""
        return WorstCase(self.rho, self.adaptive, rises, rounding, d, self.forward, self.backward, reason=reason)
